from __future__ import annotations

import torch

from preftune.objectives import load_objective
from preftune.objectives.base import Per
from preftune.types import Feedback, ResponseLogps


def test_loss_is_the_negative_sum_and_the_step_divides_by_tokens():
    policy = ResponseLogps(torch.tensor([[-6.0], [-1.0]]), torch.tensor([[3], [4]]))
    objective = load_objective("sft")
    out = objective(policy, None, Feedback(torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)))
    assert out.losses.tolist() == [6.0, 1.0]
    assert out.rewards.tolist() == [[-2.0], [-0.25]]
    assert objective.per == Per.TOKEN
