"""The estimate of memory, against arithmetic by hand and against what autograd keeps."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MixtralConfig, ViTConfig

from preftune.errors import ModelError
from preftune.model.activations import count_kept
from preftune.model.footprint import Engine, Precision, Sizes, hold
from preftune.model.lora import LoraSettings, add_adapter
from preftune.model.memory import GIB, Counts, build_empty_model, estimate_memory, load_config
from preftune.model.shapes import published_config

SIZES = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 8, "num_key_value_heads": 2}
LAYER = 2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 896 + 2 * 256  # q and o, k and v, the feed-forward, two norms
COUNT = 2 * 500 * 256 + 4 * LAYER + 256  # embeddings and head, the layers, the last norm
BF16 = torch.bfloat16


def config_of(**changes: object) -> LlamaConfig:
    return LlamaConfig(**{"vocab_size": 500, "num_hidden_layers": 4, **SIZES, **changes})


def estimate(precision: Precision, tokens: int = 1000, **values: object):
    config = config_of()
    model = build_empty_model(config, dtype=precision.weights)
    return estimate_memory(Counts.of(model, config, precision), tokens, precision, **values)


def held_by(engine: Engine, precision: Precision, **values: object):
    return hold(Sizes.of(build_empty_model(config_of()), precision), precision, engine, **values)


def test_float32_takes_16_bytes_a_parameter():
    got = estimate(Precision())
    assert got.parameters == got.trainable == COUNT
    assert got.weights == got.gradients == pytest.approx(4 * COUNT / GIB)
    assert got.moments == pytest.approx(8 * COUNT / GIB)
    assert (got.master, got.cast_weights, got.reference) == (0, 0, 0)


def test_bfloat16_with_a_master_takes_18_bytes_and_without_one_8():
    whole = estimate(Precision(BF16, BF16))
    bare = estimate(Precision(BF16, BF16, master=False))
    count = COUNT / GIB
    assert [whole.weights, whole.gradients, whole.master, whole.moments] == pytest.approx(
        [2 * count, 4 * count, 4 * count, 8 * count]
    )
    assert [bare.weights, bare.gradients, bare.master, bare.moments] == pytest.approx(
        [2 * count, 2 * count, 0, 4 * count]
    )


@pytest.mark.parametrize(("state", "moments"), [("float32", 8), ("bfloat16", 4), ("8bit", 2 + 2 * 4 / 256)])
def test_a_split_master_takes_2_bytes_and_small_moments_less_than_8(state, moments):
    got = estimate(Precision(BF16, BF16, master="split", state=state))
    count = COUNT / GIB
    assert [got.weights, got.gradients, got.master, got.moments] == pytest.approx(
        [2 * count, 4 * count, 2 * count, moments * count]
    )


@pytest.mark.parametrize(("optim", "bytes_each"), [("adamw_bnb_8bit", 2.03125), ("sgd", 0), ("lion_32bit", 4)])
def test_other_optimizers_keep_less_than_adamw(optim, bytes_each):
    assert estimate(Precision(optim=optim)).moments == pytest.approx(bytes_each * COUNT / GIB)


def test_adafactor_keeps_a_row_and_a_column_of_each_matrix():
    layer = 2 * (256 + 256) + 2 * (64 + 256) + 3 * (896 + 256) + 2 * 256
    numbers = 2 * (500 + 256) + 4 * layer + 256
    assert estimate(Precision(optim="adafactor")).moments == pytest.approx(4 * numbers / GIB)


def test_autocast_keeps_a_copy_of_the_layers_weights_and_a_reference_is_what_trains_again():
    got = estimate(Precision(torch.float32, BF16), reference="trained")
    assert got.cast_weights == pytest.approx(2 * 4 * (LAYER - 2 * 256) / GIB)
    assert got.reference == pytest.approx(got.weights)
    assert got.total == pytest.approx(sum(got.parts.values()))


def test_checkpointing_keeps_the_layers_inputs_and_one_layer():
    plain, again = estimate(Precision()), estimate(Precision(), checkpointed=4)
    assert again.activations == pytest.approx(1000 * 4 * 4 * 256 / GIB + plain.activations / 4)


def test_some_layers_checkpointed_keep_their_inputs_and_the_others_all():
    plain, some = estimate(Precision()), estimate(Precision(), checkpointed=1)
    assert some.activations == pytest.approx(1000 * 4 * 256 / GIB + plain.activations * 3 / 4)


def test_a_step_of_one_micro_batch_has_the_heads_gradient_alone_when_it_is_fullest():
    got = estimate(Precision(), tokens=10_000, several=False)
    assert got.moment == "backward" and got.gradients == pytest.approx(4 * 500 * 256 / GIB)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize(
    "sizes", [{}, {"hidden_size": 512, "intermediate_size": 1024, "num_key_value_heads": 8}], ids=str
)
def test_what_is_counted_without_weights_is_what_autograd_keeps(sizes, half):
    """torch's own attention keeps a number a head and token besides: that of its softmax."""
    config, compute = config_of(**sizes), BF16 if half else torch.float32
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", BF16, enabled=half),
    ):
        output = model.model(input_ids=torch.arange(1000)[None] % 500)
    assert output.last_hidden_state.requires_grad
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    counted = count_kept(build_empty_model(config), config, compute)
    assert counted.casts + 1000 * counted.token == pytest.approx(measured, rel=0.02)


