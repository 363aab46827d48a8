"""Adapters: packed log-probs against the slow loop through the whole PEFT model, which layers, files, refusals."""

from __future__ import annotations

import importlib
import json
import logging
import sys

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers

from preftune.data.pack import pack
from preftune.errors import MissingExtraError, ModelError, RecipeError
from preftune.model.freeze import trainable_summary
from preftune.model.heads import to_scorer
from preftune.model.load import disable_dropout, load_model, load_tokenizer
from preftune.model.lora import LoraSettings, add_adapter, load_adapter, save_plain_lora, target_modules
from preftune.model.policy import to_policy
from tests.small import (
    ARCHITECTURES,
    SHAPE,
    build_groups,
    build_model,
    gradients,
    lengths_of,
    slow_logps,
    worst_gradient_gap,
)

GROUPS = build_groups(4)
LENGTHS = lengths_of(GROUPS)
BATCH = pack(GROUPS)
SMALL = {"r": 4, "alpha": 8}
VARIANTS = {
    "lora": {},
    "rslora": {"rslora": True},
    "gaussian": {"init": "gaussian"},
    "dora": {"dora": True},
    "lora on the head": {"target_modules": ["ALL", "lm_head"]},
    "rslora on the head": {"target_modules": "DEFAULT lm_head", "rslora": True},
    "head trained whole": {"modules_to_save": ["lm_head"]},
    "embeddings and head trained whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
}
SPLITS = {  # these move part of the base weights into the adapter, in float32 at most
    "pissa": {"init": "pissa"},
    "pissa on the head": {"init": "pissa", "target_modules": ["ALL", "lm_head"]},
    "pissa, random projections": {"init": "pissa_niter_4"},
    "olora": {"init": "olora"},
    "pissa and rslora": {"init": "pissa", "rslora": True},
    "pissa and dora": {"init": "pissa", "dora": True},
}


