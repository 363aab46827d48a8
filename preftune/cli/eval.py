"""`preftune eval BENCHMARK STEP`: AlpacaEval 2, Arena-Hard and MT-Bench, each step on files of the official form."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from preftune.cli.eval_generate import (
    add_alpaca_generate,
    add_arena_generate,
    add_generation,
    add_mt_generate,
    add_preset,
    run_alpaca_generate,
    run_arena_generate,
    run_mt_generate,
)
from preftune.cli.eval_harness import add_harness
from preftune.cli.eval_judges import add_endpoint, add_reward_judge, check_given, check_one_judge, open_judge, positive
from preftune.cli.eval_mt_bench import add_mt_judge, check_mt_judge, run_mt_judge
from preftune.cli.eval_preferences import add_preferences
from preftune.cli.eval_regress import add_regress

log = logging.getLogger(__name__)

_EPILOG = """examples:
  preftune eval alpaca-eval generate runs/simpo --questions baseline.json --preset gemma2-it --output model_outputs.json
  preftune eval alpaca-eval run runs/simpo --preset greedy --baseline baseline.json --folder out \\
      --reward-model runs/reward --minimal
  preftune eval alpaca-eval score annotations.json --difficulties instruction_difficulty.csv --gamed df_gamed.csv
  preftune eval alpaca-eval judge model_outputs.json --baseline gpt4_1106_preview.json --output annotations.json \\
      --endpoint https://api.openai.com/v1 --judge gpt-4-1106-preview --template alpaca_eval_clf.txt --prices 10 30
  preftune eval alpaca-eval judge model_outputs.json --baseline baseline.json --output annotations.json \\
      --reward-model runs/reward
  preftune eval mt-bench generate runs/simpo --questions question.jsonl --output answers.jsonl
  preftune eval arena-hard score judgments.jsonl --style-control both --answers answers.jsonl \\
      --baseline gpt-4-0314.jsonl
  preftune eval mt-bench judge answers.jsonl --questions question.jsonl --references reference.jsonl \\
      --prompts judge_prompts.jsonl --output judgments.jsonl --endpoint http://localhost:8000/v1 --judge my-judge
  preftune eval mt-bench judge answers.jsonl --questions question.jsonl --against baseline.jsonl \\
      --output games.jsonl --reward-model runs/reward
  preftune eval mt-bench score judgments.jsonl --questions question.jsonl
  preftune eval preferences runs/reward pairs.jsonl --subset category
  preftune eval preferences runs/simpo pairs.jsonl --objective simpo --set beta=2.0
  preftune eval regress my-sft runs/simpo heldout.jsonl
  preftune eval harness runs/simpo --tasks gsm8k,mmlu

Files are the official ones, plain or gzipped; none is part of preftune (docs/evaluation.md says where they are).
`judge` keeps every reply beside its output, so that it goes on where it was stopped.
"""


_RUN = "all three, in one folder; a step whose file is there, made of the same, is not done again"


def main(arguments: Sequence[str]) -> int:
    """Run one step of one benchmark.

    Raises:
        PreftuneError: a file, an endpoint or a model is wrong.
    """
    options = _parser().parse_args(arguments)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune eval",
        description="AlpacaEval 2, Arena-Hard and MT-Bench: generate, judge and score.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    alpaca = _steps(benchmarks, "alpaca-eval", "win rates over a baseline, plain and length-controlled")
    add_alpaca_generate(_step(alpaca, "generate", "questions to a model's outputs"))
    _alpaca_judge(_step(alpaca, "judge", "outputs of a model and a baseline to annotations"))
    _alpaca_score(_step(alpaca, "score", "annotations to win rates"))
    _alpaca_run(_step(alpaca, "run", _RUN))
    arena = _steps(benchmarks, "arena-hard", "two games a question against a baseline")
    add_arena_generate(_step(arena, "generate", "questions to answers, greedy"))
    _arena_judge(_step(arena, "judge", "answers of a model and a baseline to judgments"))
    _arena_score(_step(arena, "score", "judgments to scores with intervals"))
    _arena_run(_step(arena, "run", _RUN))
    mt = _steps(benchmarks, "mt-bench", "ratings of two-turn questions")
    add_mt_generate(_step(mt, "generate", "questions to answers of both turns, by the category's temperature"))
    _mt_judge(_step(mt, "judge", "answers to judgments: ratings, or games against a baseline"))
    _mt_score(_step(mt, "score", "judgments to means, by turn and category"))
    _mt_run(_step(mt, "run", _RUN))
    add_preferences(benchmarks)
    add_regress(benchmarks)
    add_harness(benchmarks)
    return parser


def _steps(benchmarks: Any, name: str, line: str) -> Any:
    parser = benchmarks.add_parser(name, help=line, description=line, allow_abbrev=False)
    return parser.add_subparsers(dest="step", required=True, metavar="STEP")


def _step(steps: Any, name: str, line: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = steps.add_parser(name, help=line, description=line, allow_abbrev=False)
    return parser


# --- AlpacaEval 2


def _alpaca_run(parser: argparse.ArgumentParser) -> None:
    add_generation(parser)
    add_preset(parser)
    parser.add_argument(
        "--baseline", required=True, metavar="F.json", help="its model_outputs.json, with the questions"
    )
    parser.add_argument("--folder", required=True, metavar="DIR", help="for all files")
    _add_alpaca_judge(parser)
    _add_length_control(parser)
    parser.set_defaults(run=_run_alpaca)


def _run_alpaca(options: argparse.Namespace) -> int:
    options.questions = options.baseline
    options.outputs, options.annotations = _in_folder(options, "model_outputs.json", "annotations.json")
    check_one_judge(options)
    _once(options, options.outputs, run_alpaca_generate, _GENERATION, ("questions",))
    _once(options, options.annotations, _run_alpaca_judge, ("judge", "reward_model", "scale"),
          ("outputs", "baseline", "template"))  # fmt: skip
    return _run_alpaca_score(options)


def _in_folder(options: argparse.Namespace, *names: str) -> list[str]:
    """The files of a run's steps; what its last step prints is kept beside them as scores.json."""
    from pathlib import Path

    options.scores = Path(options.folder) / "scores.json"
    return [str(Path(options.folder) / name) for name in names]


_GENERATION = ("model", "preset", "temperature", "max_new_tokens", "seed", "generator")


def _once(options: argparse.Namespace, path: str, step: Any, names: Sequence[str], files: Sequence[str]) -> None:
    """A step writes its file when it is done, so one that is there is not done again. names, files: what it is of."""
    from pathlib import Path

    from preftune.evaluation.steps import mark_of_file, mark_of_model, once

    options.output = path
    made_of = {name: getattr(options, name, None) for name in names}
    made_of |= {name: mark_of_model(made_of[name]) for name in ("model", "reward_model") if name in made_of}
    for name in files:
        given = getattr(options, name)
        made_of[name] = list(map(mark_of_file, given)) if isinstance(given, list) else mark_of_file(given)
    once(Path(path), made_of, lambda: step(options))


def _alpaca_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outputs", metavar="MODEL_OUTPUTS.json")
    parser.add_argument("--baseline", required=True, metavar="F.json", help="the model_outputs.json of the baseline")
    parser.add_argument("--output", required=True, metavar="F.json", help="where the annotations go")
    _add_alpaca_judge(parser)
    parser.set_defaults(run=_run_alpaca_judge)


def _add_alpaca_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--template", metavar="F.txt", help="the judge's prompt (that of an installed alpaca-eval)")
    add_endpoint(parser)
    add_reward_judge(parser)


def _run_alpaca_judge(options: argparse.Namespace) -> int:
    from preftune.evaluation.alpaca_judge import OUTPUT_FIELDS, annotate, annotate_by_reward, load_template, pair_up
    from preftune.evaluation.files import check_output, read_rows, write_rows

    check_one_judge(options)
    pairs = pair_up(
        read_rows(options.outputs, OUTPUT_FIELDS), read_rows(options.baseline, OUTPUT_FIELDS), options.outputs
    )
    check_output(options.output, [options.outputs, options.baseline, *filter(None, [options.template])])
    if options.reward_model is not None:
        rows = annotate_by_reward(options.reward_model, pairs, options.scale)
    else:
        template = load_template(options.template)
        with closing(open_judge(options)) as endpoint:
            rows = annotate(endpoint, pairs, template, options.prices)
    write_rows(options.output, rows)
    print(f"{options.output}: {len(rows)} annotations")
    return 0


