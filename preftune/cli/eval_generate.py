"""`preftune eval BENCHMARK generate`: questions to the answers of a model."""

from __future__ import annotations

import argparse
from typing import Any


def add_generation(parser: argparse.ArgumentParser) -> None:
    """What every generation takes."""
    parser.add_argument("model", metavar="MODEL", help="a folder, or a hub name")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of an answer (as published)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (0)")
    parser.add_argument("--slots", type=int, default=32, metavar="N", help="answers written at the same time (32)")
    parser.add_argument("--generator", metavar="NAME", help="the model's name in the files (its folder's)")


def add_preset(parser: argparse.ArgumentParser) -> None:
    """AlpacaEval's published sampling."""
    parser.add_argument(
        "--preset", required=True, metavar="NAME",
        help="published sampling: llama3-instruct, mistral-base, mistral-instruct, gemma2-it; or greedy",
    )  # fmt: skip
    parser.add_argument("--temperature", type=float, metavar="T", help="in place of the preset's")


def add_alpaca_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--questions", required=True, metavar="F.json", help="rows with 'instruction' (the baseline's)")
    parser.add_argument("--output", required=True, metavar="F.json", help="where the outputs go, and a configs.yaml")
    add_generation(parser)
    add_preset(parser)
    parser.set_defaults(run=run_alpaca_generate)


def run_alpaca_generate(options: argparse.Namespace) -> int:
    """Raises PreftuneError: the preset, the model or the questions are wrong."""
    from preftune.errors import RecipeError
    from preftune.evaluation.answers import changed_preset
    from preftune.evaluation.files import check_output, read_rows
    from preftune.evaluation.generate import PRESETS, generate_outputs

    if options.preset not in PRESETS:
        raise RecipeError(f"--preset: '{options.preset}' is none of {', '.join(PRESETS)}.")
    questions = read_rows(options.questions, ("instruction",))
    check_output(options.output, [options.questions])
    preset = changed_preset(PRESETS[options.preset], options.max_new_tokens, options.temperature)
    rows = generate_outputs(options.model, _candidate(options), questions, options.output, preset)
    print(f"{options.output}: {len(rows)} outputs")
    return 0


def add_mt_generate(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    parser.set_defaults(run=run_mt_generate)


def run_mt_generate(options: argparse.Namespace) -> int:
    """Raises PreftuneError: the model or the questions are wrong."""
    from preftune.evaluation.bench_answers import MT_MAX_TOKENS, answer_mt_bench
    from preftune.evaluation.files import check_output, read_rows

    questions = read_rows(options.questions, ("question_id", "category", "turns"))
    check_output(options.output, [options.questions])
    limit = MT_MAX_TOKENS if options.max_new_tokens is None else options.max_new_tokens
    rows = answer_mt_bench(_candidate(options), questions, options.output, limit)
    print(f"{options.output}: {len(rows)} answers")
    return 0


def add_arena_generate(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    parser.set_defaults(run=run_arena_generate)


def run_arena_generate(options: argparse.Namespace) -> int:
    """Raises PreftuneError: the model or the questions are wrong."""
    from preftune.evaluation.answers import changed_preset
    from preftune.evaluation.bench_answers import ARENA_PRESET, answer_arena_hard
    from preftune.evaluation.files import check_output, read_rows

    questions = read_rows(options.questions, ("uid", "prompt"))
    check_output(options.output, [options.questions])
    preset = changed_preset(ARENA_PRESET, options.max_new_tokens)
    rows = answer_arena_hard(_candidate(options), questions, options.output, preset)
    print(f"{options.output}: {len(rows)} answers")
    return 0


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--questions", required=True, metavar="F.jsonl", help="question.jsonl")
    parser.add_argument("--output", required=True, metavar="F.jsonl", help="where the answers go")
    add_generation(parser)


def _candidate(options: argparse.Namespace) -> Any:
    from preftune.evaluation.answers import Candidate

    return Candidate(options.model, options.generator, seed=options.seed, slots=options.slots)
