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
  preftune eval arena-hard score judgments.jsonl --version v0.1
  preftune eval mt-bench judge answers.jsonl --questions question.jsonl --references reference.jsonl \\
      --prompts judge_prompts.jsonl --output judgments.jsonl --endpoint http://localhost:8000/v1 --judge my-judge
  preftune eval mt-bench score judgments.jsonl --questions question.jsonl
  preftune eval preferences runs/reward pairs.jsonl --subset category
  preftune eval preferences runs/simpo pairs.jsonl --objective simpo --set beta=2.0
  preftune eval regress my-sft runs/simpo heldout.jsonl

Files are the official ones, plain or gzipped; none is part of preftune (docs/evaluation.md says where they are).
`judge` keeps every reply beside its output, so that it goes on where it was stopped.
"""


_RUN = "all three, in one folder; a step whose file is there is not done again"


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
    _mt_judge(_step(mt, "judge", "answers to judgments by rating"))
    _mt_score(_step(mt, "score", "judgments to means, by turn and category"))
    _mt_run(_step(mt, "run", _RUN))
    add_preferences(benchmarks)
    add_regress(benchmarks)
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
    _one_judge(options)
    _unless_there(options, options.outputs, run_alpaca_generate)
    _unless_there(options, options.annotations, _run_alpaca_judge)
    return _run_alpaca_score(options)


def _in_folder(options: argparse.Namespace, *names: str) -> list[str]:
    from pathlib import Path

    return [str(Path(options.folder) / name) for name in names]


def _unless_there(options: argparse.Namespace, path: str, step: Any) -> None:
    """A step writes its file when it is done, so one that is there is not done again."""
    from pathlib import Path

    options.output = path
    if Path(path).exists():
        log.info("%s is there already.", path)
    else:
        step(options)


def _one_judge(options: argparse.Namespace) -> None:
    from preftune.errors import RecipeError

    if (options.reward_model is None) == (options.endpoint is None):
        raise RecipeError("Give one judge: --endpoint with --judge, or --reward-model.")


def _alpaca_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outputs", metavar="MODEL_OUTPUTS.json")
    parser.add_argument("--baseline", required=True, metavar="F.json", help="the model_outputs.json of the baseline")
    parser.add_argument("--output", required=True, metavar="F.json", help="where the annotations go")
    _add_alpaca_judge(parser)
    parser.set_defaults(run=_run_alpaca_judge)


def _add_alpaca_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--template", metavar="F.txt", help="the judge's prompt (that of an installed alpaca-eval)")
    _add_endpoint(parser, required=False)
    parser.add_argument(
        "--reward-model", metavar="MODEL", help="judge by a local reward model, under a name of its own"
    )
    parser.add_argument(
        "--scale", type=_positive, default=1.0, metavar="X", help="of the rewards: P = sigmoid(difference / X) (1)"
    )


def _run_alpaca_judge(options: argparse.Namespace) -> int:
    from preftune.evaluation.alpaca_judge import OUTPUT_FIELDS, annotate, annotate_by_reward, load_template, pair_up
    from preftune.evaluation.files import read_rows, write_rows

    _one_judge(options)
    pairs = pair_up(
        read_rows(options.outputs, OUTPUT_FIELDS), read_rows(options.baseline, OUTPUT_FIELDS), options.outputs
    )
    if options.reward_model is not None:
        rows = annotate_by_reward(options.reward_model, pairs, options.scale)
    else:
        template = load_template(options.template)
        with closing(_open_endpoint(options)) as endpoint:
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
    parser.add_argument("--strength", type=_positive, metavar="C", help="of the fit (chosen by five folds)")
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
    _print([table], options.json)
    if table.get("lc_doubtful"):
        log.warning(
            "The length control moved the win rate by more than 10 points and a quarter; the fit may have failed."
        )
    return 0


# --- Arena-Hard


def _arena_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", metavar="ANSWERS.jsonl")
    parser.add_argument("--output", required=True, metavar="F.jsonl", help="where the judgments go")
    _add_arena_judge(parser)
    parser.set_defaults(run=_run_arena_judge)


def _add_arena_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baseline", required=True, metavar="F.jsonl", help="the baseline's answers")
    parser.add_argument("--prompts", required=True, metavar="F.yaml", help="the judge's file of arena-hard-auto")
    parser.add_argument("--version", choices=("v0.1", "v2.0"), default="v0.1", help="whose rules (v0.1, the paper's)")
    _add_endpoint(parser, required=True)


def _run_arena_judge(options: argparse.Namespace) -> int:
    from preftune.evaluation.arena_judge import judge, load_judge_prompt
    from preftune.evaluation.files import read_rows, write_rows

    answers, baseline = (read_rows(path, ("uid", "model", "messages")) for path in (options.answers, options.baseline))
    prompt = load_judge_prompt(options.prompts)
    with closing(_open_endpoint(options)) as endpoint:
        rows = judge(endpoint, answers, baseline, prompt, options.version, options.prices)
    write_rows(options.output, rows)
    print(f"{options.output}: {len(rows)} judgments")
    return 0


def _arena_run(parser: argparse.ArgumentParser) -> None:
    add_generation(parser)
    parser.add_argument("--questions", required=True, metavar="F.jsonl", help="question.jsonl")
    parser.add_argument("--folder", required=True, metavar="DIR", help="for all files")
    _add_arena_judge(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_arena)


def _run_arena(options: argparse.Namespace) -> int:
    options.answers, judgments = _in_folder(options, "answers.jsonl", "judgments.jsonl")
    options.judgments = [judgments]
    _unless_there(options, options.answers, run_arena_generate)
    _unless_there(options, judgments, _run_arena_judge)
    return _run_arena_score(options)


def _arena_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("judgments", nargs="+", metavar="JUDGMENTS.jsonl", help="of one or several models")
    parser.add_argument("--version", choices=("v0.1", "v2.0"), default="v0.1", help="whose rules (v0.1, the paper's)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_arena_score)


def _run_arena_score(options: argparse.Namespace) -> int:
    from preftune.evaluation.tables import arena_hard_table

    _print(arena_hard_table(options.judgments, options.version), options.json)
    return 0


# --- MT-Bench


def _mt_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", metavar="ANSWERS.jsonl")
    parser.add_argument("--output", required=True, metavar="F.jsonl", help="where the judgments go")
    _add_mt_judge(parser)
    parser.set_defaults(run=_run_mt_judge)


def _add_mt_judge(parser: argparse.ArgumentParser) -> None:
    for name, line in (
        ("questions", "question.jsonl"),
        ("references", "reference answers to math, reasoning and coding"),
        ("prompts", "judge_prompts.jsonl"),
    ):
        parser.add_argument(f"--{name}", required=True, metavar="F.jsonl", help=line)
    _add_endpoint(parser, required=True)


def _mt_run(parser: argparse.ArgumentParser) -> None:
    add_generation(parser)
    parser.add_argument("--folder", required=True, metavar="DIR", help="for all files")
    _add_mt_judge(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_mt, pairs=False)


def _run_mt(options: argparse.Namespace) -> int:
    options.answers, judgments = _in_folder(options, "answers.jsonl", "judgments.jsonl")
    options.judgments = [judgments]
    _unless_there(options, options.answers, run_mt_generate)
    _unless_there(options, judgments, _run_mt_judge)
    return _run_mt_score(options)


def _run_mt_judge(options: argparse.Namespace) -> int:
    from preftune.evaluation import mt_judge
    from preftune.evaluation.files import read_rows, write_rows

    judgings = mt_judge.build_judgings(
        read_rows(options.questions, mt_judge.QUESTION_FIELDS),
        read_rows(options.answers, mt_judge.ANSWER_FIELDS),
        read_rows(options.references, ("question_id", "choices")),
        read_rows(options.prompts, mt_judge.PROMPT_FIELDS),
    )
    with closing(_open_endpoint(options)) as endpoint:
        rows = mt_judge.rate(endpoint, judgings, options.prices)
    write_rows(options.output, rows)
    print(f"{options.output}: {len(rows)} judgments")
    return 0


def _mt_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("judgments", nargs="+", metavar="JUDGMENTS.jsonl", help="of one or several models")
    parser.add_argument("--questions", metavar="F.jsonl", help="question.jsonl, for the categories")
    parser.add_argument("--pairs", action="store_true", help="games of two models, in both orders")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_mt_score)


def _run_mt_score(options: argparse.Namespace) -> int:
    from preftune.evaluation.tables import mt_bench_pairs_table, mt_bench_table

    if options.pairs:
        _print(mt_bench_pairs_table(options.judgments), options.json)
    else:
        _print(mt_bench_table(options.judgments, options.questions), options.json)
    return 0


# --- the endpoint


def _add_endpoint(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--endpoint", nargs="+", required=required, metavar="URL", help="addresses up to /v1")
    parser.add_argument("--judge", required=required, metavar="NAME", help="the judge's name there")
    parser.add_argument("--key-from", default="OPENAI_API_KEY", metavar="VAR", help="environment variable of the key")
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests under way at once (16)")
    parser.add_argument("--tries", type=int, default=8, metavar="N", help="of a request (8)")
    parser.add_argument(
        "--prices", nargs=2, type=_positive, metavar=("READ", "WRITTEN"), help="of a million tokens, for the estimate"
    )
    parser.add_argument("--budget", type=_positive, metavar="X", help="what the judging may cost, at these prices")


def _open_endpoint(options: argparse.Namespace) -> Any:
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


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


# --- the page


def _print(tables: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(tables if len(tables) > 1 else tables[0], indent=2, ensure_ascii=False))
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
