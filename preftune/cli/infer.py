"""`preftune infer`: answers to the prompts of a file, or to one prompt."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from preftune.cli.chat import count, sampling_options
from preftune.cli.values import column, plain_file

_EPILOG = """examples:
  preftune infer runs/simpo --input prompts.jsonl --output answers.jsonl
  preftune infer runs/simpo --input pairs.parquet --output answers.jsonl --temperature 0 --max-tokens 512
  preftune infer runs/simpo --prompt "Why is the sky blue?"

MODEL is a run folder, a checkpoint, a model, an adapter or a hub name. The rows of --input are those of any data that
prompts can be read from; answers in them are left out. --output gets one JSON object a row: row, prompt, response,
finish (stop, or length where the limit ended it) and tokens. A job that was killed goes on by the same command.
"""


def main(arguments: Sequence[str]) -> int:
    """Answer, and print a summary or the answer.

    Raises:
        PreftuneError: the model, the file or a row is wrong.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.prompt is not None and not options.prompt.strip():
        parser.error("--prompt is empty")
    if options.input is not None and options.output is None:
        parser.error("--input needs --output OUT.jsonl")
    from preftune.serve.chat import Sampling, open_chat
    from preftune.serve.terminal import answer_prompt

    chat = open_chat(
        options.model,
        system=options.system,
        sampling=Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            max_tokens=options.max_tokens,
            seed=options.seed,
        ),
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
    )
    if options.prompt is not None:
        answer_prompt(chat, options.prompt)
        return 0
    from preftune.serve.infer import infer_file

    summary = infer_file(
        chat,
        options.input,
        options.output,
        columns=dict(options.columns or ()),
        split=options.split,
        slots=options.slots,
        overwrite=options.overwrite,
    )
    if options.json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        print(
            f"{summary['output']}: {summary['rows']} answers, {summary['tokens']} tokens; {summary['cut']} reached the "
            f"limit of {options.max_tokens} tokens."
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune infer",
        description="Answer the prompts of a file, or one prompt.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, checkpoint, model, adapter or hub name")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", metavar="FILE", help="jsonl, json, csv or parquet, a folder of them, or a data set")
    what.add_argument("--prompt", metavar="TEXT", help="one prompt; the answer is printed as it comes")
    parser.add_argument("--output", type=plain_file, metavar="OUT.jsonl", help="where the answers to --input go")
    parser.add_argument("--system", metavar="TEXT", help="a system message at the start; by default that of training")
    sampling_options(parser, max_tokens=1024)
    parser.add_argument("--seed", type=count(0), default=0, help="of the sampling (0)")
    parser.add_argument(
        "--columns", nargs="+", type=column, metavar="NAME=ROLE", help="what a column is; NAME= ignores it"
    )
    parser.add_argument("--split", default="train", help="of a folder or data set: train, test, ... (train)")
    parser.add_argument("--slots", type=count(1), default=32, help="answers written at the same time (32)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT.jsonl, or what was begun with other settings"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser
