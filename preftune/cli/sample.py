"""`preftune sample`: answers of a model to the prompts of a file, for on-policy training data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.cli.values import at_least, column, plain_file

_EPILOG = """examples:
  preftune sample runs/demo prompts.jsonl --output samples.jsonl
  preftune sample my-model pairs.jsonl --output samples.jsonl --seeds 1 2 3 --max-tokens 1024
  torchrun --nproc-per-node 4 -m preftune sample my-model prompts.jsonl --output samples.jsonl
  preftune sample my-model prompts.jsonl --output samples.jsonl --endpoint http://localhost:8000/v1 --tokenizer my-model

PROMPTS is whatever train reads, with answers or without. A job that was killed goes on when the same command is given
again, and its output is the same. Prompts without an answer are in OUTPUT.failed.jsonl.
"""


def main(arguments: Sequence[str]) -> int:
    """Sample, and print a summary.

    Raises:
        PreftuneError: the model, a prompt file or a setting is wrong, or a job with other settings was begun.
    """
    options = _parser().parse_args(arguments)
    summary = _sample_by_model(options) if options.endpoint is None else _sample_by_servers(options)
    if summary["output"] is not None:
        if options.json:
            print(json.dumps(summary, indent=2, ensure_ascii=False))
        else:
            said = f"{summary['answers']} answers to {summary['prompts'] - summary['failed']} prompts"
            failed = f", {summary['failed']} prompts failed" if summary["failed"] else ""
            print(f"{said} ({summary['tokens']} tokens){failed}: {summary['output']}")
    return 0


def _sample_by_model(options: argparse.Namespace) -> dict[str, Any]:
    from preftune.onpolicy.local import sample_file

    return sample_file(
        options.model,
        options.prompts,
        options.output,
        seeds=options.seeds,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        max_tokens=options.max_tokens,
        system=options.system,
        split=options.split,
        columns=dict(options.columns or ()),
        on_bad_row=options.on_bad_row,
        limit=options.limit,
        chunk=options.chunk,
        slots=options.slots,
        torch_dtype=options.torch_dtype,
        engine=options.engine,
    )


def _sample_by_servers(options: argparse.Namespace) -> dict[str, Any]:
    from preftune.onpolicy.prompts import load_prompts
    from preftune.onpolicy.remote import Sampling, sample_from_endpoint
    from preftune.serve.chat import trained_system

    system = options.system
    if system is None and options.tokenizer is not None:  # ids of training, its system text among them
        system = trained_system(Path(options.tokenizer))
    return sample_from_endpoint(
        options.endpoint,
        options.model,
        load_prompts(
            options.prompts,
            split=options.split,
            columns=dict(options.columns or ()),
            on_bad_row=options.on_bad_row,
            system=system,
            limit=options.limit,
        ),
        options.output,
        sampling=Sampling(options.max_tokens, options.temperature, options.top_p, options.top_k),
        tokenizer=options.tokenizer,
        concurrency=options.concurrency,
        tries=options.tries,
        timeout=options.timeout,
        seeds=options.seeds,
        chunk=options.chunk,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune sample",
        description="Sample answers of a model to every prompt, one for each seed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder with a model, such as a run folder or a checkpoint, or a hub name")
    add("prompts", nargs="+", metavar="PROMPTS", help="files, folders or data sets whose prompts are answered")
    add("--output", required=True, type=plain_file, metavar="F.jsonl", help="rows with 'responses'")
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=[13, 21, 42, 79, 100],
        metavar="N",
        help="one answer each (13 21 42 79 100)",
    )
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest token (0.8)")
    add("--top-p", type=float, default=0.95, help="(0.95)")
    add("--top-k", type=int, default=0, help="0 = all tokens (0)")
    add(
        "--max-tokens",
        type=int,
        default=4096,
        metavar="N",
        help="of an answer (4096); the model's context may leave less",
    )
    add(
        "--system",
        metavar="TEXT",
        help="a system text for prompts without one; by default that of the training of MODEL or T",
    )
    add("--split", default="train", help="of the data (train)")
    add("--columns", nargs="+", type=column, metavar="NAME=ROLE", help="what a column is; NAME= ignores it")
    add("--on-bad-row", choices=("error", "skip"), help="stop at a row that is wrong, or leave it out (error)")
    add("--limit", type=at_least(1), metavar="N", help="only the first N prompts")
    add(
        "--chunk", type=at_least(1), default=64, metavar="N", help="prompts that are answered and written together (64)"
    )
    add("--slots", type=at_least(1), default=32, metavar="N", help="answers that are written at the same time (32)")
    add("--torch-dtype", choices=("auto", "float32", "bfloat16", "float16"), help="(float32 on CPU, else as saved)")
    add(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="what runs MODEL in this process (transformers; vllm with the extra vllm)",
    )
    add("--endpoint", nargs="+", metavar="URL", help="let OpenAI-compatible servers answer; MODEL is its name there")
    add("--tokenizer", metavar="T", help="of the model there: prompts are sent as its token ids, as in training")
    add("--concurrency", type=at_least(1), default=16, metavar="N", help="requests to servers at once (16)")
    add("--tries", type=at_least(1), default=8, metavar="N", help="of a request (8)")
    add("--timeout", type=float, default=600.0, metavar="S", help="seconds of a request (600)")
    add("--json", action="store_true", help="print the summary as JSON")
    return parser
