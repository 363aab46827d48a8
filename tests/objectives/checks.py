"""What an objective must do whatever its keys are."""

from __future__ import annotations

import torch
from torch import Tensor

from preftune.objectives.base import Objective
from preftune.types import ResponseLogps
from tests.objectives.inputs import build_inputs, cast


def check_gradient(objective: Objective) -> None:
    """Its gradient is that of finite differences, in float64."""
    policy, reference, feedback = build_inputs(objective)

    def losses(sums: Tensor) -> Tensor:
        return objective(ResponseLogps(sums, policy.lengths), reference, feedback).losses

    assert torch.autograd.gradcheck(losses, policy.sums.clone().requires_grad_())


def check_extremes(objective: Objective, dtype: torch.dtype) -> None:
    """Log-probs from certain to impossible, as far apart as it goes, either way round: what comes out is finite."""
    policy, reference, feedback = build_inputs(objective)
    for certain in (0, -1):
        for value in (0.0, -1e-6, -1e4):
            for length in (1, 4000):
                sums = torch.full_like(policy.sums, value, dtype=dtype)
                sums[:, certain] = 0.0
                sums.requires_grad_()
                lengths = torch.full_like(policy.lengths, length)
                out = objective(ResponseLogps(sums, lengths), cast(reference, dtype), feedback)
                out.losses.sum().backward()
                assert out.losses.isfinite().all()
                assert out.rewards.isfinite().all()
                assert sums.grad is not None and sums.grad.norm().isfinite()  # the norm that is clipped
