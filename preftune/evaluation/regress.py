"""`preftune eval regress BEFORE AFTER DATA`: what an alignment cost, on fixed prompts and without a judge.

Both models answer the same prompts greedily, and give the log-probs of the data's own answers and of what the first
model draws at temperature 1. The last are an estimate of KL(before ‖ after) that needs both models once:
the mean over drawn tokens of log p_before - log p_after.

A figure is a mean over prompts, or over tokens where its name says so; a change has the 95 % interval of the paired
differences (normal), so one that spans 0 is no change that these prompts can show.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from preftune.data import load_preferences
from preftune.data.chat import ChatFormat, read_chat_format
from preftune.data.encode import encode_examples
from preftune.data.pack import pack
from preftune.data.system import with_system
from preftune.errors import DataError, ModelError
from preftune.evaluation.health import asks_for_json, distinct_share, is_chinese, parses, refuses, repeats, units
from preftune.generation import Engine, Request, Sampling
from preftune.model.ends import ending_ids
from preftune.model.load import load_model, load_tokenizer
from preftune.model.policy import to_policy
from preftune.serve.chat import model_folder, trained_system
from preftune.types import Example, Layout, TokenizedGroup

logger = logging.getLogger(__name__)
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Looked:
    """What one model did with the prompts; one entry a prompt. Log-probs are sums in nats."""

    texts: list[str]
    tokens: list[int]
    ended: list[bool]
    answer_logps: list[float]  # of the data's answer
    answer_tokens: list[int]
    drawn: list[list[int]]  # ids from the first model, its end included
    drawn_logps: list[float]


@dataclass(frozen=True)
class Figure:
    """One line of the report; `low` and `high` are the 95 % interval of the change, None where there is none."""

    name: str
    before: float
    after: float
    low: float | None = None
    high: float | None = None

    @property
    def change(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Regression:
    """The report of two models. `answers`: prompt, before, after of every row."""

    figures: list[Figure]
    prompts: int
    answers: list[tuple[str, str, str]]

    def to_dict(self) -> dict[str, Any]:
        rows = [{**asdict(figure), "change": figure.change} for figure in self.figures]
        return {"prompts": self.prompts, "figures": rows}


def regress(
    before: str,
    after: str,
    data: str | Sequence[str],
    *,
    split: str = "test",
    limit: int = 200,
    max_tokens: int = 256,
    seed: int = 0,
    slots: int = 32,
) -> Regression:
    """Compare two models on the prompts of `data` and their answers there (of pairs, the chosen ones).

    Args:
        before, after: folders (a run folder too) or hub names; both are asked through their own chat template,
            with the system text of their own training.
        limit: prompts at most, drawn by the seed.

    Raises:
        DataError: the data is wrong, or has no answers.
        ModelError: a model cannot be loaded, or the two read different tokens.
    """
    examples = _examples(data, split, limit, seed)
    first = _look(before, examples, max_tokens, slots, seed, None)
    second = _look(after, examples, max_tokens, slots, seed, first.drawn)
    prompts = [example.prompt[-1].content for example in examples]
    rows = list(zip(prompts, first.texts, second.texts, strict=True))
    return Regression(figures(prompts, first, second), len(examples), rows)


def _examples(data: str | Sequence[str], split: str, limit: int, seed: int) -> list[Example]:
    examples = load_preferences(data, split=split, layout=Layout.SINGLE)
    if not examples:
        raise DataError(f"{data}[{split}]: there are no rows. Give data with prompts and answers.")
    drawn = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:limit]
    return [examples[number] for number in sorted(drawn.tolist())]


@torch.inference_mode()
def _look(
    name: str, examples: list[Example], max_tokens: int, slots: int, seed: int, drawn: list[list[int]] | None
) -> Looked:
    disable_progress_bar()
    folder = Path(name).expanduser()
    name = str(model_folder(folder)) if folder.is_dir() else name
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(name)
    model: Any = load_model(name, torch_dtype="float32" if device == "cpu" else "auto")
    model = model.to(device).eval()
    chat = read_chat_format(tokenizer)
    groups = _encoded(name, with_system(examples, trained_system(Path(name))), chat)
    sampling = Sampling(max_tokens, 0.0, ends=ending_ids(model, chat))
    engine = Engine(model, slots=slots)
    logger.info("%s: %d answers", name, len(groups))
    answers = _answers(engine, groups, sampling, 0)
    if drawn is None:
        sampled = Sampling(max_tokens, 1.0, 1.0, ends=sampling.ends)
        drawn = [answer.ids for answer in _answers(engine, groups, sampled, seed)]
    elif max(map(max, drawn)) >= model.get_input_embeddings().num_embeddings:
        raise ModelError(f"{name}: it has fewer tokens than the first model, so they cannot be compared by KL.")
    policy = to_policy(model)
    own = _logps(policy, [TokenizedGroup(group.prompt_ids, group.response_ids[:1], group.origin) for group in groups])
    others = [TokenizedGroup(g.prompt_ids, [ids], g.origin) for g, ids in zip(groups, drawn, strict=True)]
    texts = [str(tokenizer.decode(answer.ids, skip_special_tokens=True)) for answer in answers]
    return Looked(
        texts=texts,
        tokens=[len(answer.ids) for answer in answers],
        ended=[answer.ended for answer in answers],
        answer_logps=own,
        answer_tokens=[len(group.response_ids[0]) for group in groups],
        drawn=drawn,
        drawn_logps=_logps(policy, others),
    )


def _encoded(name: str, examples: list[Example], chat: ChatFormat) -> list[TokenizedGroup]:
    groups = []
    for group in encode_examples(examples, chat):
        if isinstance(group, DataError):
            raise DataError(f"{group} ({name})")
        groups.append(group)
    return groups


def _answers(engine: Engine, groups: list[TokenizedGroup], sampling: Sampling, seed: int) -> list[Any]:
    found: list[Any] = [None] * len(groups)
    requests = [Request(number, group.prompt_ids, (seed,), sampling) for number, group in enumerate(groups)]
    for key, _, answer in engine.run(requests):
        found[key] = answer  # type: ignore[call-overload]
    return found


def _logps(policy: Any, groups: list[TokenizedGroup]) -> list[float]:
    """Sums in nats of the response of each group, long ones together."""
    found = [0.0] * len(groups)
    batch: list[int] = []
    order = sorted(range(len(groups)), key=lambda number: -groups[number].packed_length())
    for place, number in enumerate(order):
        batch.append(number)
        size = sum(groups[one].packed_length() for one in batch)
        if place + 1 == len(order) or size + groups[order[place + 1]].packed_length() > BATCH_TOKENS:
            sums = policy(batch=pack([groups[one] for one in batch]).to(policy.device)).sums[:, 0].tolist()
            for one, value in zip(batch, sums, strict=True):
                found[one] = value
            batch = []
    return found


def figures(prompts: Sequence[str], before: Looked, after: Looked) -> list[Figure]:
    """The report's lines."""
    both = (before, after)
    asked = [number for number, prompt in enumerate(prompts) if asks_for_json(prompt)]
    lines = [
        _of_the_data(before, after),
        Figure("perplexity of the data's answers, a token", *(_perplexity(look) for look in both)),
        _mean("answer length, tokens", [list(map(float, look.tokens)) for look in both]),
        _mean("answers that end", [list(map(float, look.ended)) for look in both]),
        _share("answers that repeat themselves", both, repeats),
        Figure("distinct 2-grams of all answers", *(distinct_share(list(map(units, look.texts)), 2) for look in both)),
        _share("answers that refuse", both, refuses),
        _share("answers in Chinese", both, is_chinese),
    ]
    if asked:
        lines.append(_share("JSON that can be read, where it is asked for", both, parses, asked))
    drawn = [float(len(ids)) for ids in before.drawn]
    lost = [old - new for old, new in zip(before.drawn_logps, after.drawn_logps, strict=True)]
    kl = sum(lost) / sum(drawn)
    return [*lines, Figure("KL(before ‖ after), nats a token", 0.0, kl, *_interval_of_ratio(lost, drawn))]


