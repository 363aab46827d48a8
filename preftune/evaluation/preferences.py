"""`preftune eval preferences MODEL DATA`: how often a model puts the chosen response above the rejected one.

By the score of a reward model, or by the implicit reward of an objective under a language model: for SimPO
β · log π(y|x) / |y|, for DPO β · log π(y|x) / π_ref(y|x), for any other what its file in `preftune.objectives` calls
rewards. Given by whether the chosen response is the longer one, because a model that has learned length is right there
and wrong elsewhere, and by a column of the data, as RewardBench has its subsets. Prompts without a system text get that
of the model's training.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preftune.data import load_rows, to_examples, tokenize_examples
from preftune.data.pack import pack
from preftune.data.system import with_system
from preftune.errors import DataError, ModelError, RecipeError
from preftune.model.load import load_model, load_tokenizer
from preftune.model.policy import to_policy
from preftune.objectives import load_objective
from preftune.objectives.base import Baseline, Objective, Reads
from preftune.serve.chat import model_folder, trained_system
from preftune.types import Example, Feedback, Layout, Origin, ResponseLogps, TokenizedGroup

log = logging.getLogger(__name__)
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Agreement:
    """Of some pairs. accuracy: percent where chosen is strictly higher; margin: mean of chosen - rejected."""

    pairs: int
    accuracy: float
    standard_error: float
    margin: float


@dataclass(frozen=True)
class PreferenceReport:
    """by_length: chosen longer, same or shorter, in characters; subsets: by the column, their mean is `subset_mean`."""

    reward: str
    overall: Agreement
    by_length: dict[str, Agreement]
    subsets: dict[str, Agreement]
    subset_mean: float | None
    cut: int


def measure_preferences(
    model: str,
    data: str | Path,
    *,
    objective: str | None = None,
    settings: Mapping[str, Any] | None = None,
    reference: str | None = None,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    subset: str | None = None,
    max_length: int | None = None,
) -> PreferenceReport:
    """Reward accuracy of `model` on pairs.

    Args:
        model: a reward model, or with `objective` a language model: a folder (a run too) or a hub name.
        data: a file or folder of pairs.
        objective: whose implicit reward is taken; None is the score of a reward model.
        settings: of the objective, {"beta": 2.0}.
        reference: the reference model, where the objective has one.
        split, columns: see `preftune.data.load_rows` and `to_examples`.
        subset: the column that names a row's subset.
        max_length: cut prompt and response together to so many tokens.

    Raises:
        DataError: the data is wrong or has no such column.
        RecipeError: the objective is not of pairs, or a reference is missing or too much.
        ModelError: a model cannot be loaded, or a reward is not finite.
    """
    rule = _objective(objective, settings or {}, reference)
    rows = load_rows(data, split)
    examples = to_examples(rows, Layout.PAIRED, columns)
    kinds = None if subset is None else _subsets(rows, examples, subset)
    if rule is None:
        rewards, cut = _scores(model, examples, max_length)
    else:
        rewards, cut = implicit_rewards(rule, model, reference, examples, max_length)
    for values, example in zip(rewards, examples, strict=True):
        if not all(map(math.isfinite, values)):
            raise ModelError(f"{example.origin}: the rewards are {values}, expected finite numbers. Check the weights.")
    named = "score" if rule is None else f"implicit reward of {objective}"
    return _report(named, examples, [chosen - rejected for chosen, rejected in rewards], kinds, cut)


# --- rewards


def _objective(name: str | None, settings: Mapping[str, Any], reference: str | None) -> Objective | None:
    if name is None:
        if settings or reference:
            raise RecipeError("A reward model has no settings and no reference. Name the objective: --objective dpo.")
        return None
    rule = load_objective(name, **settings)
    if rule.layout != Layout.PAIRED or rule.reads != Reads.LOGPS:
        raise RecipeError(
            f"'{name}' has no implicit reward of pairs. Take one that trains on pairs, or a reward model."
        )
    if rule.needs_reference and reference is None:
        raise RecipeError(f"The reward of '{name}' is over a reference model. Name it: --reference MODEL.")
    if reference is not None and not rule.needs_reference:
        raise RecipeError(f"'{name}' has no reference model. Leave --reference.")
    return rule


def _scores(model: str, examples: Sequence[Example], max_length: int | None) -> tuple[list[list[float]], int]:
    from preftune.serve.reward import open_reward_model, score_examples

    found = score_examples(open_reward_model(model), examples, max_length=max_length)
    return found.values, found.cut


def implicit_rewards(
    rule: Objective, model: str, reference: str | None, examples: Sequence[Example], max_length: int | None = None
) -> tuple[list[list[float]], int]:
    """(chosen, rejected) of every example, and how many rows were cut.

    Raises:
        DataError: a row cannot be put into the chat template.
        ModelError: a model cannot be loaded, or the two read different tokens.
    """
    examples = with_system(examples, trained_system(Path(_place(model))))
    groups, report = tokenize_examples(examples, load_tokenizer(_place(model)), max_length=max_length)
    policy = _logps(model, groups)
    other = None
    if reference is not None:
        own, _ = tokenize_examples(examples[:50], load_tokenizer(_place(reference)), max_length=max_length)
        ids = [(group.prompt_ids, group.response_ids) for group in groups[:50]]
        if [(group.prompt_ids, group.response_ids) for group in own] != ids:
            raise ModelError(f"{reference}: its tokens of the same rows are not those of {model}. Give the model that "
                             "training began with.")  # fmt: skip
        other = _logps(reference, groups)
    known = [list(group.scores) if len(group.scores) == 2 else [0.0, 0.0] for group in groups]
    baseline = None if rule.baseline == Baseline.NONE else torch.tensor(0.0)  # shifts losses, not rewards
    feedback = Feedback(torch.tensor(known), policy.lengths > 0, baseline)
    rewards: Tensor = rule(policy, other, feedback).rewards
    return rewards.tolist(), report.rows_cut


def _place(name: str) -> str:
    folder = Path(name).expanduser()
    return str(model_folder(folder)) if folder.is_dir() else name


def _logps(name: str, groups: Sequence[TokenizedGroup]) -> ResponseLogps:
    return pair_logps(load_model(_place(name), torch_dtype="auto" if torch.cuda.is_available() else "float32"), groups)


@torch.inference_mode()
def pair_logps(model: Any, groups: Sequence[TokenizedGroup]) -> ResponseLogps:
    """(G, 2) of both responses under a language model; long groups run first, one at a time where they fill a batch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = to_policy(model.to(device).eval())
    sums = torch.zeros(len(groups), 2)
    for batch in _batches([len(g.prompt_ids) * 2 + sum(map(len, g.response_ids)) for g in groups]):
        found = policy(batch=pack([groups[number] for number in batch]).to(device))
        sums[batch] = found.sums.float().cpu()
    lengths = torch.tensor([[len(ids) for ids in group.response_ids] for group in groups])
    return ResponseLogps(sums, lengths)


