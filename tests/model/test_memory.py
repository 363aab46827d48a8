"""The estimate of memory, against arithmetic by hand and against what autograd keeps."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, ViTConfig

from preftune.errors import ModelError
from preftune.model.memory import GIB, Precision, build_empty_model, estimate_memory, load_config

SIZES = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 8, "num_key_value_heads": 2}


def config_of(**changes: object) -> LlamaConfig:
    return LlamaConfig(**{"vocab_size": 500, "num_hidden_layers": 4, **SIZES, **changes})


def estimate(precision: Precision, **values: object):
    config = config_of()
    return estimate_memory(build_empty_model(config), config, 1000, precision, **values)


def test_float32_takes_16_bytes_a_parameter():
    got = estimate(Precision())
    # embeddings and head; a layer: q and o, k and v, the three of the feed-forward, two norms; the last norm
    count = 2 * 500 * 256 + 4 * (2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 896 + 2 * 256) + 256
    assert got.parameters == got.trainable == count
    assert got.weights == got.gradients == pytest.approx(4 * count / GIB)
    assert got.moments == pytest.approx(8 * count / GIB)
    assert (got.master, got.cast_weights, got.reference) == (0, 0, 0)


def test_bfloat16_with_a_master_takes_18_bytes_and_without_one_8():
    whole = estimate(Precision(torch.bfloat16, torch.bfloat16))
    bare = estimate(Precision(torch.bfloat16, torch.bfloat16, master=False))
    count = whole.parameters / GIB
    assert [whole.weights, whole.gradients, whole.master, whole.moments] == pytest.approx(
        [2 * count, 4 * count, 4 * count, 8 * count]
    )
    assert [bare.weights, bare.gradients, bare.master, bare.moments] == pytest.approx(
        [2 * count, 2 * count, 0, 4 * count]
    )


@pytest.mark.parametrize(("state", "moments"), [("float32", 8), ("bfloat16", 4), ("8bit", 2 + 2 * 4 / 256)])
def test_a_split_master_takes_2_bytes_and_small_moments_less_than_8(state, moments):
    got = estimate(Precision(torch.bfloat16, torch.bfloat16, master="split", state=state))
    count = got.parameters / GIB
    assert [got.weights, got.gradients, got.master, got.moments] == pytest.approx(
        [2 * count, 4 * count, 2 * count, moments * count]
    )


def test_autocast_keeps_a_copy_of_the_weights_and_a_reference_is_the_weights_again():
    got = estimate(Precision(torch.float32, torch.bfloat16), copies_reference=True)
    assert got.cast_weights == pytest.approx(got.weights / 2)
    assert got.reference == pytest.approx(got.weights)
    assert got.total == pytest.approx(sum(got.parts.values()))


def test_activations_by_hand():
    layer = 24 * 256 + 4 * (3 * 256 + 3 * 64 + 4 * 896)
    assert estimate(Precision()).activations == pytest.approx(1000 * 4 * layer / GIB)
    again = estimate(Precision(), checkpointing=True).activations
    assert again == pytest.approx(1000 * (4 * 4 * 256 + layer) / GIB)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize(
    "sizes", [{}, {"hidden_size": 512, "intermediate_size": 1024, "num_key_value_heads": 8}], ids=str
)
def test_autograd_keeps_what_was_estimated(sizes, half):
    config = config_of(**sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        output = model.model(input_ids=torch.arange(1000)[None] % 500)
    assert output.last_hidden_state.requires_grad
    compute = torch.bfloat16 if half else torch.float32
    estimated = estimate_memory(model, config, 1000, Precision(torch.float32, compute))
    # the casts of the layers' weights are kept by autograd too; embeddings and head are not cast here
    cast = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2) * 2 / GIB if half else 0
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / GIB

    assert (measured - cast) / estimated.activations == pytest.approx(1, abs=0.1)


def test_a_folder_without_a_config_has_none(tmp_path):
    assert load_config(str(tmp_path / "nothing")) is None
    (tmp_path / "config.json").write_text("{}")
    assert load_config(str(tmp_path)) is None


def test_a_model_that_cannot_be_built_is_one_line():
    with pytest.raises(ModelError, match="no model can be built from this config"):
        build_empty_model(ViTConfig())


def test_quantised_layers_take_half_a_byte_and_their_adapter_is_float32():
    peft = pytest.importorskip("peft")
    config = config_of()
    with torch.device("meta"):
        model = peft.get_peft_model(build_empty_model(config), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    got = estimate_memory(model, config, 1000, Precision(torch.bfloat16, torch.bfloat16, bits=4))
    adapter = 4 * 2 * (256 + 256)
    linear = 4 * (2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 896)
    dense = 2 * 500 * 256 + 4 * 2 * 256 + 256
    assert got.trainable == adapter
    assert got.weights == pytest.approx((0.55 * linear + 2 * dense + 4 * adapter) / GIB)
    assert got.gradients == pytest.approx(4 * adapter / GIB) and got.moments == pytest.approx(8 * adapter / GIB)
    assert got.master == 0