def shake(model, by=0.05):
    """As training would: every trainable weight moves."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=by)
    return model


def adapted(name="llama", dtype=torch.float32, task="CAUSAL_LM", **settings):
    return shake(add_adapter(build_model(name, dtype), LoraSettings(**{**SMALL, **settings}), task))


def logits(model, ids=((3, 9, 14, 7, 30, 31),)):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids), use_cache=False).logits


def loss_of(means):
    return F.softplus((means * torch.tensor([1.0, 2.0])).sum(1)).sum()


def check(model, fused, tolerance, gradient_tolerance):
    """Log-probs and the gradients of what is trained, against one sequence at a time through the whole model."""
    model.zero_grad()
    wanted = slow_logps(model, GROUPS) / LENGTHS
    loss_of(wanted).backward()
    wanted_gradients = gradients(model)
    assert wanted_gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    to_policy(model, "packed")
    assert model.road == "packed"
    if fused:
        loss, sums = model(batch=BATCH, group_loss=lambda sums, some: loss_of(sums / LENGTHS[some]))
    else:
        sums = model(batch=BATCH).sums
        loss = loss_of(sums / LENGTHS)
    loss.backward()
    assert (sums / LENGTHS - wanted).abs().max() <= tolerance
    assert worst_gradient_gap(gradients(model), wanted_gradients) <= gradient_tolerance


# --- log-probs and gradients


@pytest.mark.parametrize("fused", [False, True], ids=["recomputed", "fused"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_equals_the_slow_loop_through_the_whole_model(variant, fused):
    check(adapted(dtype=torch.float64, **VARIANTS[variant]), fused, 1e-6, 1e-5)


@pytest.mark.parametrize("variant", SPLITS)
def test_packed_equals_slow_where_the_adapter_holds_part_of_the_base(variant):
    check(adapted(**SPLITS[variant]), True, 1e-5, 1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_slow_for_every_architecture(name):
    tied = name in ("llama-tied", "qwen2-tied", "gemma2", "gpt2", "cohere2")
    model = build_model(name)
    assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    check(adapted(name, target_modules="ALL" if tied else ["ALL", "lm_head"]), True, 1e-5, 1e-4)


def test_a_head_beside_other_kinds_of_layer():
    model = build_model("gpt2", tie_word_embeddings=False)  # its other layers are Conv1D
    check(shake(add_adapter(model, LoraSettings(**SMALL, target_modules=["ALL", "lm_head"]))), True, 1e-5, 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_its_adapter_a_policy_is_the_base_model(variant):
    base = to_policy(build_model(), "packed")(batch=BATCH).sums
    model = to_policy(adapted(**VARIANTS[variant]), "packed")
    assert (model(batch=BATCH).sums - base).abs().max() > 0.1
    with model.disable_adapter():
        assert torch.allclose(model(batch=BATCH).sums, base, atol=1e-4)
    assert (model(batch=BATCH).sums - base).abs().max() > 0.1


def test_a_fresh_adapter_changes_nothing():
    base = to_policy(build_model(), "packed")(batch=BATCH).sums
    for settings in ({}, {"target_modules": ["ALL", "lm_head"]}, {"dora": True}, *SPLITS.values()):
        model = to_policy(add_adapter(build_model(), LoraSettings(**{**SMALL, **settings})), "packed")
        assert torch.allclose(model(batch=BATCH).sums, base, atol=1e-3), settings


def test_an_adapter_that_comes_after_the_policy_is_seen():
    model = to_policy(build_model(), "packed")
    base = model(batch=BATCH).sums
    model = shake(add_adapter(model, LoraSettings(**SMALL, target_modules=["lm_head"])))
    found = model(batch=BATCH).sums
    assert (found - base).abs().max() > 0.1
    assert torch.allclose(found, slow_logps(model, GROUPS), atol=1e-4)


def test_dropout_on_the_head_is_drawn_for_states_and_kept_for_the_backward_pass():
    torch.manual_seed(0)
    model = to_policy(adapted(target_modules=["lm_head"], dropout=0.5), "packed").train()
    first, second = (model(batch=BATCH).sums for _ in range(2))
    assert not torch.equal(first, second)
    mean = torch.stack([model(batch=BATCH).sums for _ in range(300)]).mean(0).detach()
    assert (mean - model.eval()(batch=BATCH).sums).abs().max() < 1.0  # nats a response of about 10 tokens


def test_a_small_change_of_a_bfloat16_head_is_not_rounded_away():
    """B·A of 1e-5 beside weights of 0.1, whose last digit in bfloat16 is 4e-4."""
    model = add_adapter(build_model(), LoraSettings(r=2, alpha=2, target_modules=["lm_head"]))
    head = model.get_base_model().lm_head
    torch.manual_seed(2)
    with torch.no_grad():
        head.lora_A["default"].weight.normal_(0, 1e-2)
        head.lora_B["default"].weight.normal_(0, 1e-3)
    states = torch.randn(20, 32)
    seen = {}

    def score(states, weight, bias):
        seen["logits"] = states.bfloat16().double() @ weight.bfloat16().double().t()
        return states.sum()

    to_policy(model, "packed")
    head(states, score=score)
    with model.disable_adapter():
        base = states.bfloat16().double() @ head.base_layer.weight.bfloat16().double().t()
    change = states.double() @ (head.lora_B["default"].weight @ head.lora_A["default"].weight).double().t()
    assert ((seen["logits"] - base) - change).norm() < 0.02 * change.norm()
    merged = (head.base_layer.weight + head.lora_B["default"].weight @ head.lora_A["default"].weight).bfloat16()
    lost = states.bfloat16().double() @ merged.double().t() - base
    assert (lost - change).norm() > 0.5 * change.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_low_precision_stays_near_float32(dtype):
    exact = to_policy(adapted(target_modules=["ALL", "lm_head"]), "packed")(batch=BATCH).means
    model = add_adapter(build_model().to(dtype), LoraSettings(**SMALL, target_modules=["ALL", "lm_head"]))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    to_policy(shake(model), "packed")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        found = model(batch=BATCH)
        loss, _ = model(batch=BATCH, group_loss=lambda sums, some: loss_of(sums / LENGTHS[some]))
    loss.backward()
    assert (found.means - exact).abs().max() < 0.1
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_with_frozen_embeddings(reentrant):
    model = adapted(target_modules=["ALL", "lm_head"])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    check(model.train(), True, 1e-5, 1e-4)


def test_no_dropout_unless_asked_for():
    model = to_policy(adapted(dropout=0.3), "packed").train()
    assert not torch.equal(model(batch=BATCH).sums, model(batch=BATCH).sums)
    assert disable_dropout(model) == 3 * 7  # layers, adapters in each
    assert torch.equal(model(batch=BATCH).sums, model(batch=BATCH).sums)


# --- which layers

LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
SPLIT_QKV = ["k_proj", "q_proj", "v_proj"]
FUSED = ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]
MLA = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 3,
}
BUILT = {  # further architectures: settings, ALL, DEFAULT
    "Phi3Config": ({}, ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"], ["qkv_proj"]),
    "FalconConfig": ({}, FUSED, ["query_key_value"]),
    "GPTNeoXConfig": ({}, FUSED, ["query_key_value"]),
    "MptConfig": (
        {"d_model": 32, "n_heads": 4, "n_layers": 2},
        ["Wqkv", "down_proj", "out_proj", "up_proj"],
        ["Wqkv"],
    ),
    "DeepseekV3Config": (
        MLA,
        ["down_proj", "gate_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj", "up_proj"],
        ["kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj"],
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_and_default_of_every_architecture(name):
    model = build_model(name)
    every, default = {
        "gpt2": (["c_attn", "c_fc", "c_proj"], ["c_attn"]),
        "gpt-oss": (["k_proj", "o_proj", "q_proj", "v_proj"], SPLIT_QKV),
    }.get(name, (LLAMA, SPLIT_QKV))
    assert target_modules(model, "ALL") == every
    assert target_modules(model, "all-linear") == every
    assert target_modules(model, "DEFAULT") == default
    assert target_modules(model, ["DEFAULT", "o_proj"] if name != "gpt2" else ["default"])[: len(default)] == default
    adapter = add_adapter(model, LoraSettings(**SMALL))
    found = {n.rpartition(".")[2] for n, m in adapter.get_base_model().named_modules() if hasattr(m, "lora_A")}
    assert found == set(every)


@pytest.mark.parametrize("kind", BUILT)
def test_all_and_default_of_fused_projections(kind):
    settings, every, default = BUILT[kind]
    config = getattr(transformers, kind)(**{**SHAPE, "num_hidden_layers": 2, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert target_modules(model, "ALL") == every
    assert target_modules(model, "DEFAULT") == default


def test_the_score_head_of_a_reward_model_is_never_a_target():
    config = transformers.LlamaConfig(**SHAPE, num_labels=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert target_modules(model, "ALL") == LLAMA
    with pytest.raises(ModelError, match="the score head is trained whole"):
        target_modules(model, ["score"])
    model = to_scorer(shake(add_adapter(model, LoraSettings(**SMALL), task="SEQ_CLS")), "packed")
    whole = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert whole == ["base_model.model.score.modules_to_save.default.weight"]
    batch = pack(GROUPS, feed_last=True)
    scores = model(batch=batch).sums
    slow = [model(input_ids=torch.tensor([g.prompt_ids + r])).logits[0, 0] for g in GROUPS for r in g.response_ids]
    assert torch.allclose(scores.flatten(), torch.stack(slow), atol=1e-5)
    scores.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_short_name_that_would_fit_more_is_spelt_out():
    model = build_model()
    model.model.layers[0].extra = torch.nn.ModuleDict({"lm_head": torch.nn.Linear(32, 32)})
    targets = target_modules(model, "ALL")
    assert "model.layers.0.extra.lm_head" in targets
    assert "lm_head" not in targets


def test_whole_modules_are_left_out_of_all():
    model = add_adapter(build_model(), LoraSettings(**SMALL, modules_to_save=["gate_proj", "norm"]))
    assert "gate_proj" not in model.peft_config["default"].target_modules
    # PEFT fits 'norm' to 'input_layernorm' too
    whole = {n for n, m in model.get_base_model().named_modules() if hasattr(m, "original_module")}
    assert whole == {f"model.layers.{i}.mlp.gate_proj" for i in range(3)} | {"model.norm"}


REFUSED = [
    ({"target_modules": ["q_porj"]}, "has no module 'q_porj'. Did you mean 'q_proj'?"),
    ({"target_modules": ["mlp"]}, "'mlp' is a LlamaMLP, and LoRA goes on linear layers"),
    ({"modules_to_save": ["lm_haed"]}, "lora_modules_to_save: LlamaForCausalLM has no module 'lm_haed'"),
    ({"target_modules": ["lm_head"], "modules_to_save": ["lm_head"]}, "does not fit LlamaForCausalLM"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED, ids=str)
def test_a_name_that_does_not_fit_is_refused_in_one_line(settings, said):
    with pytest.raises(ModelError) as refused:
        add_adapter(build_model(), LoraSettings(**settings))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_default_without_attention_is_refused():
    config = transformers.MambaConfig(**{**SHAPE, "num_hidden_layers": 2})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="DEFAULT found no query, key or value projection in MambaForCausalLM"):
        target_modules(model, "DEFAULT")
    assert "in_proj" in target_modules(model, "ALL")


@pytest.mark.parametrize(
    ("fields", "key"),
    [({"r": 0}, "lora_r"), ({"alpha": 0}, "lora_alpha"), ({"dropout": 1.0}, "lora_dropout"), ({"init": 1}, "lora_init")]
    + [({"init": name}, "lora_init") for name in ("pisa", "pissa_niter_0", False)],
)
def test_settings_out_of_range_are_refused_by_their_key(fields, key):
    with pytest.raises(RecipeError, match=f"'{key}' must be"):
        LoraSettings(**fields)


def test_what_cannot_be_scored_or_split_is_refused():
    with pytest.raises(ModelError, match="not with DoRA"):
        to_policy(adapted(target_modules=["lm_head"], dora=True))
    with pytest.raises(ModelError, match="olora cannot split the Conv1D layers of GPT2LMHeadModel"):
        adapted("gpt2", init="olora")
    with pytest.raises(ModelError, match="has an adapter already"):
        add_adapter(adapted(), LoraSettings())


# --- tied weights


@pytest.mark.parametrize(("name", "table"), [("llama", "embed_tokens"), ("gpt2", "wte")])
def test_the_word_embedding_is_the_input_embeddings_whatever_their_name(name, table):
    model = build_model(name, tie_word_embeddings=False)
    assert target_modules(model, ["EMBEDDING"]) == [table]
    assert target_modules(model, ["DEFAULT", "embedding"]) == [*target_modules(model, "DEFAULT"), table]
    adapter = add_adapter(model, LoraSettings(r=2, target_modules=["EMBEDDING"]))
    assert any("lora_embedding_A" in path for path, weight in adapter.named_parameters() if weight.requires_grad)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_lora_on_one_side_of_a_tied_weight_is_refused(name):
    with pytest.raises(ModelError, match="is tied, input embeddings and output head are one weight"):
        adapted("llama-tied", target_modules=["ALL", name])


@pytest.mark.parametrize("whole", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]], ids=str)
def test_a_copy_of_a_tied_weight_is_trained_merged_and_saved_apart(whole, tmp_path):
    model = adapted("llama-tied", modules_to_save=whole)
    check(model, True, 1e-5, 1e-4)
    wanted = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    again = load_adapter(build_model("llama-tied"), str(tmp_path / "adapter"))
    assert torch.allclose(logits(again), wanted, atol=1e-5)
    merged = model.merge_and_unload()
    assert torch.allclose(logits(merged), wanted, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(load_model(str(tmp_path / "merged"))), wanted, atol=1e-5)


# --- merging and files


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llama", variant) for variant in (*VARIANTS, *SPLITS)]
    + [("gpt2", variant) for variant in ("lora", "rslora", "dora", "pissa", "pissa, random projections")],
)
def test_a_merged_model_gives_the_same_logits_and_is_still_a_policy(name, variant):
    model = to_policy(adapted(name, **{**VARIANTS, **SPLITS}[variant]), "packed")
    wanted, sums = logits(model), model(batch=BATCH).sums
    merged = model.merge_and_unload()
    assert isinstance(merged, transformers.PreTrainedModel)
    assert torch.allclose(logits(merged), wanted, atol=1e-5)
    assert torch.allclose(merged(batch=BATCH).sums, sums, atol=1e-4)
    assert not any("lora_" in key or "modules_to_save" in key for key in merged.state_dict())


@pytest.mark.parametrize("variant", [*VARIANTS, *SPLITS])
def test_an_adapter_comes_back_from_its_files_and_trains_on(variant, tmp_path):
    build_model().save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"))
    model = to_policy(shake(add_adapter(model, LoraSettings(**SMALL, **{**VARIANTS, **SPLITS}[variant]))), "packed")
    wanted = model(batch=BATCH).sums
    model.save_pretrained(tmp_path / "adapter")
    files = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert "model.safetensors" not in files
    torch.manual_seed(77)  # another state of the generator than at the first start
    for again in (load_adapter(build_model(), str(tmp_path / "adapter")), load_model(str(tmp_path / "adapter"))):
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert {n for n, p in again.named_parameters() if p.requires_grad} == trained
        to_policy(again, "packed")
        assert torch.allclose(again(batch=BATCH).sums, wanted, atol=1e-3)
        again(batch=BATCH).sums.sum().backward()
        assert gradients(again).keys() == trained


@pytest.mark.parametrize("variant", ["lora", *SPLITS])
def test_plain_lora_fits_the_untouched_base_for_anybody(variant, tmp_path):
    model = adapted(**{**VARIANTS, **SPLITS}[variant])
    wanted = logits(model)
    save_plain_lora(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] is True
    torch.manual_seed(5)
    base = build_model()
    before = base.model.layers[0].self_attn.q_proj.weight.clone()
    plain = peft.PeftModel.from_pretrained(base, str(tmp_path))
    assert torch.allclose(logits(plain), wanted, atol=1e-4)
    assert torch.equal(plain.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight, before)


def test_a_policy_with_an_adapter_generates_as_the_merged_model():
    model = to_policy(adapted(), "packed").eval()
    ids, mask = torch.tensor([[0, 0, 1, 5], [1, 9, 14, 7]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    answer = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    found = model.generate(**answer)
    assert torch.equal(found, model.merge_and_unload().generate(**answer))
    assert not torch.equal(found, build_model().eval().generate(**answer))


def test_an_adapter_of_a_language_model_starts_a_reward_model(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    config = transformers.LlamaConfig(**SHAPE, num_labels=1)
    started = load_adapter(transformers.AutoModelForSequenceClassification.from_config(config), str(tmp_path))
    assert started.peft_config["default"].task_type == "SEQ_CLS"
    loaded = dict(started.named_parameters())
    factors = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert all(torch.equal(loaded[name], factor) for name, factor in factors.items())
    started.save_pretrained(tmp_path / "reward")
    with pytest.raises(ModelError, match="is of a reward model and cannot go on LlamaForCausalLM"):
        load_adapter(build_model(), str(tmp_path / "reward"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 64}, "size mismatch for base_model"),
        (
            {"num_hidden_layers": 4},
            "the adapter has no model.layers.3.self_attn.q_proj.lora_A.weight, and 14 names differ",
        ),
        ({"num_hidden_layers": 2}, "the model has no model.layers.2."),
    ],
)
def test_an_adapter_of_another_model_is_refused_in_one_line(changes, said, tmp_path):
    adapted().save_pretrained(tmp_path)
    with pytest.raises(ModelError) as refused:
        load_adapter(build_model(**changes), str(tmp_path))
    assert f"The adapter in '{tmp_path}' does not fit LlamaForCausalLM" in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_architecture_and_another_base_are_noticed(tmp_path, caplog):
    build_model().save_pretrained(tmp_path / "base")
    build_model(seed=5).save_pretrained(tmp_path / "other")
    add_adapter(load_model(str(tmp_path / "base")), LoraSettings(**SMALL)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="does not fit GPT2LMHeadModel: Target modules"):
        load_adapter(build_model("gpt2"), str(tmp_path / "adapter"))
    load_adapter(load_model(str(tmp_path / "base")), str(tmp_path / "adapter"))
    assert "was trained on" not in caplog.text
    with caplog.at_level(logging.WARNING):
        load_adapter(load_model(str(tmp_path / "other")), str(tmp_path / "adapter"))
    assert f"was trained on '{tmp_path}/base' and goes on '{tmp_path}/other' now" in caplog.text


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_an_adapter_folder_that_cannot_be_used_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_model().save_pretrained(tmp_path / "base")
    folder = tmp_path / "adapter"
    add_adapter(load_model("base"), LoraSettings(**SMALL)).save_pretrained(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    load_model(str(folder))  # a relative base is looked up from the current folder

    def refused(load, *args):
        with pytest.raises(ModelError) as error:
            load(*args)
        assert "\n" not in str(error.value)
        return str(error.value)

    for base, said in [
        (None, "has no base_model_name_or_path"),
        ("./gone", f"base_model_name_or_path './gone' does not exist (looked up from {tmp_path})"),
        ("/gone/away", "base_model_name_or_path '/gone/away' does not exist. Correct it"),
        (str(folder), "is an adapter itself"),
    ]:
        edit(folder, base_model_name_or_path=base)
        assert said in refused(load_model, str(folder))
    assert "has no adapter_config.json" in refused(load_adapter, build_model(), str(tmp_path / "base"))
    assert "does not exist" in refused(load_adapter, build_model(), str(tmp_path / "gone"))
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    assert "does not fit LlamaForCausalLM" in refused(load_adapter, build_model(), str(folder))
    edit(folder, peft_type="IA3")
    assert "is of the kind IA3; LoRA adapters" in refused(load_adapter, build_model(), str(folder))
    (folder / "adapter_config.json").write_text("{")
    assert "is not a JSON object" in refused(load_model, str(folder))


def test_the_tokenizer_of_an_adapter_is_that_of_its_base(tmp_path):
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "base")
    build_model().save_pretrained(tmp_path / "base")
    add_adapter(load_model(str(tmp_path / "base")), LoraSettings(**SMALL)).save_pretrained(tmp_path / "adapter")
    assert load_tokenizer(str(tmp_path / "adapter")).convert_tokens_to_ids("b") == 1


def test_the_summary_of_an_adapter():
    model = add_adapter(build_model(), LoraSettings(r=4, target_modules=["q_proj"]))
    assert trainable_summary(model).startswith("trains 768 of ")  # 3 layers, 4 * (32 + 32)


# --- without the extra


def test_without_peft_the_extra_is_named_and_the_rest_works(tmp_path, monkeypatch):
    build_model().save_pretrained(tmp_path / "base")
    add_adapter(load_model(str(tmp_path / "base")), LoraSettings(**SMALL)).save_pretrained(tmp_path / "adapter")
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "preftune.model.lora")
    with pytest.raises(MissingExtraError, match=r"pip install 'preftune\[lora\]'"):
        importlib.import_module("preftune.model.lora")
    with pytest.raises(MissingExtraError, match="'lora' extra"):
        load_model(str(tmp_path / "adapter"))
    to_policy(load_model(str(tmp_path / "base")))