def _batches(tokens: Sequence[int]) -> list[list[int]]:
    batches: list[list[int]] = []
    load = 0
    for number in sorted(range(len(tokens)), key=lambda number: -tokens[number]):
        if not batches or load + tokens[number] > BATCH_TOKENS:
            batches.append([])
            load = 0
        batches[-1].append(number)
        load += tokens[number]
    return batches


# --- the report


def _subsets(rows: Sequence[Any], examples: Sequence[Example], column: str) -> list[str]:
    by_origin: dict[Origin, Any] = {row.origin: row.values.get(column) for row in rows}
    kinds = [by_origin[example.origin] for example in examples]
    if absent := [example for example, kind in zip(examples, kinds, strict=True) if kind is None]:
        raise DataError(f"{absent[0].origin}: the column '{column}' is missing or empty; expected a subset's name.")
    return [str(kind) for kind in kinds]


def _report(
    reward: str, examples: Sequence[Example], margins: Sequence[float], kinds: Sequence[str] | None, cut: int
) -> PreferenceReport:
    longer = [len(example.responses[0]) - len(example.responses[1]) for example in examples]
    sides: dict[str, Callable[[int], bool]] = {
        "chosen longer": lambda n: n > 0,
        "same length": lambda n: n == 0,
        "chosen shorter": lambda n: n < 0,
    }
    by_length = {name: [m for m, n in zip(margins, longer, strict=True) if holds(n)] for name, holds in sides.items()}
    subsets: dict[str, list[float]] = {}
    for margin, kind in zip(margins, kinds or (), strict=kinds is not None):
        subsets.setdefault(kind, []).append(margin)
    found = {name: _agreement(subsets[name]) for name in sorted(subsets)}
    return PreferenceReport(
        reward,
        _agreement(margins),
        {name: _agreement(own) for name, own in by_length.items() if own},
        found,
        sum(one.accuracy for one in found.values()) / len(found) if found else None,
        cut,
    )


def _agreement(margins: Sequence[float]) -> Agreement:
    share = sum(margin > 0 for margin in margins) / len(margins)
    error = math.sqrt(share * (1 - share) / len(margins))
    return Agreement(len(margins), 100 * share, 100 * error, sum(margins) / len(margins))
