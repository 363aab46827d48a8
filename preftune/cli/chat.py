"""`preftune chat`: talk to a model in the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_EPILOG = """examples:
  preftune chat runs/demo
  preftune chat runs/demo --temperature 0 --system "Answer in one sentence."
  echo "who are you?" | preftune chat runs/demo
"""


def main(arguments: Sequence[str]) -> int:
    """Chat until `/exit` or the end of the input.

    Raises:
        ModelError: there is no model in that place.
    """
    options = _parser().parse_args(arguments)
    from preftune.serve.chat import chat

    chat(
        options.model,
        system=options.system,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        seed=options.seed,
        history=not options.no_history,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune chat",
        description="Talk to a model. /reset forgets the conversation, /exit leaves.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a folder with a model, such as a run folder or a checkpoint")
    parser.add_argument("--system", metavar="TEXT", help="a system message at the start; by default that of training")
    parser.add_argument("--temperature", type=_at_least_0, default=0.7, help="0 takes the likeliest token (0.7)")
    parser.add_argument("--max-tokens", type=_at_least_1, default=256, help="longest answer, in tokens (256)")
    parser.add_argument("--seed", type=int, help="of the sampling, for the same answers again")
    parser.add_argument("--no-history", action="store_true", help="read each question by itself")
    return parser


def _at_least_0(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text}")
    return number


def _at_least_1(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text}")
    return number
