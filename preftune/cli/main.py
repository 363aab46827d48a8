"""`preftune VERB ...`: finds the verb and turns errors into one line and an exit code.

A verb is a file in this folder with a `main(arguments) -> exit code`. It is imported when it is run, and torch only
when it is needed, so that `--help` answers at once. Exit codes: 0 done, 1 a check failed, 2 bad input, 3 the model
collapsed, 130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from preftune import __version__
from preftune.errors import PreftuneError

VERBS: dict[str, str] = {
    "demo": "train a small model from nothing and show what SimPO changes",
    "train": "train by a recipe",
    "check": "look at the data of a run before it starts: mapping, lengths, cuts, cost",
    "plan": "what a run takes of each device's memory, and what fits",
    "schema": "the keys of a recipe as a JSON schema, for editors",
    "presets": "list the published settings that `train --preset` runs",
    "rlhf": "train by the flags of the published rlhf commands (short: simpo dpo kto cpo orpo rm ppo)",
    "sft": "the same for supervised fine-tuning",
    "objectives": "list the objectives, with formula, defaults, source and cost",
    "replay": "run the rows once more whose log-probs or gradient stopped a run",
    "sample": "sample answers of a model to prompts, for on-policy data",
    "autopsy": "which pairs of a run never separate, flip, contradict others or separate by length alone",
    "score": "score responses with a reward model",
    "annotate": "score the answers of a file: reward model, ranker, judge, function, rule",
    "pairs": "make pairs of chosen and rejected from scored answers",
    "onpolicy": "rounds of sampling, scoring, pairing and training",
    "sweep": "a recipe with other values of some keys, ranked",
    "bakeoff": "the paper's baselines on your data, in one table",
    "eval": "AlpacaEval 2, Arena-Hard, MT-Bench; reward accuracy; a model before and after",
    "report": "runs and evaluations as one page: curves, answers side by side, win rates, cost",
    "chat": "talk to a model",
    "web": "a page to compare models, follow runs, browse data and start a training",
    "infer": "answer the prompts of a file, or one prompt",
    "serve": "an OpenAI-compatible server (also: deploy)",
    "export": "write a model as one folder: adapter merged, precision chosen",
    "push": "put a model or a run on the hub",
}

# Verbs that are `rlhf` with its --rlhf_type.
SHORT = ("simpo", "dpo", "kto", "cpo", "orpo", "rm", "ppo", "ipo", "rdpo", "slic_hf", "rrhf", "sft")

# Other names of verbs.
ALIASES = {"web-ui": "web", "deploy": "serve"}

_HELP = """usage: preftune VERB [...]

Preference alignment of language models.

verbs:
{verbs}

options:
  --help     show this, or after a verb what it takes, with an example
  --version  show the version

example: preftune train training_configs/demo-simpo.yaml learning_rate=1e-5
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP.format(verbs="\n".join(f"  {verb:<12}{line}" for verb, line in VERBS.items())), end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"preftune {__version__}")
        return 0
    if words[0] in SHORT:
        return run_verb("rlhf", words[1:], words[0])
    verb = ALIASES.get(words[0], words[0])
    if verb not in VERBS:
        return _unknown(verb)
    return run_verb(verb, words[1:])


def _unknown(verb: str) -> int:
    near = difflib.get_close_matches(verb, (*VERBS, *ALIASES, *SHORT), n=1)
    meant = f"did you mean '{near[0]}'?" if near else f"the verbs are {', '.join(VERBS)}."
    return _fail(f"preftune: '{verb}' is not a verb; {meant}", 2)


def run_verb(verb: str, words: Sequence[str], *more: str) -> int:
    """Run the `main` of a file in this folder; returns the exit code, an error being one line."""
    _log_to_stderr()
    try:
        return int(importlib.import_module(f"preftune.cli.{verb}").main(words, *more))
    except PreftuneError as error:
        return _fail(f"{type(error).__name__}: {error}", error.exit_code)
    except KeyboardInterrupt as stop:  # training says with it what was saved and how to go on
        return _fail(f"Interrupted: {stop}" if str(stop) else "Interrupted.", getattr(stop, "exit_code", 130))
    except SystemExit as leave:  # argparse: 0 after --help, 2 after a wrong option, which it has explained
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)


def _fail(line: str, code: int) -> int:
    sys.stdout.flush()
    print(line, file=sys.stderr)
    return code


def _log_to_stderr() -> None:
    """Show the package's log lines, which say what was chosen or converted."""
    log = logging.getLogger("preftune")
    log.handlers = [logging.StreamHandler()]  # a new one: sys.stderr may have been replaced since the last call
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it misses a kernel that is not used here
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)  # once, not once a process


if __name__ == "__main__":
    sys.exit(main())
