"""`preftune annotate`: scores for the answers of a file, by a model, a ranker, a judge, a function or a rule."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from preftune.cli.values import at_least, column, plain_file
from preftune.errors import RecipeError

_EPILOG = """examples:
  preftune annotate samples.jsonl --output scored.jsonl --reward-model runs/reward
  preftune annotate samples.jsonl --output scored.jsonl --custom-model armo-rm --trust-remote-code
  preftune annotate samples.jsonl --output scored.jsonl --endpoint http://gpu:8000/v1 --judge-model big
  preftune annotate samples.jsonl --output scored.jsonl --function my_rewards:shorter

A job that was killed goes on when the same command is given again. The scores are in the order of the answers; null
where a score failed, with the reason in 'score_failures'.
"""
log = logging.getLogger(__name__)
_JUDGE = ("judge_model", "budget", "price_in", "price_out")


def main(arguments: Sequence[str]) -> int:
    """Annotate, and print a summary.

    Raises:
        PreftuneError: the file, the scorer or a setting is wrong, or a job with other settings was begun.
    """
    options = _parser().parse_args(arguments)
    from preftune.onpolicy.annotate import annotate_file
    from preftune.onpolicy.journal import check_output

    check_output(Path(options.output))
    rank, world = (int(os.environ.get(name) or default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if world > 1 and options.cache:
        raise RecipeError("--cache is one file for one process. Leave it out with several, or start one.")
    prices = _prices(options)
    with ExitStack() as files:
        summary = annotate_file(
            options.file,
            _scorer(options, prices, (rank, world), files),
            options.output,
            keep_scores=options.keep_scores,
            columns=dict(options.columns or ()),
            split=options.split,
            chunk=options.chunk,
            prices=prices,
            rank=rank,
            world=world,
        )
    if summary["output"] is None:
        return 0
    if options.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        mean = "" if summary["mean"] is None else f", mean {summary['mean']:.4g}"
        failed = f", {summary['failed']} without a score" if summary["failed"] else ""
        print(f"{summary['answers']} answers of {summary['rows']} rows{mean}{failed}: {summary['output']}")
    return 0


def _scorer(options: argparse.Namespace, prices: Any, process: tuple[int, int], files: ExitStack) -> Any:
    """The scorer that is named, or None; `files` closes what it holds."""
    stray = [name for name in _JUDGE if getattr(options, name) is not None and not options.endpoint]
    if stray:
        raise RecipeError(f"--{stray[0].replace('_', '-')} is of a judge; give its --endpoint.")
    scorer = _named_scorer(options, prices, process, files)
    if scorer is None and not options.keep_scores:
        raise RecipeError(
            "There is no scorer. Give --reward-model, --custom-model, --ranker, --endpoint, --function, --rule or "
            "--keep-scores."
        )
    if options.cache is None or scorer is None:
        return scorer
    from preftune.onpolicy.score_cache import CachedScorer

    cached = CachedScorer(scorer, Path(options.cache))
    files.callback(cached.close)
    return cached


def _named_scorer(options: argparse.Namespace, prices: Any, process: tuple[int, int], files: ExitStack) -> Any:
    _take_own_device()
    reading = {"batch_tokens": options.batch_tokens, "max_length": options.max_length}
    if options.reward_model:
        from preftune.onpolicy.scorers.reward_model import RewardModelScorer

        return RewardModelScorer(options.reward_model, **reading)
    if options.custom_model:
        from preftune.onpolicy.scorers.custom_model import CustomModelScorer

        return CustomModelScorer(options.custom_model, trust_remote_code=options.trust_remote_code, **reading)
    if options.ranker:
        from preftune.onpolicy.scorers.ranker import TEMPLATE, RankerScorer

        return RankerScorer(options.ranker, options.ranker_template or TEMPLATE, **reading)
    if options.function or options.rule:
        from preftune.onpolicy.scorers.function import FunctionScorer, LengthScorer

        return FunctionScorer(options.function) if options.function else LengthScorer()
    return _judge(options, prices, process, files) if options.endpoint else None


def _judge(options: argparse.Namespace, prices: Any, process: tuple[int, int], files: ExitStack) -> Any:
    from preftune.endpoint import Budget, Endpoint, ReplyCache
    from preftune.endpoint.client import SILENT
    from preftune.onpolicy.journal import journal_folder
    from preftune.onpolicy.scorers.judge import JudgeScorer

    if options.judge_model is None:
        raise RecipeError("A judge needs --judge-model: its name at the endpoint.")
    rank, world = process
    budget = None if options.budget is None else Budget(options.budget / world, prices)
    if budget is not None and world > 1:
        log.info("Each of the %d processes may spend %g of the budget of %g.", world, budget.limit, options.budget)
    endpoint = Endpoint(
        options.endpoint,
        options.judge_model,
        key_from=options.key_from,
        concurrency=options.concurrency,
        tries=options.tries,
        timeout=options.timeout,
        cache=ReplyCache(journal_folder(Path(options.output)) / f"replies-{rank}-of-{world}.jsonl"),
        budget=budget,
        stop_after=SILENT,
    )
    files.callback(endpoint.close)
    return JudgeScorer(endpoint, options.judge, max_tokens=options.judge_tokens)


def _take_own_device() -> None:
    """Processes of one machine have a GPU each."""
    if os.environ.get("LOCAL_RANK"):
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _prices(options: argparse.Namespace) -> Any:
    given = (options.price_in, options.price_out)
    if None in given and (options.budget is not None or given != (None, None)):
        raise RecipeError("A budget or a cost needs both --price-in and --price-out, of a million tokens.")
    if None in given:
        return None
    from preftune.endpoint import Prices

    return Prices(*given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune annotate",
        description="Score every answer of every row.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="rows with a list of responses, with chosen and rejected, or with a response")
    add("--output", required=True, type=plain_file, metavar="F.jsonl", help="the rows with their scores")
    add("--keep-scores", action="store_true", help="rows that have all their scores keep them")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--reward-model", metavar="M", help="a reward model, or a sequence classifier with one label")
    one.add_argument("--custom-model", metavar="M", help="a model whose own code returns a 'score'")
    one.add_argument("--ranker", metavar="M", help="a classifier that reads two answers: how much better is the first")
    one.add_argument("--endpoint", nargs="+", metavar="URL", help="a judge: addresses up to /v1 that serve one model")
    one.add_argument("--function", metavar="MODULE:NAME", help="function(prompts, responses) -> numbers")
    one.add_argument("--rule", choices=("length",), help="characters of the answer")
    add("--trust-remote-code", action="store_true", help="consent to run the code of --custom-model")
    add("--ranker-template", metavar="TEXT", help="with {prompt}, {a} and {b}: the text that the ranker reads")
    add(
        "--judge", choices=("rating", "pairwise"), default="rating", help="1 to 10, or two by two, both orders (rating)"
    )
    add("--judge-model", metavar="NAME", help="the judge's name at the endpoint")
    add("--judge-tokens", type=at_least(1), default=1024, metavar="N", help="of a judgement at most (1024)")
    add("--budget", type=float, metavar="X", help="what the judge may cost in this call; several processes share it")
    add("--price-in", type=float, metavar="X", help="of a million tokens read, in any currency")
    add("--price-out", type=float, metavar="X", help="of a million tokens written")
    add("--key-from", default="OPENAI_API_KEY", metavar="NAME", help="environment variable with the key")
    add("--concurrency", type=at_least(1), default=16, metavar="N", help="requests under way at once (16)")
    add("--tries", type=at_least(1), default=8, metavar="N", help="of a request (8)")
    add("--timeout", type=float, default=600.0, metavar="S", help="seconds of a request (600)")
    add("--cache", metavar="F.jsonl", help="keep scores by content there, for other files and later jobs")
    add("--columns", nargs="+", type=column, metavar="NAME=ROLE", help="what a column is; NAME= ignores it")
    add("--split", default="train", help="of a folder: train, test, validation ... (train)")
    add("--chunk", type=at_least(1), default=64, metavar="N", help="rows that are scored and written together (64)")
    add("--batch-tokens", type=at_least(1), default=16384, metavar="N", help="of a forward pass (16384)")
    add("--max-length", type=at_least(1), metavar="N", help="cut longer texts to N tokens (what the model reads)")
    add("--json", action="store_true", help="print the summary as JSON")
    return parser
