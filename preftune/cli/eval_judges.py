"""Who judges in `preftune eval BENCHMARK judge`: an endpoint, or a reward model under a name of its own."""

from __future__ import annotations

import argparse
from typing import Any


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """What an endpoint is asked with."""
    parser.add_argument("--endpoint", nargs="+", metavar="URL", help="addresses up to /v1")
    parser.add_argument("--judge", metavar="NAME", help="the judge's name there")
    parser.add_argument("--key-from", default="OPENAI_API_KEY", metavar="VAR", help="environment variable of the key")
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests under way at once (16)")
    parser.add_argument("--tries", type=int, default=8, metavar="N", help="of a request (8)")
    parser.add_argument(
        "--prices", nargs=2, type=positive, metavar=("READ", "WRITTEN"), help="of a million tokens, for the estimate"
    )
    parser.add_argument("--budget", type=positive, metavar="X", help="what the judging may cost, at these prices")


def add_reward_judge(parser: argparse.ArgumentParser) -> None:
    """The other judge."""
    parser.add_argument(
        "--reward-model", metavar="MODEL", help="judge by a local reward model, under a name of its own"
    )
    parser.add_argument(
        "--scale", type=positive, default=1.0, metavar="X", help="of the rewards: their difference counts / X (1)"
    )


def check_one_judge(options: argparse.Namespace) -> None:
    """Raises RecipeError: there is no judge, or two."""
    from preftune.errors import RecipeError

    if (options.reward_model is None) == (options.endpoint is None):
        raise RecipeError("Give one judge: --endpoint with --judge, or --reward-model.")


def check_given(options: argparse.Namespace, *names: str) -> None:
    """Raises RecipeError: an option that a judge behind an endpoint needs is missing."""
    from preftune.errors import RecipeError

    absent = [f"--{name}" for name in names if getattr(options, name) is None]
    if options.endpoint is not None and absent:
        raise RecipeError(f"A judge that is asked needs {' and '.join(absent)}. Give the benchmark's file.")


def open_judge(options: argparse.Namespace) -> Any:
    """The endpoint that the options name."""
    from preftune.evaluation.judge import open_endpoint

    return open_endpoint(
        options.endpoint,
        options.judge,
        options.output,
        key_from=options.key_from,
        concurrency=options.concurrency,
        tries=options.tries,
        prices=options.prices,
        budget=options.budget,
    )


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value