def _of_the_data(before: Looked, after: Looked) -> Figure:
    """An interval where both models read the answers as the same tokens."""
    name = "log-prob of the data's answers, nats a token"
    old, new = (sum(look.answer_logps) / sum(look.answer_tokens) for look in (before, after))
    if before.answer_tokens != after.answer_tokens:
        return Figure(name, old, new)
    changes = [b - a for a, b in zip(before.answer_logps, after.answer_logps, strict=True)]
    return Figure(name, old, new, *_interval_of_ratio(changes, list(map(float, before.answer_tokens))))


def _perplexity(look: Looked) -> float:
    return math.exp(min(-sum(look.answer_logps) / sum(look.answer_tokens), 700.0))


def _share(
    name: str, both: Sequence[Looked], holds: Callable[[str], bool], numbers: Sequence[int] | None = None
) -> Figure:
    """Of the answers, or of those to some prompts."""
    chosen = range(len(both[0].texts)) if numbers is None else numbers
    return _mean(name, [[float(holds(look.texts[number])) for number in chosen] for look in both])


def _mean(name: str, values: Sequence[list[float]]) -> Figure:
    before, after = values
    changes = [new - old for old, new in zip(before, after, strict=True)]
    return Figure(name, statistics.fmean(before), statistics.fmean(after), *_interval(changes))


def _interval(changes: Sequence[float]) -> tuple[float | None, float | None]:
    if len(changes) < 2:
        return None, None
    middle, half = statistics.fmean(changes), 1.96 * statistics.stdev(changes) / math.sqrt(len(changes))
    return middle - half, middle + half


def _interval_of_ratio(sums: Sequence[float], weights: Sequence[float]) -> tuple[float | None, float | None]:
    """Of sum(sums) / sum(weights), by the spread of the residuals over prompts."""
    if len(sums) < 2:
        return None, None
    mean = sum(sums) / sum(weights)
    residuals = [value - mean * weight for value, weight in zip(sums, weights, strict=True)]
    half = 1.96 * statistics.stdev(residuals) * math.sqrt(len(sums)) / sum(weights)
    return mean - half, mean + half


def table(report: Regression) -> str:
    """The report as a Markdown table."""
    lines = ["| | before | after | change | 95 % |", "|---|---|---|---|---|"]
    for figure in report.figures:
        interval = "" if figure.low is None else f"{figure.low:+.3g} to {figure.high:+.3g}"
        lines.append(
            f"| {figure.name} | {figure.before:.4g} | {figure.after:.4g} | {figure.change:+.3g} | {interval} |"
        )
    return "\n".join(lines) + "\n"
