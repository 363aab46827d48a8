"""AlpacaEval 2's judging: two files of outputs in, annotations out, as the package alpaca-eval writes them.

The judge's prompt is not part of preftune; it is read from the installed package, or from the file that is given
(alpaca_eval/evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt).
"""

from __future__ import annotations

import importlib.util
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.endpoint import ChatReply, ChatRequest, Endpoint
from preftune.errors import DataError
from preftune.evaluation.alpaca_eval import is_switched, read_preference, read_preference_text, unswitched
from preftune.evaluation.files import Rows, read_text
from preftune.evaluation.judge import OFFICIAL_ANNOTATOR, OFFICIAL_JUDGE, ask_all
from preftune.types import Example, Message, Origin

log = logging.getLogger(__name__)

IN_PACKAGE = "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
FIELDS = ("instruction", "output_1", "output_2")
START, END = "<|im_start|>", "<|im_end|>"
OUTPUT_FIELDS = ("instruction", "output")


def load_template(path: str | Path | None = None) -> list[dict[str, str]]:
    """The messages of the judge's prompt, with {instruction}, {output_1} and {output_2} in them.

    Raises:
        DataError: there is no such file, or it is no such template.
    """
    file = Path(path) if path else _installed()
    text = read_text(file).strip()
    messages = []
    for part in text.split(START)[1:]:
        role, _, content = part.partition("\n")
        messages.append({"role": role.strip(), "content": content.split(END, 1)[0].strip()})
    holds = [sum(message["content"].count("{" + field + "}") for message in messages) for field in FIELDS]
    if not text.startswith(START) or not text.endswith(END) or holds != [1, 1, 1]:
        raise DataError(f"{file}: expected messages between {START} and {END} that hold {{instruction}}, {{output_1}} "
                        "and {output_2} once each. Give the template of the package alpaca-eval.")  # fmt: skip
    return messages


def _installed() -> Path:
    spec = importlib.util.find_spec("alpaca_eval")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder) / IN_PACKAGE).is_file():
            return file
    raise DataError(
        f"AlpacaEval: the judge's prompt is not part of preftune. Give its file ({Path(IN_PACKAGE).name} of the "
        "package alpaca-eval) with --template, or run: pip install alpaca-eval"
    )


