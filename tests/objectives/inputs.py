"""Groups of log-probs to try objectives on, and the settings of every objective that are tried."""

from __future__ import annotations

import torch

from preftune.objectives import load_objective
from preftune.objectives.base import Objective
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps

RESPONSES = {Layout.SINGLE: 1, Layout.PAIRED: 2, Layout.UNPAIRED: 1, Layout.RANKED: 4}
MPO = {"dpo": 0.8, "bco_pair": 0.2}

# Every objective with its defaults, and with other keys where they change the formula.
SETTINGS: list[tuple[str, dict]] = [
    ("alphapo", {}),
    ("alphapo", {"alpha": -0.5, "beta": 10.0, "gamma_beta_ratio": 0.5}),
    ("alphapo", {"alpha": 0}),
    ("aot", {}),
    ("aot", {"beta": 0.5, "label_smoothing": 0.1}),
    ("aot", {"loss_type": "unpaired"}),
    ("aot", {"loss_type": "unpaired", "label_smoothing": 0.1}),
    ("apo_down", {}),
    ("apo_zero", {}),
    ("apo_zero", {"beta": 0.5}),
    ("bco_pair", {}),
    ("cpo", {}),
    ("cpo", {"label_smoothing": 0.1}),
    ("cpo", {"loss_type": "hinge", "label_smoothing": 0.1}),
    ("discopop", {}),
    ("discopop", {"beta": 0.5, "tau": 1.0}),
    ("dpo", {}),
    ("dpo", {"label_smoothing": 0.2}),
    ("dpo", {"loss_type": "robust", "label_smoothing": 0.2}),
    ("dpo", {"loss_type": "robust"}),
    ("dpo", {"loss_type": "hinge", "label_smoothing": 0.2}),
    ("dpo_norm", {}),
    ("exo_pair", {}),
    ("exo_pair", {"beta": 0.5, "label_smoothing": 0.2}),
    ("ipo", {}),
    ("ipo", {"tau": 0.5, "normalize": "length"}),
    ("kto", {}),
    ("kto", {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.75}),
    ("mixture", {}),
    ("mixture", {"mixture": {"orpo": 0.5, "aot": {"weight": 2, "beta": 0.3}}}),
    ("nca_pair", {}),
    ("orpo", {}),
    ("orpo", {"beta": 2.0}),
    ("rdpo", {}),
    ("rdpo", {"beta": 0.01, "alpha": 0.5}),
    ("reward", {}),
    ("reward", {"center_rewards_coefficient": 0.01, "margin": 0.5, "margin_scale": 0.25}),
    ("rrhf", {}),
    ("sft", {}),
    ("simpo", {}),
    ("simpo", {"label_smoothing": 0.1}),
    ("simpo", {"loss_type": "hinge"}),
    ("slic_hf", {}),
    ("slic_hf", {"delta": 10.0}),
    ("sppo_hard", {}),
]


def build_inputs(objective: Objective, groups: int = 5, seed: int = 0) -> tuple[ResponseLogps, ResponseLogps, Feedback]:
    """Policy, reference and feedback of ordinary size, in float64; of unpaired rows every other one is desirable."""
    count = RESPONSES[objective.layout]
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (groups, count), generator=generator)
    policy = -torch.rand(groups, count, generator=generator, dtype=torch.float64) * lengths
    reference = -torch.rand(groups, count, generator=generator, dtype=torch.float64) * lengths
    scores = torch.arange(count, 0, -1, dtype=torch.float32).repeat(groups, 1)
    if objective.layout == Layout.UNPAIRED:
        scores[1::2] = 0
    feedback = Feedback(scores, torch.ones(groups, count, dtype=torch.bool), torch.tensor(0.1, dtype=torch.float64))
    return ResponseLogps(policy, lengths), ResponseLogps(reference, lengths), feedback


def cast(logps: ResponseLogps, dtype: torch.dtype) -> ResponseLogps:
    return ResponseLogps(logps.sums.to(dtype), logps.lengths)


def logps(*rows: tuple[float, ...], lengths: tuple[tuple[int, ...], ...] | None = None) -> ResponseLogps:
    """Sums of log-probs, one row a group; every response has one token unless `lengths` says otherwise."""
    sums = torch.tensor(rows, dtype=torch.float64)
    return ResponseLogps(sums, torch.ones_like(sums, dtype=torch.int64) if lengths is None else torch.tensor(lengths))


def feedback(
    *scores: tuple[float, ...], valid: tuple[tuple[bool, ...], ...] | None = None, baseline: float | None = None
) -> Feedback:
    known = torch.tensor(scores, dtype=torch.float32)
    return Feedback(
        known,
        torch.ones_like(known, dtype=torch.bool) if valid is None else torch.tensor(valid),
        None if baseline is None else torch.tensor(baseline, dtype=torch.float64),
    )


def one_pair(
    name: str,
    keys: dict,
    sums: tuple[float, float],
    lengths: tuple[int, int],
    reference: tuple[float, float],
    baseline: float = 0.0,
) -> ObjectiveOutput:
    """What an objective says of a single pair (chosen, rejected)."""
    objective = load_objective(name, **keys)
    return objective(
        logps(sums, lengths=(lengths,)), logps(reference, lengths=(lengths,)), feedback((0.0, 0.0), baseline=baseline)
    )