def test_bfloat16_weights_are_not_cast_and_their_stream_is_half_as_wide():
    counted = count_kept(build_empty_model(config_of(), dtype=BF16), config_of(), BF16)
    assert counted.casts == 0 and counted.stream == 2 * 256


def test_other_decoders_and_adapters_are_counted_and_experts_are_estimated():
    kinds = {**SIZES, "vocab_size": 500, "num_hidden_layers": 4}
    plain = count_kept(build_empty_model(config_of()), config_of(), torch.float32)
    with torch.device("meta"):
        adapted = add_adapter(build_empty_model(config_of()), LoraSettings(r=8, init=True))
    lora = count_kept(adapted, config_of(), torch.float32)
    assert 0.8 * plain.token < lora.token < plain.token  # frozen layers keep no input for a gradient of theirs
    gemma = count_kept(build_empty_model(Gemma2Config(**kinds)), Gemma2Config(**kinds), torch.float32)
    assert gemma.token > plain.token  # four norms a layer, and wider heads
    experts = MixtralConfig(**kinds, num_local_experts=4, num_experts_per_tok=2)
    mixed = count_kept(build_empty_model(experts), experts, torch.float32)
    assert mixed.token == 4 * (24 * 256 + 4 * (3 * 256 + 3 * 64 + 4 * 2 * 896))


def test_engines_divide_what_they_cut():
    bf16 = Precision(torch.float32, BF16)
    ddp, fsdp = held_by(Engine("DDP", 4), Precision()), held_by(Engine("FSDP2", 4), bf16, several=False)
    assert (ddp.weights, ddp.gradients, ddp.moments, ddp.buffers) == (4 * COUNT, 4 * COUNT, 8 * COUNT, 4 * COUNT)
    assert (fsdp.weights, fsdp.gradients, fsdp.moments) == (COUNT, COUNT, 2 * COUNT)
    assert fsdp.buffers == 2 * (2 * 500 * 256 + 256) + LAYER * (2 + 4) + 2 * LAYER * 2
    assert held_by(Engine("FSDP2", 4), bf16).gradients == 4 * COUNT  # several micro-batches: whole until the last
    two, three = held_by(Engine("ZeRO-2", 4), bf16), held_by(Engine("ZeRO-3", 4), bf16)
    assert (two.weights, two.gradients, two.master, two.moments) == (2 * COUNT, COUNT / 2, COUNT, 2 * COUNT)
    assert (three.weights, three.gradients, three.master, three.moments) == (COUNT / 2, COUNT / 2, COUNT, 2 * COUNT)
    away = held_by(Engine("ZeRO-3", 4, "all"), bf16)
    assert (away.weights, away.master, away.moments) == (0, 0, 0)
    assert away.host == COUNT / 2 + COUNT / 2 + COUNT + 2 * COUNT + COUNT  # weights, gradients, master, moments, step


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8.030),
        ("meta-llama/Meta-Llama-3-70B", 70.554),
        ("mistralai/Mistral-7B-v0.1", 7.242),
        ("google/gemma-2-9b-it", 9.242),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.494),
    ],
)
def test_published_shapes_have_the_published_numbers_of_parameters(name, billions):
    assert build_empty_model(published_config(name)).num_parameters() / 1e9 == pytest.approx(billions, abs=5e-4)


def test_a_name_that_is_not_known_has_no_shape():
    assert published_config("someone/my-8b") is None


def test_a_folder_without_a_config_has_none(tmp_path):
    assert load_config(str(tmp_path / "nothing")) is None
    (tmp_path / "config.json").write_text("{}")
    assert load_config(str(tmp_path)) is None


def test_a_model_that_cannot_be_built_is_one_line():
    with pytest.raises(ModelError, match="no model can be built from this config"):
        build_empty_model(ViTConfig())


def test_quantised_layers_take_half_a_byte_and_their_adapter_is_float32():
    peft = pytest.importorskip("peft")
    config, precision = config_of(), Precision(BF16, BF16, bits=4)
    with torch.device("meta"):
        model = peft.get_peft_model(
            build_empty_model(config, dtype=BF16), peft.LoraConfig(r=2, target_modules=["q_proj"])
        )
    got = estimate_memory(Counts.of(model, config, precision), 1000, precision)
    adapter = 4 * 2 * (256 + 256)
    linear = 4 * (LAYER - 2 * 256)
    dense = 2 * 500 * 256 + 4 * 2 * 256 + 256
    assert got.trainable == adapter
    assert got.weights == pytest.approx((0.55 * linear + 2 * dense + 4 * adapter) / GIB)
    assert got.gradients == pytest.approx(4 * adapter / GIB) and got.moments == pytest.approx(8 * adapter / GIB)
    assert got.master == 0