def _alpaca_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", metavar="ANNOTATIONS.json")
    parser.add_argument("--outputs", metavar="F.json", help="the model_outputs.json, for the average length")
    _add_length_control(parser)
    parser.set_defaults(run=_run_alpaca_score)


def _add_length_control(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--difficulties", metavar="F.csv", help="instruction_difficulty.csv, for the length control")
    parser.add_argument("--gamed", metavar="F.csv", help="df_gamed.csv, for the length control")
    parser.add_argument("--minimal", action="store_true", help="length control without them: other questions or judges")
    parser.add_argument("--strength", type=positive, metavar="C", help="of the fit (chosen by five folds)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run_alpaca_score(options: argparse.Namespace) -> int:
    from preftune.errors import RecipeError
    from preftune.evaluation.tables import alpaca_eval_table

    if options.minimal and (options.difficulties or options.gamed):
        raise RecipeError("--minimal takes neither --difficulties nor --gamed. Leave it, or leave them.")
    table = alpaca_eval_table(
        options.annotations,
        outputs=options.outputs,
        difficulties=options.difficulties,
        gamed=options.gamed,
        minimal=options.minimal,
        C=options.strength,
    )
    _print([table], options)
    if table.get("lc_doubtful"):
        log.warning(
            "The length control moved the win rate by more than 10 points and a quarter; the fit may have failed."
        )
    return 0


# --- Arena-Hard


def _arena_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", metavar="ANSWERS.jsonl")
    parser.add_argument("--output", required=True, metavar="F.jsonl", help="where the judgments go")
    parser.add_argument("--questions", metavar="F.jsonl", help="question.jsonl, for the categories")
    _add_arena_judge(parser)
    parser.set_defaults(run=_run_arena_judge)


def _add_arena_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--baseline",
        nargs="+",
        required=True,
        metavar="F.jsonl",
        help="the baseline's answers, or those of each category",
    )
    parser.add_argument("--prompts", metavar="F.yaml", help="arena-hard-auto's file, for a judge that is asked")
    parser.add_argument(
        "--categories", metavar="F.yaml", help="baseline and system prompt of each category (v2.0 needs them)"
    )
    parser.add_argument("--version", choices=("v0.1", "v2.0"), default="v0.1", help="whose rules (v0.1, the paper's)")
    add_endpoint(parser)
    add_reward_judge(parser)


def _run_arena_judge(options: argparse.Namespace) -> int:
    from preftune.evaluation.arena_categories import QUESTION_FIELDS, load_categories, sort_questions
    from preftune.evaluation.arena_judge import build_matches, judge, load_judge_prompt
    from preftune.evaluation.files import check_output, read_rows, write_rows
    from preftune.evaluation.reward_judge import judge_arena_by_reward

    _check_arena_judge(options)
    given = [options.answers, *options.baseline, options.questions, options.categories, options.prompts]
    check_output(options.output, [path for path in given if path])
    answers, *baseline = (
        read_rows(path, ("uid", "model", "messages")) for path in (options.answers, *options.baseline)
    )
    categories = None
    if options.categories is not None:
        categories = sort_questions(read_rows(options.questions, QUESTION_FIELDS), load_categories(options.categories))
    matches = build_matches(answers, [row for rows in baseline for row in rows], categories)
    if options.reward_model is not None:
        rows = judge_arena_by_reward(options.reward_model, matches, options.version, options.scale)
    else:
        prompt = load_judge_prompt(options.prompts)
        with closing(open_judge(options)) as endpoint:
            rows = judge(endpoint, matches, prompt, options.version, options.prices)
    write_rows(options.output, rows)
    print(f"{options.output}: {len(rows)} judgments")
    return 0


def _check_arena_judge(options: argparse.Namespace) -> None:
    from preftune.errors import RecipeError

    check_one_judge(options)
    check_given(options, "prompts")
    if options.version == "v2.0" and options.categories is None:
        raise RecipeError("--version v2.0 needs --categories: each has a baseline and a system prompt of its own.")
    if options.categories is not None and options.questions is None:
        raise RecipeError("--categories needs --questions, which say of which category each is.")


def _arena_run(parser: argparse.ArgumentParser) -> None:
    add_generation(parser)
    parser.add_argument("--questions", required=True, metavar="F.jsonl", help="question.jsonl")
    parser.add_argument("--folder", required=True, metavar="DIR", help="for all files")
    _add_arena_judge(parser)
    parser.add_argument("--style-control", choices=("both", "length", "markdown"), help="take style out of the score")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_arena)


