"""`preftune check`: what a run would make of its data, without training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.values import at_least, column

if TYPE_CHECKING:
    from preftune.recipe import Recipe

_EPILOG = """examples:
  preftune check my.yaml
  preftune check my.yaml max_length=512 --ids
  preftune check pairs.jsonl --model my-model --on-bad-row skip
  preftune check '{a.jsonl: 0.5, b.jsonl: 1.0}' --model my-model --objective dpo --json
  preftune check answers.csv --model my-model --columns question=prompt good=chosen bad=rejected

RECIPE is a .yaml or .json file of recipe keys. DATA is a file, a folder, a name, a comma list, several of them, or a
mixture as above. Every key of a recipe can be given as key=value; the options are short for some of them. Only the
tokenizer and the config of a model are read, never its weights; what needs them (a damaged weight file, memory that
does not suffice) is not found here. Memory is an estimate.

exit code:
  0  a run can start with this data; there may be warnings
  1  it would stop: data missing or unreadable, a bad row, a conversation that the template refuses, rows that all
     drop out, a tokenizer or positions that do not fit the model. The line is that of the run; for bad rows a second
     one counts them all
  2  what was asked cannot be understood: an option, the recipe, a key or its value, or there is no such tokenizer

--json prints rows, dropped and truncated (counts), mapping, lengths (tokens before cutting), survey, savings, steps,
memory_gib, warnings, and examples: prompt_ids and responses with their ids, of which the last `scored` enter the
log-prob. With exit code 1 it prints error and, where rows are bad, bad_rows.
"""

# Options that are short for a key of the recipe.
_KEYS = {
    "model": "model_name_or_path",
    "objective": "objective",
    "max_length": "max_length",
    "max_prompt_length": "max_prompt_length",
    "truncation": "truncation",
    "chat_template": "chat_template",
    "on_bad_row": "on_bad_row",
}


def main(arguments: Sequence[str]) -> int:
    """Check, and print the report. 1 where a run would stop.

    Raises:
        PreftuneError: what was asked cannot be understood.
    """
    options, more = _parser().parse_known_args(arguments)
    from preftune.errors import PreftuneError, RecipeError

    recipe = _load_recipe(options, more)
    from preftune.train.check import check_data, count_bad_rows
    from preftune.train.tokenizer import load_run_tokenizer

    tokenizer, new_tokens = load_run_tokenizer(recipe)
    try:
        report = check_data(recipe, tokenizer, new_tokens, split=options.split)
    except RecipeError:
        raise
    except PreftuneError as error:
        line = f"{type(error).__name__}: {error}"
        bad = count_bad_rows(recipe, options.split) if recipe.on_bad_row is None else None
        _print_failure(line, bad, options.json)
        return 1
    if options.json:
        print(json.dumps(report.to_dict(options.examples), indent=2, ensure_ascii=False))
        return 0
    from preftune.cli.check_page import print_report

    print_report(report, examples=options.examples, ids=options.ids)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune check",
        usage="preftune check RECIPE.yaml [key=value ...] [options]\n"
        "       preftune check DATA --model M [key=value ...] [options]",
        description="Look at the data of a run: what was understood, how rows are encoded and cut, what it will cost.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="RECIPE | DATA", help="a recipe, or data and key=value")
    parser.add_argument("--model", metavar="M", help="folder or hub name of the model, or of a tokenizer alone")
    parser.add_argument("--objective", metavar="NAME", help="what is trained (simpo); it decides how rows are read")
    parser.add_argument(
        "--columns", nargs="+", type=column, metavar="NAME=ROLE", help="what a column is; NAME= ignores it"
    )
    parser.add_argument("--split", default="train", metavar="NAME", help="the split to look at (train)")
    parser.add_argument("--max-length", metavar="N", help="tokens of prompt and response together (1024)")
    parser.add_argument("--max-prompt-length", metavar="N", help="tokens that a prompt keeps when a row is cut")
    parser.add_argument("--truncation", metavar="MODE", help="prompt_then_response, keep_start, keep_end, drop, error")
    parser.add_argument("--chat-template", metavar="NAME", help="in place of the tokenizer's own")
    parser.add_argument("--on-bad-row", metavar="error|skip", help="stop at a bad row, or count it and go on")
    parser.add_argument("--examples", type=at_least(0), default=3, metavar="N", help="rows to show (3)")
    parser.add_argument("--ids", action="store_true", help="show the token ids of these rows too")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _load_recipe(options: argparse.Namespace, more: Sequence[str]) -> Recipe:
    """The recipe that the words and options make."""
    from preftune.errors import RecipeError
    from preftune.recipe import load_recipe

    named = [word for word in options.words if not _is_key(word)]
    keys = [word for word in (*options.words, *more) if word not in named]
    recipe, data = _sort(named)
    if recipe is None and data:
        keys.append(f"dataset={json.dumps(data[0] if len(data) == 1 else data, ensure_ascii=False)}")
        if len(data) == 1 and data[0].startswith(("{", "[")):
            keys[-1] = f"dataset={data[0]}"
    keys += [f"{key}={getattr(options, name)}" for name, key in _KEYS.items() if getattr(options, name) is not None]
    if options.columns:
        keys.append(f"columns={json.dumps(dict(options.columns), ensure_ascii=False)}")
    if recipe is None and not keys:
        raise RecipeError("preftune check: there is nothing to look at. Name a recipe, or data and --model.")
    try:
        return load_recipe(recipe, keys)
    except RecipeError as error:
        if recipe is None and "'model_name_or_path' is missing" in str(error):
            raise RecipeError("preftune check: token ids need a tokenizer. Add --model FOLDER-OR-NAME.") from None
        raise


def _sort(named: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe, if one is named, and the data."""
    from preftune.errors import RecipeError

    recipes = [name for name in named if _is_recipe(name)]
    if recipes and len(named) > 1:
        other = next(name for name in named if name != recipes[0])
        raise RecipeError(
            f"preftune check: '{recipes[0]}' is a recipe and names its own data, so '{other}' is one too many. "
            f"Write dataset={other} to look at that instead."
        )
    return (recipes[0], []) if recipes else (None, list(named))


def _is_recipe(name: str) -> bool:
    """A YAML file; or a JSON file that holds an object with a recipe's keys, and so no rows."""
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml"):
        return True
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "model_name_or_path" in content


def _is_key(word: str) -> bool:
    """`beta=2.5`, but for a file of such a name, and `hh-rlhf=folder`: a catalogue's set with a local copy."""
    key, equals, _ = word.partition("=")
    if not equals or Path(word).exists() or word.startswith(("{", "[")):
        return False
    from preftune.data import load_catalog

    return load_catalog().find(key) is None


def _print_failure(line: str, bad: Any, as_json: bool) -> None:
    if as_json:
        content = {"error": line} | ({"bad_rows": bad.to_dict()} if bad else {})
        print(json.dumps(content, indent=2, ensure_ascii=False))
    print(line, file=sys.stderr)
    if bad and bad.total < bad.read:
        counted = str(bad).replace(" skipped", " are bad", 1)
        print(f"{counted}. on_bad_row: skip leaves them out.", file=sys.stderr)
