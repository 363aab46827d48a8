"""`preftune chat`: talk to a model in the terminal, or to two of them at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

_EPILOG = """examples:
  preftune chat runs/demo
  preftune chat runs/demo --compare runs/demo/sft
  preftune chat runs/demo --temperature 0 --system "Answer in one sentence."
  echo "who are you?" | preftune chat runs/demo

MODEL is a run folder, a checkpoint, a model, an adapter (its base model is found by its config), or a hub name. /help
in the chat lists its commands. Where the input is a file or a pipe, each line is a question of its own, and nothing but
the answers is printed.
"""


def main(arguments: Sequence[str]) -> int:
    """Chat until `/exit` or the end of the input.

    Raises:
        ModelError: there is no model in that place.
    """
    options = _parser().parse_args(arguments)
    from preftune.serve.chat import Sampling, open_chat
    from preftune.serve.terminal import Terminal, answer_pipe

    at_terminal = sys.stdin.isatty() and not options.whole_input
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=options.repetition_penalty,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    chats = [
        open_chat(
            name,
            system=options.system,
            sampling=sampling,
            history=at_terminal and not options.no_history,
            trust_remote_code=options.trust_remote_code,
            allow_pickle=options.allow_pickle,
        )
        for name in (options.model, *([options.compare] if options.compare else []))
    ]
    if at_terminal:
        Terminal(chats, plain=options.plain).run()
    else:
        answer_pipe(chats, whole=options.whole_input)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune chat",
        description="Talk to a model. /help lists the commands, /exit leaves.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, checkpoint, model, adapter or hub name")
    parser.add_argument("--compare", metavar="OTHER", help="a second model, which answers each question too")
    parser.add_argument("--system", metavar="TEXT", help="a system message at the start; by default that of training")
    sampling_options(parser, max_tokens=256)
    parser.add_argument("--repetition-penalty", type=number(1e-9), default=1.0, help="above 1: repeat less (1)")
    parser.add_argument("--seed", type=count(0), help="of the sampling, for the same answers again")
    parser.add_argument("--no-history", action="store_true", help="read each question by itself")
    parser.add_argument("--plain", action="store_true", help="print answers as they are, not as Markdown")
    parser.add_argument("--whole-input", action="store_true", help="the whole standard input is one question")
    return parser


def sampling_options(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """The options of every verb that answers: how tokens are drawn, and what may be loaded."""
    parser.add_argument("--temperature", type=number(0), default=0.7, help="0 takes the likeliest token (0.7)")
    parser.add_argument("--top-p", type=number(1e-9, 1), default=1.0, help="share of the likeliest tokens (1)")
    parser.add_argument("--top-k", type=count(0), default=0, help="so many of the likeliest tokens; 0 = all (0)")
    parser.add_argument(
        "--max-tokens", type=count(1), default=max_tokens, help=f"longest answer, in tokens ({max_tokens})"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read weights that are pickle files (*.bin)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")


def number(least: float, most: float = float("inf")) -> Any:
    """The type of an option with a number of a range."""

    def read(text: str) -> float:
        value = float(text)
        if not least <= value <= most or value == float("inf"):
            limits = f"of at least {least:g}" if most == float("inf") else f"between {least:g} and {most:g}"
            raise argparse.ArgumentTypeError(f"expected a number {limits}, found {text}")
        return value

    return read


def count(least: int) -> Any:
    """The type of an option with a whole number."""

    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text}")
        return value

    return read
