"""log(1 - e^a), ORPO's share of the odds, from an almost certain answer to an impossible one."""

from __future__ import annotations

from decimal import Decimal, getcontext
from math import log

import pytest
import torch

from preftune.objectives.orpo import log1mexp

getcontext().prec = 60


@pytest.mark.parametrize("a", [-1e-5, -1e-3, -0.1, -0.69, -log(2), -0.7, -1.0, -5.0, -20.0, -80.0])
def test_float32_is_right_to_its_last_digits(a):
    """At a = -20 the value is -2e-9, which 1 - e^a in float32 would round to 0."""
    found = log1mexp(torch.tensor(a, dtype=torch.float32))
    exact = Decimal(1) - Decimal(torch.tensor(a, dtype=torch.float32).item()).exp()
    assert found.item() == pytest.approx(float(exact.ln()), rel=1e-6)


def test_a_certain_answer_is_held_just_below_certainty():
    a = torch.tensor([0.0, -1e-8, -1e-6], requires_grad=True)
    found = log1mexp(a)
    found.sum().backward()
    assert found.tolist() == pytest.approx([log(1e-6)] * 3, rel=1e-6)
    assert a.grad.isfinite().all()
    assert a.grad[:2].tolist() == [0.0, 0.0]