def _run_arena(options: argparse.Namespace) -> int:
    options.answers, judgments = _in_folder(options, "answers.jsonl", "judgments.jsonl")
    options.judgments = [judgments]
    _check_arena_judge(options)
    _once(options, options.answers, run_arena_generate, _GENERATION, ("questions",))
    _once(options, judgments, _run_arena_judge, ("judge", "version", "reward_model", "scale"),
          ("answers", "baseline", "prompts", "questions", "categories"))  # fmt: skip
    return _run_arena_score(options)


def _arena_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("judgments", nargs="+", metavar="JUDGMENTS.jsonl", help="of one or several models")
    parser.add_argument("--version", choices=("v0.1", "v2.0"), default="v0.1", help="whose rules (v0.1, the paper's)")
    parser.add_argument("--style-control", choices=("both", "length", "markdown"), help="take style out of the score")
    parser.add_argument("--answers", nargs="+", default=(), metavar="F.jsonl", help="of the models, for style control")
    parser.add_argument(
        "--baseline", nargs="+", default=(), metavar="F.jsonl", help="the baseline's answers, for style control"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_arena_score)


def _run_arena_score(options: argparse.Namespace) -> int:
    from preftune.evaluation.tables import arena_hard_table

    table = arena_hard_table(
        options.judgments,
        options.version,
        control=options.style_control,
        answers=[options.answers] if isinstance(options.answers, str) else options.answers,
        baseline=options.baseline,
    )
    _print(table, options)
    return 0


# --- MT-Bench


def _mt_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", metavar="ANSWERS.jsonl")
    parser.add_argument("--output", required=True, metavar="F.jsonl", help="where the judgments go")
    add_mt_judge(parser)
    parser.set_defaults(run=run_mt_judge)


def _mt_run(parser: argparse.ArgumentParser) -> None:
    add_generation(parser)
    parser.add_argument("--folder", required=True, metavar="DIR", help="for all files")
    add_mt_judge(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_mt)


def _run_mt(options: argparse.Namespace) -> int:
    options.answers, judgments = _in_folder(options, "answers.jsonl", "judgments.jsonl")
    options.judgments, options.pairs = [judgments], options.against is not None
    check_mt_judge(options)
    _once(options, options.answers, run_mt_generate, _GENERATION, ("questions",))
    _once(options, judgments, run_mt_judge, ("judge", "reward_model", "scale"),
          ("answers", "questions", "references", "prompts", "against"))  # fmt: skip
    return _run_mt_score(options)


def _mt_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("judgments", nargs="+", metavar="JUDGMENTS.jsonl", help="of one or several models")
    parser.add_argument("--questions", metavar="F.jsonl", help="question.jsonl, for the categories")
    parser.add_argument("--pairs", action="store_true", help="games of two models, in both orders")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_mt_score)


def _run_mt_score(options: argparse.Namespace) -> int:
    from preftune.evaluation.tables import mt_bench_pairs_table, mt_bench_table

    if options.pairs:
        _print(mt_bench_pairs_table(options.judgments), options)
    else:
        _print(mt_bench_table(options.judgments, options.questions), options)
    return 0


# --- the page


def _print(tables: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    from preftune.evaluation.files import write_text

    written = json.dumps(tables if len(tables) > 1 else tables[0], indent=2, ensure_ascii=False)
    if hasattr(options, "scores"):
        write_text(options.scores, written + "\n")
    if options.json:
        print(written)
        return
    from rich.console import Console
    from rich.table import Table

    for row in tables:
        page = Table(show_header=False)
        for name, value in row.items():
            for key, item in value.items() if isinstance(value, dict) else ((None, value),):
                page.add_row(
                    name if key is None else f"{name} {key}", f"{item:.2f}" if isinstance(item, float) else str(item)
                )
        Console().print(page)