def render(template: Sequence[Mapping[str, str]], row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The request's messages. As in the package, each field is put in by turn, at its first place."""
    order = re.findall("|".join(f"{{{field}}}" for field in FIELDS), "".join(m["content"] for m in template))
    shown = []
    for message in template:
        content = message["content"]
        for field in order:
            content = content.replace(field, row[field[1:-1]], 1)
        shown.append({"role": message["role"], "content": content})
    return shown


def pair_up(outputs: Rows, baseline: Rows, name: str = "model_outputs") -> Rows:
    """Rows to be judged, in the baseline's order, joined by instruction.

    Raises:
        DataError: an instruction has no output, or has several that differ.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(outputs, 1):
        if not isinstance(row["output"], str) or not isinstance(row["instruction"], str):
            raise DataError(f"{name} row {number}: expected texts in 'instruction' and 'output'.")
        if found.setdefault(row["instruction"], row)["output"] != row["output"]:
            raise DataError(f"{name} row {number}: a second output to the same instruction. Keep one of them.")
    absent = [row["instruction"] for row in baseline if row["instruction"] not in found]
    if absent:
        raise DataError(f"{name}: {len(absent)} of {len(baseline)} instructions of the baseline have no output, the "
                        f"first is {absent[0][:60]!r}. Generate them, or cut the baseline to the same.")  # fmt: skip
    return [
        {
            **({"dataset": row["dataset"]} if "dataset" in row else {}),
            "instruction": row["instruction"],
            "output_1": row["output"],
            "generator_1": row.get("generator", "baseline"),
            "output_2": found[row["instruction"]]["output"],
            "generator_2": found[row["instruction"]].get("generator", "model"),
        }
        for row in baseline
    ]


# --- an endpoint


def build_requests(pairs: Rows, template: Sequence[Mapping[str, str]]) -> list[ChatRequest]:
    """One game each, in the order that the instruction decides; one token with its log-probs is asked for.

    Two equal outputs are a tie and not asked about, as by the package.
    """
    return [
        ChatRequest(
            key=f"row {number}",
            messages=render(template, _shown(row)),
            max_tokens=1,
            temperature=1,
            logprobs=True,
            top_logprobs=5,
        )
        for number, row in enumerate(pairs, 1)
        if row["output_1"] != row["output_2"]
    ]


def _shown(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if not is_switched(row["instruction"]):
        return row
    return {**row, "output_1": row["output_2"], "output_2": row["output_1"]}


def annotate(
    endpoint: Endpoint, pairs: Rows, template: Sequence[Mapping[str, str]], prices: Sequence[float] | None = None
) -> Rows:
    """Annotations of all pairs; a request that is refused, or a reply that names no output, leaves its preference null,
    and is counted.

    Raises:
        EndpointError, BudgetSpentError: see `ask_all`.
    """
    replies = ask_all(endpoint, build_requests(pairs, template), prices)
    heard = [reply for reply in replies.values() if _shown_preference(reply) is not None] or list(replies.values())
    rest = annotator_name(endpoint.model, all(_is_weighted(reply) for reply in heard))
    found = [replies.get(f"row {number}") for number in range(1, len(pairs) + 1)]
    rows = [_annotation(row, reply, endpoint.model, rest) for row, reply in zip(pairs, found, strict=True)]
    if nulls := sum(row["preference"] is None for row in rows):
        log.warning("%d of %d judgments name no output and are null; they are left out of the score.", nulls, len(rows))
    return rows


def _annotation(row: Mapping[str, Any], reply: ChatReply | None, judge: str, rest: str) -> dict[str, Any]:
    """rest: the annotator of the other rows, which is that of a row that no preference was read of too."""
    if reply is None:  # unasked, or refused
        tie = row["output_1"] == row["output_2"]
        return {**row, "annotator": rest, "preference": 1.5 if tie else None, "raw_completion": None}
    shown = _shown_preference(reply)
    return {
        **row,
        "annotator": rest if shown is None else annotator_name(judge, _is_weighted(reply)),
        "preference": unswitched(shown, is_switched(row["instruction"])),
        "raw_completion": _completion(reply),
    }


def _shown_preference(reply: ChatReply) -> float | None:
    """In the order of the game."""
    return read_preference(_completion(reply)) if _is_weighted(reply) else read_preference_text(reply.text)


def _is_weighted(reply: ChatReply) -> bool:
    return reply.choices[0].logprobs is not None


def _completion(reply: ChatReply) -> dict[str, Any]:
    """As the package keeps it."""
    choice = reply.choices[0]
    return {
        "finish_reason": choice.finish,
        "index": 0,
        "logprobs": choice.logprobs,
        "message": {"content": choice.text, "role": "assistant"},
        "text": choice.text,
    }


def annotator_name(judge: str, weighted: bool) -> str:
    """The official name for the official judge alone; preferences of 1 or 2, without log-probs, are another thing."""
    if judge == OFFICIAL_JUDGE and weighted:
        return OFFICIAL_ANNOTATOR
    return f"{'weighted_alpaca_eval' if weighted else 'alpaca_eval_by_text'}:{judge}"


# --- a reward model


def annotate_by_reward(name: str, pairs: Rows, scale: float = 1.0) -> Rows:
    """Annotations by a local reward model: P(model wins) = σ((r_model - r_baseline) / scale); an empty output loses.

    Raises:
        ModelError: it cannot be loaded, or gives no finite score.
    """
    from preftune.evaluation.reward_judge import judge_name, lead, rewards_of

    examples = [
        Example((Message("user", row["instruction"]),), (row[side],), Origin("outputs", "", n))
        for n, row in enumerate(pairs, 1)
        for side in ("output_1", "output_2")
    ]
    flat = rewards_of(name, examples)
    return [
        {
            **row,
            "annotator": judge_name(name),
            "preference": 1.5 if row["output_1"] == row["output_2"] else 1 + _sigmoid(lead(own, other, scale)),
            "scores": [other, own],
        }
        for row, other, own in zip(pairs, flat[::2], flat[1::2], strict=True)
    ]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
