"""The other order of a product is the same product, and leaves nothing behind."""

import pytest
import torch
from torch import nn

from preftune.generation.few_rows import MOST, FewRows


def layers(bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 100, bias=bias), nn.Linear(100, 24, bias=bias))


@pytest.mark.parametrize("rows", [1, 2, 3, MOST, MOST + 1])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_same_product(rows, bias):
    model = layers(bias)
    x = torch.randn(rows, 1, 24)
    want = model(x)
    with FewRows(model)(rows):
        assert ("forward" in vars(model[0])) == (rows <= MOST)
        found = model(x)
    torch.testing.assert_close(found, want)
    assert found.is_contiguous()


def test_only_wide_layers_and_only_meanwhile():
    model = layers()
    with pytest.raises(RuntimeError, match="inside"), FewRows(model)(2):
        assert "forward" in vars(model[0])
        assert "forward" not in vars(model[1])
        raise RuntimeError("inside")
    assert "forward" not in vars(model[0])


def test_a_forward_that_others_put_there_stays():
    model = layers()
    theirs = model[0].forward = lambda x: x.new_ones(len(x), 100)
    with FewRows(model)(1):
        assert model[0].forward is theirs
    assert model[0].forward is theirs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_go_the_usual_way(dtype):
    model = layers().to(dtype)
    x = torch.randn(3, 24, dtype=dtype)
    with FewRows(model)(3):
        found = model(x)
    assert torch.equal(found, model(x))


def test_autocast_goes_the_usual_way():
    model = layers()
    x = torch.randn(3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        want = model(x)
        with FewRows(model)(3):
            found = model(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, want)
