"""References in the trainer: live, precomputed, adapter off; what the reference is, and what the cache does."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load

from preftune.data.plan import Cut
from preftune.errors import CheckpointError, DataError, RecipeError, TrainingError
from preftune.objectives import load_objective
from preftune.train.arguments import PreferenceArguments
from preftune.train.trainer import PreferenceTrainer
from tests.small import build_groups, build_model

PAIRS = build_groups(12)
ROWS = [replace(g, scores=(float(n % 2),)) for n, g in enumerate(build_groups(12, responses=1))]


def build(folder, model=None, objective="dpo", data=None, **changes):
    keys = ("reference_model", "precompute_reference", "reference_cache", "cut")
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    args = PreferenceArguments(**{**settings, **{k: v for k, v in changes.items() if k not in keys}})
    own = {key: value for key, value in changes.items() if key in keys}
    data = data or (ROWS if objective == "kto" else PAIRS)
    model = build_model() if model is None else model
    return PreferenceTrainer(model, args, objective=objective, train_dataset=data, eval_dataset=data, **own)


def losses(trainer):
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def adapted(model=None, **settings):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(model or build_model(), config)


@pytest.mark.parametrize("objective", ["dpo", "ipo", "kto", "bco_pair", "aot"])
def test_live_and_precomputed_references_train_alike(tmp_path, objective):
    live = losses(build(tmp_path / "a", objective=objective))
    table = {"precompute_reference": True, "reference_cache": tmp_path / "cache"}
    computed = build(tmp_path / "b", objective=objective, **table)
    assert computed.reference is None
    assert losses(computed) == pytest.approx(live, rel=1e-6)
    assert losses(build(tmp_path / "c", objective=objective, **table)) == pytest.approx(live, rel=1e-6)  # from disk


def test_the_cut_changes_nothing_with_a_precomputed_reference(tmp_path):
    cache = {"precompute_reference": True, "reference_cache": tmp_path / "cache"}
    found = [losses(build(tmp_path, cut=Cut(max_groups=n), **cache)) for n in (1, 4)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_adapter_off_live_and_precomputed_agree_with_a_second_model(tmp_path):
    off = losses(build(tmp_path / "a", adapted()))
    other = losses(build(tmp_path / "b", adapted(), reference_model=build_model()))
    table = {"precompute_reference": True, "reference_cache": tmp_path / "cache"}
    computed = losses(build(tmp_path / "c", adapted(), **table))
    assert off == pytest.approx(other, rel=1e-6)
    assert off == pytest.approx(computed, rel=1e-6)
    assert off[0] == pytest.approx(math.log(2), abs=1e-6)


def test_the_reference_of_a_trained_adapter_is_that_adapter(tmp_path):
    """An adapter from SFT, then DPO on it: the reference is the SFT model, not the base model."""
    sft = build(tmp_path / "sft", adapted(), objective="sft", data=build_groups(12, responses=1), learning_rate=0.1)
    sft.train()
    sft.save_model()
    base_loss = build(tmp_path / "x", adapted()).evaluate()["eval_logps/chosen"]

    peft = pytest.importorskip("peft")
    started = peft.PeftModel.from_pretrained(build_model(), str(tmp_path / "sft"), is_trainable=True)
    trainer = build(tmp_path / "dpo", started)
    assert trainer.reference.describe() == "the starting adapter, frozen"
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert abs(before["eval_logps/chosen"] - base_loss) > 0.1  # it is another model than the base
    wanted = sft.model.merge_and_unload()
    merged = losses(build(tmp_path / "merged", adapted(build_model()), reference_model=wanted))
    again = peft.PeftModel.from_pretrained(build_model(), str(tmp_path / "sft"), is_trainable=True)
    named = losses(build(tmp_path / "named", again, reference_model=sft_model(tmp_path / "sft")))
    own = losses(trainer)
    assert own == pytest.approx(named, rel=1e-4)
    assert own != pytest.approx(merged, rel=1e-2)


def sft_model(folder):
    peft = pytest.importorskip("peft")
    return peft.PeftModel.from_pretrained(build_model(), str(folder)).merge_and_unload()


def test_frozen_parts_are_shared_with_the_reference(tmp_path):
    model = build_model()
    model.model.embed_tokens.requires_grad_(False)
    trainer = build(tmp_path, model)
    assert "model.embed_tokens.weight" not in trainer.reference.kept
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


class TestCache:
    def tables(self, folder):
        return sorted(folder.glob("*.safetensors"))

    def build(self, tmp_path, **changes):
        return build(tmp_path / "run", precompute_reference=True, reference_cache=tmp_path / "cache", **changes)

    def test_the_same_inputs_are_not_computed_again(self, tmp_path, caplog):
        self.build(tmp_path)
        (first,) = self.tables(tmp_path / "cache")
        written = first.stat().st_mtime_ns
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="preftune"):
            self.build(tmp_path)
        assert first.stat().st_mtime_ns == written
        assert sum("Reference log-probs of 12 rows: from " in r.message for r in caplog.records) == 2

    @pytest.mark.parametrize("change", ["data", "weights", "precision"])
    def test_a_changed_input_is_computed_anew(self, tmp_path, change):
        self.build(tmp_path)
        changed = [replace(PAIRS[0], prompt_ids=[9, *PAIRS[0].prompt_ids]), *PAIRS[1:]]
        self.build(
            tmp_path,
            **{
                "data": {"data": changed},
                "weights": {"model": build_model(seed=7)},
                "precision": {"bf16": True},
            }[change],
        )
        assert len(self.tables(tmp_path / "cache")) == 2

    @pytest.mark.parametrize("damage", ["cut", "value"])
    def test_a_damaged_table_is_computed_again(self, tmp_path, damage, caplog):
        wanted = [group.reference for group in self.build(tmp_path).train_dataset]
        (table,) = self.tables(tmp_path / "cache")
        content = table.read_bytes()
        table.write_bytes(content[:-8] if damage == "cut" else content[:-2] + b"\x00\x11")
        found = [group.reference for group in self.build(tmp_path).train_dataset]
        assert found == wanted
        if damage == "value":
            assert any("is not whole; the reference is computed again" in r.message for r in caplog.records)
        assert torch.equal(load(table.read_bytes())["sums"], load(content)["sums"])

    @pytest.mark.parametrize("change", ["configuration", "adapter"])
    def test_settings_are_part_of_the_key(self, tmp_path, change):
        first, second = build_model(), build_model()
        if change == "configuration":
            second.config.rope_parameters = {**second.config.rope_parameters, "rope_theta": 100.0}
        else:
            first, second = adapted(first, lora_alpha=4), adapted(second, lora_alpha=16)
            for model in (first, second):
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        if "lora_" in name:
                            parameter.fill_(0.01)
        self.build(tmp_path, model=first)
        self.build(tmp_path, model=second)
        assert len(self.tables(tmp_path / "cache")) == 2

    def test_a_folder_that_cannot_be_written_is_said_before_the_work(self, tmp_path):
        (tmp_path / "cache").write_text("a file")
        with pytest.raises(TrainingError, match=r"reference_cache: '.*cache' cannot be written"):
            self.build(tmp_path)

    def test_rows_that_were_not_there_at_the_start_are_refused(self, tmp_path):
        trainer = self.build(tmp_path)
        with pytest.raises(RecipeError, match="these rows have none"):
            trainer.evaluate(build_groups(4, seed=8))

    def test_log_probs_that_are_not_finite_are_refused_with_their_rows(self, tmp_path):
        model = build_model()
        with torch.no_grad():
            model.model.embed_tokens.weight[PAIRS[3].prompt_ids[0]] = float("nan")
        hit = [g for g in PAIRS if PAIRS[3].prompt_ids[0] in [*g.prompt_ids, *g.response_ids[0], *g.response_ids[1]]]
        with pytest.raises(TrainingError, match=f"not finite for {len(hit)} rows: small\\[train\\] row"):
            self.build(tmp_path, reference_model=model)
        assert not self.tables(tmp_path / "cache")


class TestRunningMean:
    def test_a_resume_goes_on_with_it(self, tmp_path):
        settings = {"objective": "bco_pair", "save_strategy": "steps", "save_steps": 3}
        whole = build(tmp_path / "a", **settings)
        wanted = losses(whole)
        saved = json.loads((tmp_path / "a/checkpoint-3/running_mean.json").read_text())
        assert saved[1] == 3 * 4 * 2
        again = build(tmp_path / "a", **settings)
        again.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-3"))
        found = [line["loss"] for line in again.state.log_history if "loss" in line]
        assert found == wanted
        assert torch.equal(again.running.mean, whole.running.mean)

    def test_other_objectives_keep_nothing_of_their_steps(self, tmp_path):
        trainer = build(tmp_path)
        trainer.train()
        assert trainer.running.pending == []

    def test_it_moves_the_loss(self, tmp_path):
        trainer = build(tmp_path, objective="bco_pair")
        trainer.train()
        assert trainer.running.mean != 0
        last = [line for line in trainer.state.log_history if "baseline" in line][-1]
        assert last["baseline"] != 0


@pytest.mark.parametrize("kind", ["named", "precomputed"])
def test_a_reference_computes_in_the_precision_of_the_policy(tmp_path, kind):
    own = losses(build(tmp_path / "a", bf16=True))
    table = {"precompute_reference": True, "reference_cache": tmp_path / "cache"}
    other = build(tmp_path / "b", bf16=True, **({"reference_model": build_model()} if kind == "named" else table))
    # rounding by how rows are packed gives 2e-5 without bfloat16 in the processor, a float32 reference 3e-4
    assert losses(other)[0] == pytest.approx(own[0], abs=1e-4)


def test_evaluation_steps_do_not_grow_with_the_processes(tmp_path):
    source = build(tmp_path, objective="kto").get_eval_dataloader().dataset
    assert source.global_batch == 256


@pytest.mark.parametrize("which", ["train", "eval"])
def test_kto_refuses_rows_of_one_prompt_before_it_starts(tmp_path, which):
    same = [replace(row, prompt_ids=[5, 6]) for row in ROWS]
    sets = {"train_dataset": ROWS, "eval_dataset": ROWS, f"{which}_dataset": same}
    args = PreferenceArguments(output_dir=str(tmp_path), report_to="none")
    with pytest.raises(DataError, match=r"row 1: all 12 rows have the same prompt.*an objective for pairs"):
        PreferenceTrainer(build_model(), args, objective="kto", **sets)


def test_a_reference_that_is_the_policy_or_not_needed_is_refused(tmp_path):
    model = build_model()
    with pytest.raises(RecipeError, match="is the policy itself"):
        build(tmp_path, model, reference_model=model)
    with pytest.raises(RecipeError, match="SimPO has no reference model"):
        build(tmp_path, objective="simpo", reference_model=model)


def test_a_mixture_over_the_whole_step_keeps_its_terms(tmp_path):
    mixed = load_objective("mixture", mixture={"aot": 1.0, "dpo": 1.0})
    assert {"eval_losses/aot", "eval_losses/dpo"} <= build(tmp_path, objective=mixed).evaluate().keys()


@pytest.mark.parametrize(
    "more", [{"modules_to_save": ["lm_head"]}, {"use_dora": True}], ids=["whole module", "magnitudes"]
)
def test_what_an_adapter_trains_beside_its_factors_is_no_other_reference(tmp_path, more):
    whole, again = (build(tmp_path, adapted(**more), save_strategy="steps", save_steps=2) for _ in range(2))
    wanted = losses(whole)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [line["loss"] for line in again.state.log_history if "loss" in line] == wanted
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_reference_is_another_run(tmp_path):
    build(tmp_path, save_strategy="steps", save_steps=3).train()
    other = build(tmp_path, reference_model=build_model(seed=4))
    with pytest.raises(CheckpointError, match="reference"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
