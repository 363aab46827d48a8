"""A model folder on the hub: which files go there, the repository they go to, and what can go wrong, in one line.

Only files that belong to a model are sent: weights in safetensors, config, tokenizer, card, recipe, log, plots
and samples. Checkpoints, optimizer states and pickles stay; so does what a link points to outside of the folder. A file
that holds an access token stops it.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import re
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers.trainer_utils import HubStrategy

from preftune.errors import ModelError
from preftune.model.load import one_line
from preftune.model.place import run_folder
from preftune.train.card import is_card, short_card

logger = logging.getLogger(__name__)

PATTERNS = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "README.md", "LICENSE*"),
    *("recipe.yaml", "log.jsonl", "watch.jsonl", "samples.md", "plots/*.png", "samples/*.md"),
)
LEFT_OUT = ("trainer_state.json", "manifest.json", "autopsy.json")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")


def push_folder(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    update: bool = False,
    revision: str | None = None,
    message: str = "Upload with preftune",
    create_pr: bool = False,
) -> str:
    """Send a model folder to the hub in one commit, and return the commit's address.

    Args:
        folder: with a model or an adapter.
        repo: `owner/name`, or a name alone: the account's own.
        private: whom a new repository is shown to; None = as the account has it.
        update: put a commit on a repository that exists.
        revision: a branch of it.
        create_pr: as a pull request.

    Raises:
        ModelError: there is no model, no token, no permission, no connection, or the repository exists.
    """
    operations = to_operations(Path(folder).expanduser())
    if not get_token():
        raise ModelError("The hub needs an access token: run `hf auth login`, or set HF_TOKEN.")
    name = open_repo(repo, private=private, update=update or create_pr)
    try:
        commit = HfApi().create_commit(
            name, operations, commit_message=message, revision=revision, create_pr=create_pr or None
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as cause:
        done = "" if update or create_pr else " The repository has been made and is empty: try again with --update."
        raise ModelError(f"{_refusal(cause, name)}{done}") from cause
    return str(commit.pr_url or commit.commit_url)


def push_checkpoint(checkpoint: Path, repo: str, strategy: HubStrategy, revision: str | None) -> list[Future[Any]]:
    """Start to send a checkpoint's model, and by `strategy` the whole of it: to last-checkpoint/ or under its name.

    What goes wrong there is a line in the log: the checkpoint is on the disk, and training goes on.
    """
    step = checkpoint.name.rpartition("-")[2]
    api, common = HfApi(), {"repo_id": repo, "revision": revision, "run_as_future": True}
    try:
        jobs = [
            api.create_commit(
                operations=to_operations(checkpoint), commit_message=f"Training in progress, step {step}", **common
            )
        ]
    except Exception as cause:
        logger.warning("%s is not on the hub (%s).", checkpoint.name, one_line(cause))
        return []
    if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
        jobs.append(
            api.upload_folder(
                folder_path=checkpoint,
                path_in_repo=place,
                delete_patterns="*",
                commit_message=f"Training in progress, step {step}, checkpoint",
                **common,
            )
        )
    for job in jobs:
        job.add_done_callback(partial(_say_failure, checkpoint.name))
    return jobs


def _say_failure(name: str, job: Future[Any]) -> None:
    cause = None if job.cancelled() else job.exception()
    if cause is not None:
        logger.warning("%s is not on the hub (%s).", name, one_line(cause))


def open_repo(repo: str, *, private: bool | None, update: bool) -> str:
    """Make the repository; returns its full name.

    Raises:
        ModelError: it exists and `update` is False, or it cannot be made.
    """
    try:
        return HfApi().create_repo(repo, private=private, exist_ok=update).repo_id
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as cause:
        raise ModelError(_refusal(cause, repo)) from cause


def to_operations(folder: Path) -> list[CommitOperationAdd]:
    """What is sent of a folder, with a card where it has none.

    Raises:
        ModelError: there is no model in it, or a file or the card would hold an access token.
    """
    written = is_card(folder / "README.md")
    files = [path for path in published_files(folder) if written or path.name != "README.md"]
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    if not written:
        run = run_folder(folder)
        text = short_card(folder, run).encode()
        if _TOKEN.search(text):
            raise ModelError(_holds_token(f"The card of '{folder}', made of what '{run}' has,"))
        operations.append(CommitOperationAdd("README.md", text))
    _warn_of_local_base(folder)
    return operations


def published_files(folder: Path) -> list[Path]:
    """The files of a model folder that are sent."""
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ModelError(f"There is no model in '{folder}': neither config.json nor adapter_config.json.")
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # fnmatch's * takes a slash too
        fits = any(fnmatch.fnmatchcase(name, p) and name.count("/") == p.count("/") for p in PATTERNS)
        if fits and name not in LEFT_OUT and path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            _refuse_token(path)
            found.append(path)
    if not any(path.suffix == ".safetensors" for path in found):
        raise ModelError(f"'{folder}' has no weights in safetensors. Pickle files are not sent; `preftune export` it.")
    return found


def _refuse_token(path: Path) -> None:
    if path.suffix in (".safetensors", ".png", ".model"):
        return
    with path.open("rb") as file:
        if any(map(_TOKEN.search, file)):  # line by line: logs grow
            raise ModelError(_holds_token(f"'{path}'"))


def _holds_token(what: str) -> str:
    return f"{what} holds what looks like an access token (hf_...). Take it out before it is sent."


def _warn_of_local_base(folder: Path) -> None:
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = str(settings.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return
    if Path(base).expanduser().exists():
        logger.warning(
            "The adapter's base model is the folder '%s', which others do not have: `preftune export` merges it.", base
        )


def _refusal(cause: Exception, repo: str) -> str:
    """What the hub answered, in one line."""
    status = getattr(getattr(cause, "response", None), "status_code", None)
    said: dict[Any, str] = {
        401: "the hub does not take the access token. Run `hf auth login` again, or mend HF_TOKEN.",
        403: "the access token may not write there. Give another repository, or a token with write access.",
        404: "there is no such repository or branch, or the access token may not see it.",
        409: "it exists already. Add --update to put a commit on it, or give another name.",
    }
    return f"'{repo}': {said.get(status) or f'the hub cannot be written to ({one_line(cause)}).'}"
