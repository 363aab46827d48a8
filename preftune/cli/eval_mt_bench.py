"""`preftune eval mt-bench judge | score`: ratings, and games against a baseline."""

from __future__ import annotations

import argparse
from contextlib import closing

from preftune.cli.eval_judges import add_endpoint, add_reward_judge, check_given, check_one_judge, open_judge

FILES = (
    ("questions", "question.jsonl"),
    ("references", "reference answers to math, reasoning and coding, for a judge that is asked"),
    ("prompts", "judge_prompts.jsonl, for a judge that is asked"),
)


def add_mt_judge(parser: argparse.ArgumentParser) -> None:
    """Of `judge`, and of `run` too."""
    for name, line in FILES:
        parser.add_argument(f"--{name}", required=name == "questions", metavar="F.jsonl", help=line)
    parser.add_argument("--against", metavar="F.jsonl", help="a baseline's answers: games in both orders, no ratings")
    add_endpoint(parser)
    add_reward_judge(parser)


def check_mt_judge(options: argparse.Namespace) -> None:
    """Raises RecipeError: the judge is not said whole."""
    from preftune.errors import RecipeError

    check_one_judge(options)
    check_given(options, "references", "prompts")
    if options.reward_model is not None and options.against is None:
        raise RecipeError("A reward model gives no ratings of 1 to 10. Give a baseline's answers with --against.")


def run_mt_judge(options: argparse.Namespace) -> int:
    """Raises PreftuneError: a file, the endpoint or the reward model is wrong."""
    from preftune.evaluation import mt_judge
    from preftune.evaluation.files import check_output, read_rows, write_rows

    check_mt_judge(options)
    given = [options.answers, *(getattr(options, name) for name in ("against", "questions", "references", "prompts"))]
    check_output(options.output, [path for path in given if path])
    questions = read_rows(options.questions, mt_judge.QUESTION_FIELDS)
    answers = read_rows(options.answers, mt_judge.ANSWER_FIELDS)
    if options.against is not None:
        rows = _play(options, questions, answers)
    else:
        references = read_rows(options.references, ("question_id", "choices"))
        prompts = read_rows(options.prompts, mt_judge.PROMPT_FIELDS)
        judgings = mt_judge.build_judgings(questions, answers, references, prompts)
        with closing(open_judge(options)) as endpoint:
            rows = mt_judge.rate(endpoint, judgings, options.prices)
    write_rows(options.output, rows)
    print(f"{options.output}: {len(rows)} judgments")
    return 0


def _play(options: argparse.Namespace, questions: list, answers: list) -> list:
    from preftune.evaluation.files import read_rows
    from preftune.evaluation.mt_judge import ANSWER_FIELDS, PROMPT_FIELDS
    from preftune.evaluation.mt_pairs import build_matches, play
    from preftune.evaluation.reward_judge import play_by_reward

    matches = build_matches(questions, answers, read_rows(options.against, ANSWER_FIELDS))
    if options.reward_model is not None:
        return play_by_reward(options.reward_model, matches, options.scale)
    references = read_rows(options.references, ("question_id", "choices"))
    prompts = read_rows(options.prompts, PROMPT_FIELDS)
    with closing(open_judge(options)) as endpoint:
        return play(endpoint, matches, references, prompts, options.prices)
