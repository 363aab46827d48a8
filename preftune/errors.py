"""The exceptions a user meets. Each message says what was expected, what was found, where, and what to do."""


class PreftuneError(Exception):
    """Root of the errors that a user can mend; the command line prints one line and exits with `exit_code`."""

    exit_code = 2


class RecipeError(PreftuneError):
    """A recipe file, key or value is wrong."""


class DataError(PreftuneError):
    """A row, file or dataset is wrong; the message starts with the row's origin."""


class ModelError(PreftuneError):
    """A model or tokenizer cannot be loaded, or cannot do what was asked."""


class CheckpointError(PreftuneError):
    """A checkpoint is missing, torn or belongs to another run."""


class MissingExtraError(PreftuneError):
    """An optional package is needed and not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the '{extra}' extra, which is not installed. Run: pip install 'preftune[{extra}]'"
        )


class TrainingError(PreftuneError):
    """The run cannot go on: a non-finite loss, or an engine that is not the one that was asked for."""

    exit_code = 1


class CollapseError(TrainingError):
    """The collapse watch ended the run."""

    exit_code = 3


class Interrupted(KeyboardInterrupt):
    """The user or the system stopped the run; the message says what was saved and how to go on."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
