"""Arena-Hard's judging: answers of a model and a baseline in, two games a question out.

The judge's prompt is not part of preftune: it is read from a file as arena-hard-auto has them, YAML with
`prompt_template` (a text, or a list of one), and in its older form `system_prompt`; in the newer one that is said by
category (arena_categories.py). The template holds question and answers as {question_1}, {answer_1}, {answer_2} or
{QUESTION}, {ANSWER_A}, {ANSWER_B}.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preftune.endpoint import ChatRequest, Endpoint
from preftune.errors import DataError
from preftune.evaluation.arena_categories import Category, read_config
from preftune.evaluation.arena_hard import Version, read_verdict, read_verdict_v2
from preftune.evaluation.files import Rows
from preftune.evaluation.judge import ask_all

log = logging.getLogger(__name__)

MAX_TOKENS = {"v0.1": 4096, "v2.0": 16000}
GO_ON = "continue your judgment and finish by outputting a final verdict label"
PLACES = (("{question_1}", "{answer_1}", "{answer_2}"), ("{QUESTION}", "{ANSWER_A}", "{ANSWER_B}"))


@dataclass(frozen=True)
class JudgePrompt:
    """places: what stands in the template for the question, the answer of assistant A and that of B.

    system: None where it is said by category.
    """

    system: str | None
    template: str
    places: tuple[str, str, str]

    def render(self, question: str, first: str, second: str) -> str:
        """In one pass, so that an answer that spells a place is not filled in."""
        texts = dict(zip(self.places, (question, first, second), strict=True))
        return re.sub("|".join(map(re.escape, texts)), lambda place: texts[place[0]], self.template)


def load_judge_prompt(path: str | Path) -> JudgePrompt:
    """Read a judge's configuration.

    Raises:
        DataError: it is not such.
    """
    config = read_config(path)
    template, system = config.get("prompt_template"), config.get("system_prompt")
    template = template[0] if isinstance(template, list) and template else template
    for places in PLACES:
        if isinstance(template, str) and all(place in template for place in places) and isinstance(system, str | None):
            return JudgePrompt(system, template, places)
    raise DataError(f"{path}: expected a 'prompt_template' with {', '.join(PLACES[0])} or {', '.join(PLACES[1])}, and "
                    "'system_prompt', if any, a text. Give arena-hard-auto's judge file.")  # fmt: skip


@dataclass(frozen=True)
class Match:
    """One question. answers, models: the model's, and its baseline's."""

    uid: Any
    question: str
    answers: tuple[str, str]
    models: tuple[str, str]
    category: Category | None = None

    def row(self, judge: str, games: list[dict[str, Any]], version: Version, **more: Any) -> dict[str, Any]:
        """As arena-hard-auto writes it, and more."""
        name = {"question_id" if version == "v0.1" else "uid": self.uid}
        kind = {} if self.category is None else {"category": self.category.name}
        return {**name, **kind, "model": self.models[0], "judge": judge, "baseline": self.models[1], "games": games,
                **more}  # fmt: skip


def build_matches(answers: Rows, baseline: Rows, categories: Mapping[Any, Category] | None = None) -> list[Match]:
    """All questions of the baseline, or with categories all that have one, each against the baseline of its own.

    Args:
        baseline: answers of one model, or with categories of all their baselines.
        categories: by uid, as `sort_questions` gives them.

    Raises:
        DataError: a question has no answer, or two, or a baseline is not there.
    """
    mine = _answers_by_question(answers, "answers")
    if categories is None:
        theirs = _answers_by_question(baseline, "baseline")
        _check_answered(mine, theirs, "answers")
        return [_match(uid, mine[uid], theirs[uid]) for uid in theirs]
    _check_answered(mine, categories, "answers")
    models = list(dict.fromkeys(row["model"] for row in baseline))
    found: dict[Any, Match] = {}
    for category in dict.fromkeys(categories.values()):
        own, name = [row for row in baseline if row["model"] == category.baseline], f"baseline {category.baseline}"
        if not own:
            raise DataError(f"baseline: expected answers of {category.baseline!r}, that of {category.name}, found "
                            f"those of {', '.join(map(str, models))}. Give --baseline their file too.")  # fmt: skip
        theirs = _answers_by_question(own, name)
        uids = [uid for uid, one in categories.items() if one == category]
        _check_answered(theirs, uids, name)
        found |= {uid: _match(uid, mine[uid], theirs[uid], category) for uid in uids}
    return [found[uid] for uid in categories]


def _match(uid: Any, own: tuple[str, str, str], other: tuple[str, str, str], category: Category | None = None) -> Match:
    return Match(uid, own[0], (own[1], other[1]), (own[2], other[2]), category)


def judge(
    endpoint: Endpoint,
    matches: Sequence[Match],
    prompt: JudgePrompt,
    version: Version = "v0.1",
    prices: Sequence[float] | None = None,
) -> Rows:
    """Judgments of all matches; a verdict that is refused or cannot be read is null, and counted.

    v0.1: a judge that gave no label is asked once to go on.

    Raises:
        DataError: there is no system prompt.
        EndpointError, BudgetSpentError: see `ask_all`.
    """
    requests = {}
    for match in matches:
        system = _system(match, prompt)
        own, base = match.answers
        for game, pair in enumerate(((base, own), (own, base)), 1):
            messages = ({"role": "system", "content": system},
                        {"role": "user", "content": prompt.render(match.question, *pair)})  # fmt: skip
            key = f"question {match.uid}, game {game}"
            requests[match.uid, game] = ChatRequest(key, messages, temperature=0, max_tokens=MAX_TOKENS[version])
    replies = ask_all(endpoint, list(requests.values()), prices)
    said = {place: replies[request.key].text for place, request in requests.items() if request.key in replies}
    if version == "v0.1":
        said = _gone_on(endpoint, requests, said, prices)
    rows = [match.row(endpoint.model, _games(match, said, requests, version), version) for match in matches]
    if nulls := sum(game["score"] is None for row in rows for game in row["games"]):
        log.warning("%d of %d verdicts are null: refused, or not to be read.", nulls, 2 * len(rows))
    return rows


def _system(match: Match, prompt: JudgePrompt) -> str:
    """The category's, else that of the judge's file."""
    kind = match.category
    system = prompt.system if kind is None or kind.system is None else kind.system
    if system is None:
        whose = "" if kind is None else f" for {kind.name}"
        raise DataError(f"question {match.uid}: the judge has no system prompt{whose}. Add 'system_prompt' to its "
                        "file, or by category to that of --categories.")  # fmt: skip
    return system


def _gone_on(
    endpoint: Endpoint,
    requests: Mapping[Any, ChatRequest],
    said: Mapping[Any, str],
    prices: Sequence[float] | None,
) -> dict[Any, str]:
    """The judgments, those without a label with what the judge says when it is asked to go on.

    A judge may refuse to, as that request is longer.
    """
    again = {
        place: replace(
            request,
            messages=(
                *request.messages,
                {"role": "assistant", "content": said[place]},
                {"role": "user", "content": GO_ON},
            ),
        )
        for place, request in requests.items()
        if place in said and read_verdict(said[place])[1]
    }
    if not again:
        return dict(said)
    replies = ask_all(endpoint, list(again.values()), prices, needs_one=False)
    more = {place: replies[request.key].text for place, request in again.items() if request.key in replies}
    return {**said, **{place: f"{said[place]}\n{text}" for place, text in more.items()}}


def _games(
    match: Match, said: Mapping[Any, str], requests: Mapping[Any, ChatRequest], version: Version
) -> list[dict[str, Any]]:
    games: list[dict[str, Any]] = []
    for game in (1, 2):
        text = said.get((match.uid, game))
        score = None if text is None else read_verdict(text)[0] if version == "v0.1" else read_verdict_v2(text)
        asked = requests[match.uid, game].messages[1]["content"]
        games.append({"score": score, "judgment": text, "user_prompt": asked} if version == "v0.1" else
                     {"score": score, "judgment": {"answer": text}, "prompt": asked})  # fmt: skip
    return games


def _check_answered(answers: Mapping[Any, Any], asked: Collection[Any], name: str) -> None:
    """Raises DataError: a question has no answer."""
    if absent := [uid for uid in asked if uid not in answers]:
        raise DataError(
            f"{name}: {len(absent)} of {len(asked)} questions have none, the first is {absent[0]}. Generate them."
        )


def _answers_by_question(rows: Rows, name: str) -> dict[str, tuple[str, str, str]]:
    """uid -> question, answer and model, of answers of one model.

    Raises:
        DataError: a row is not such, or a question is answered twice.
    """
    found: dict[str, tuple[str, str, str]] = {}
    for number, row in enumerate(rows, 1):
        try:
            question, answer = row["messages"][-2]["content"], row["messages"][-1]["content"]["answer"]
        except (KeyError, IndexError, TypeError):
            question = answer = None
        if not isinstance(question, str) or not isinstance(answer, str) or row["uid"] in found:
            raise DataError(
                f"{name} row {number}: expected one answer to each uid, with a message of the user and the assistant's "
                "{answer: TEXT}. Generate it with: preftune eval arena-hard generate"
            )
        found[row["uid"]] = (question, answer, row["model"])
    return found
