"""Arena-Hard's judging: answers of a model and a baseline in, two games a question out.

The judge's prompt is not part of preftune: it is read from a file as arena-hard-auto has them, YAML with
`system_prompt` and `prompt_template` (a text, or a list of one). The template holds question and answers as
{question_1}, {answer_1}, {answer_2} (v0.1) or {QUESTION}, {ANSWER_A}, {ANSWER_B} (v2.0).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from preftune.endpoint import ChatRequest, Endpoint
from preftune.errors import DataError
from preftune.evaluation.arena_hard import Version, read_verdict, read_verdict_v2
from preftune.evaluation.files import Rows, read_text
from preftune.evaluation.judge import ask_all

log = logging.getLogger(__name__)

MAX_TOKENS = {"v0.1": 4096, "v2.0": 16000}
GO_ON = "continue your judgment and finish by outputting a final verdict label"
PLACES = (("{question_1}", "{answer_1}", "{answer_2}"), ("{QUESTION}", "{ANSWER_A}", "{ANSWER_B}"))


@dataclass(frozen=True)
class JudgePrompt:
    """places: what stands in the template for the question, the answer of assistant A and that of B."""

    system: str
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
    try:
        config = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise DataError(
            f"{path}: not YAML ({str(error).splitlines()[0]}). Give arena-hard-auto's judge file."
        ) from None
    config = config if isinstance(config, dict) else {}
    template = config.get("prompt_template")
    template = template[0] if isinstance(template, list) and template else template
    system = config.get("system_prompt")
    for places in PLACES:
        if isinstance(system, str) and isinstance(template, str) and all(place in template for place in places):
            return JudgePrompt(system, template, places)
    raise DataError(f"{path}: expected 'system_prompt', and a 'prompt_template' with {', '.join(PLACES[0])} or "
                    f"{', '.join(PLACES[1])}. Give arena-hard-auto's judge file.")  # fmt: skip


def judge(
    endpoint: Endpoint,
    answers: Rows,
    baseline: Rows,
    prompt: JudgePrompt,
    version: Version = "v0.1",
    prices: Sequence[float] | None = None,
) -> Rows:
    """Judgments of all questions of the baseline; a verdict that is refused or cannot be read is null, and counted.

    v0.1: a judge that gave no label is asked once to go on.

    Raises:
        DataError: a question has no answer.
        EndpointError, BudgetSpentError: see `ask_all`.
    """
    mine, other = answers_by_question(answers, "answers"), answers_by_question(baseline, "baseline")
    check_answered(mine, other)
    requests = {}
    for uid, (question, own, _) in mine.items():
        if uid in other:
            for game, pair in enumerate(((other[uid][1], own), (own, other[uid][1])), 1):
                messages = ({"role": "system", "content": prompt.system},
                            {"role": "user", "content": prompt.render(question, *pair)})  # fmt: skip
                key = f"question {uid}, game {game}"
                requests[uid, game] = ChatRequest(key, messages, temperature=0, max_tokens=MAX_TOKENS[version])
    replies = ask_all(endpoint, list(requests.values()), prices)
    said = {place: replies[request.key].text for place, request in requests.items() if request.key in replies}
    if version == "v0.1":
        said = _gone_on(endpoint, requests, said, prices)
    rows = [_row(uid, mine[uid], other[uid], endpoint.model, said, requests, version) for uid in other]
    if nulls := sum(game["score"] is None for row in rows for game in row["games"]):
        log.warning("%d of %d verdicts are null: refused, or not to be read.", nulls, 2 * len(rows))
    return rows


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


def _row(
    uid: str,
    own: tuple[str, str, str],
    other: tuple[str, str, str],
    judge: str,
    said: Mapping[Any, str],
    requests: Mapping[Any, ChatRequest],
    version: Version,
) -> dict[str, Any]:
    games = []
    for game in (1, 2):
        text = said.get((uid, game))
        score = None if text is None else read_verdict(text)[0] if version == "v0.1" else read_verdict_v2(text)
        asked = requests[uid, game].messages[1]["content"]
        games.append({"score": score, "judgment": text, "user_prompt": asked} if version == "v0.1" else
                     {"score": score, "judgment": {"answer": text}, "prompt": asked})  # fmt: skip
    name = {"question_id": uid} if version == "v0.1" else {"uid": uid}
    return {**name, "model": own[2], "judge": judge, "baseline": other[2], "games": games}


def check_answered(answers: Mapping[str, Any], baseline: Mapping[str, Any]) -> None:
    """Raises DataError: a question of the baseline has no answer."""
    if absent := [uid for uid in baseline if uid not in answers]:
        raise DataError(f"answers: {len(absent)} of {len(baseline)} questions of the baseline have none, the first is "
                        f"{absent[0]}. Generate them.")  # fmt: skip


def answers_by_question(rows: Rows, name: str) -> dict[str, tuple[str, str, str]]:
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
