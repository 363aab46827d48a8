"""The trainer against a bare PyTorch loop, against itself resumed, and against the Trainer it is built on."""

from __future__ import annotations

import inspect
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, get_scheduler

from preftune.data.plan import Cut, epoch_order
from preftune.errors import CheckpointError, RecipeError, TrainingError
from preftune.train.arguments import PreferenceArguments
from preftune.train.checkpoint import checkpoints, problem, resolve_resume
from preftune.train.held import HeldTrainer
from preftune.train.master import MasterAdamW
from preftune.train.saving import SealedTrainer
from preftune.train.trainer import OVERRIDDEN, PreferenceTrainer
from tests.small import build_group, build_groups, build_model

GROUPS = build_groups(70, longest=12)
STEPS = 10  # two epochs of 16, 16, 16, 16, 6 groups
CUTS = [Cut(max_groups=1), Cut(max_groups=4), Cut(max_groups=16), Cut(max_tokens=120)]


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "max_grad_norm": 0.5,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": 5,
        "disable_tqdm": True,
        "seed": 3,
    }
    return PreferenceArguments(**{**settings, **changes})


def build_trainer(folder, model=None, cut=CUTS[-1], groups=GROUPS, held_out=None, loss=None, **changes):
    loss = loss or {"objective": "simpo", "sft_weight": 0.3}
    model = model or build_model("llama")
    args = arguments(folder, **changes)
    return PreferenceTrainer(model, args, train_dataset=groups, eval_dataset=held_out, cut=cut, **loss)


def losses_of(trainer):
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def distance(one, other):
    """Largest relative difference of any parameter."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).max().item()


@pytest.fixture(scope="module")
def oracle():
    """SimPO and the SFT term, one sequence at a time, with nothing of ours but the order of the rows."""
    model = build_model("llama")
    plain = [p for name, p in model.named_parameters() if "norm" in name]
    decayed = [p for name, p in model.named_parameters() if "norm" not in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    scheduler = get_scheduler("cosine", optimizer, 2, STEPS)
    losses = []
    for epoch in range(2):
        order = epoch_order(len(GROUPS), 3, epoch)
        for start in range(0, len(GROUPS), 16):
            step = [GROUPS[row] for row in order[start : start + 16]]
            tokens = sum(len(group.response_ids[0]) for group in step)
            total = 0.0
            for group in step:
                sums = []
                for response in group.response_ids:
                    ids = torch.tensor([group.prompt_ids + response])
                    logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1]
                    sums.append(-F.cross_entropy(logits, torch.tensor(response), reduction="sum"))
                chosen, rejected = (s / len(r) for s, r in zip(sums, group.response_ids, strict=True))
                loss = -F.logsigmoid(2.0 * (chosen - rejected) - 1.0) / len(step) - 0.3 * sums[0] / tokens
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(total)
    return model, losses


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_training_ends_where_the_bare_loop_ends(tmp_path, oracle, cut):
    model, losses = oracle
    trainer = build_trainer(tmp_path, cut=cut)
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert losses_of(trainer) == pytest.approx(losses, rel=2e-6)
    assert distance(trainer.model, model) < 5e-6


def test_the_padded_road_ends_there_too(tmp_path, oracle):
    trainer = build_trainer(tmp_path, loss={"objective": "simpo", "sft_weight": 0.3, "road": "padded"})
    trainer.train()
    assert distance(trainer.model, oracle[0]) < 5e-6


def test_ten_steps_are_five_and_a_resume_and_five(tmp_path):
    whole = build_trainer(tmp_path / "whole")
    whole.train()
    again = build_trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert losses_of(again) == losses_of(whole)
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_resume_inside_an_epoch_is_bit_for_bit(tmp_path, dropout):
    """Also where random numbers are drawn, and with epochs of which the second must not repeat the first."""
    loss = {"objective": "simpo", "keep_dropout": True, "road": "padded"}

    def trainer(name):
        model = build_model("gpt2")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        return build_trainer(tmp_path / name, model, loss=loss, save_steps=3)

    whole = trainer("whole")
    whole.train()
    again = trainer("again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_batch_is_folded_and_the_product_stays(tmp_path):
    args = arguments(tmp_path)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 16
    assert args.gradient_accumulation_steps == 1
    assert args.logging_nan_inf_filter is False


def test_evaluation_is_the_step_without_the_gradient(tmp_path):
    trainer = build_trainer(tmp_path, held_out=GROUPS[:7])
    metrics = trainer.evaluate()
    wanted = PreferenceTrainer(
        build_model("llama"),
        arguments(tmp_path, max_steps=1, per_device_train_batch_size=7, gradient_accumulation_steps=1),
        objective="simpo",
        sft_weight=0.3,
        train_dataset=GROUPS[:7],
    )
    wanted.train()
    first = wanted.state.log_history[0]
    for key in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "lengths/rejected", "nll"):
        assert metrics[f"eval_{key}"] == pytest.approx(first[key], rel=1e-5)


def test_bfloat16_weights_with_a_master_follow_float32(tmp_path):
    """At a small rate: the master moves as float32 does, where bare bfloat16 weights stand still."""
    start = build_model("llama").to(torch.bfloat16)
    quiet = {"learning_rate": 1e-5, "weight_decay": 0.0, "num_train_epochs": 2}

    def moved(model, **loss):
        trainer = build_trainer(tmp_path / str(loss), model, loss={"objective": "simpo", **loss}, **quiet)
        trainer.train()
        return trainer

    def weights(model):
        return torch.cat([p.detach().float().flatten() for p in model.parameters()])

    def copy(dtype):
        model = build_model("llama").to(torch.bfloat16)
        return model.to(dtype)

    origin = weights(start)
    exact = weights(moved(copy(torch.float32)).model) - origin
    bare = weights(moved(copy(torch.bfloat16), master_weights=False).model) - origin
    trainer = moved(copy(torch.bfloat16))
    masters = trainer.optimizer.optimizer.pairs
    assert isinstance(trainer.optimizer.optimizer, MasterAdamW)
    by_weight = {id(weight): master for weight, master in masters}
    master = torch.cat([by_weight[id(p)].detach().flatten() for p in trainer.model.parameters()]) - origin
    assert F.cosine_similarity(master, exact, dim=0) > 0.97
    assert master.norm() / exact.norm() == pytest.approx(1.0, abs=0.1)
    assert (bare != 0).float().mean() < 0.1  # the reason for the master


def test_masters_are_saved_and_resume_bit_for_bit(tmp_path):
    def trainer(name):
        return build_trainer(tmp_path / name, build_model("llama").to(torch.bfloat16))

    whole = trainer("whole")
    whole.train()
    again = trainer("again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    for (_, one), (_, other) in zip(again.optimizer.optimizer.pairs, whole.optimizer.optimizer.pairs, strict=True):
        assert torch.equal(one, other)


def test_another_optimizer_cannot_keep_masters(tmp_path):
    trainer = build_trainer(tmp_path, build_model("llama").to(torch.bfloat16), optim="sgd")
    with pytest.raises(RecipeError, match="cannot keep float32 masters"):
        trainer.train()


def test_a_non_finite_loss_stops_the_run_and_names_the_rows(tmp_path):
    model = build_model("llama")
    poisoned = [build_group(5, 4, 6, row=row) for row in range(1, 17)]
    poisoned[10].prompt_ids[2] = 4
    for group in poisoned[:10] + poisoned[11:]:
        for ids in (group.prompt_ids, *group.response_ids):
            ids[:] = [i if i != 4 else 5 for i in ids]
    with torch.no_grad():
        model.get_input_embeddings().weight[4] = float("nan")
    trainer = build_trainer(tmp_path, model, groups=poisoned, save_steps=1)
    with pytest.raises(TrainingError, match=r"non-finite at step 1, in 1 groups: small\[train\] row 11\."):
        trainer.train()
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("last", [False, True])
def test_a_non_finite_gradient_is_never_saved(tmp_path, last):
    """Finite log-probs and an infinite gradient: the run stops, also when it happens in the last step of all."""
    trainer = build_trainer(tmp_path, save_steps=1, logging_steps=100)
    wanted = STEPS if last else 3

    def poison(grad):
        return grad * float("inf") if trainer.state.global_step == wanted - 1 else grad

    trainer.model.get_input_embeddings().weight.register_hook(poison)
    with pytest.raises(TrainingError, match=f"gradient became non-finite at step {wanted}"):
        trainer.train()
    assert max(int(path.name.split("-")[1]) for path in checkpoints(tmp_path)) == wanted - 1


def test_workers_change_nothing(tmp_path):
    one, two = build_trainer(tmp_path / "0"), build_trainer(tmp_path / "2", dataloader_num_workers=2)
    one.train()
    two.train()
    assert losses_of(one) == losses_of(two)


def test_two_ranks_of_bfloat16_take_gradients_in_the_type_of_the_buckets(monkeypatch):
    """DDP reduces in the weights' type and refuses any other; a real run of two is in tests/slow."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight], lr=0.1)
    (weight * 2).sum().backward()
    assert weight.grad.dtype == torch.bfloat16
    optimizer.step()
    assert optimizer.pairs[0][1].dtype == torch.float32


class TestCheckpoints:
    def test_a_checkpoint_is_whole_and_listed(self, tmp_path):
        build_trainer(tmp_path).train()
        assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-5"]
        assert all(problem(path) is None for path in checkpoints(tmp_path))
        files = json.loads((tmp_path / "checkpoint-5" / "manifest.json").read_text())["files"]
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(
            files
        )
        assert not (tmp_path / ".incomplete").exists()

    def test_the_oldest_goes_when_there_are_too_many(self, tmp_path):
        build_trainer(tmp_path, save_steps=2, save_total_limit=2).train()
        assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-8"]

    def test_the_best_is_kept_under_its_real_path(self, tmp_path):
        trainer = build_trainer(
            tmp_path,
            held_out=GROUPS[:5],
            save_steps=2,
            save_total_limit=1,
            eval_strategy="steps",
            eval_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="rewards/margins",
            greater_is_better=False,
        )
        trainer.train()
        best = trainer.state.best_model_checkpoint
        assert best == str(tmp_path / "checkpoint-2")
        state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == best

    @pytest.mark.parametrize("damage", ["missing file", "cut file", "flipped byte", "no manifest", "broken manifest"])
    def test_a_damaged_one_is_passed_over_and_refused_by_name(self, tmp_path, damage, caplog):
        build_trainer(tmp_path).train()
        newest = tmp_path / "checkpoint-10"
        target = newest / ("optimizer.pt" if damage == "missing file" else "model.safetensors")
        if damage == "missing file":
            target.unlink()
        elif damage == "cut file":
            target.write_bytes(target.read_bytes()[:-10])
        elif damage == "flipped byte":
            data = bytearray(target.read_bytes())
            data[len(data) // 2] ^= 1
            target.write_bytes(data)
        elif damage == "no manifest":
            (newest / "manifest.json").unlink()
        else:
            (newest / "manifest.json").write_text("{")
        assert resolve_resume("auto", tmp_path) == tmp_path / "checkpoint-5"
        assert "Passed over" in caplog.text
        with pytest.raises(CheckpointError, match="cannot be resumed from"):
            resolve_resume(str(newest), tmp_path)

    def test_a_crash_leaves_nothing_in_the_next_one(self, tmp_path):
        left = tmp_path / ".incomplete" / "checkpoint-5"
        left.mkdir(parents=True)
        (left / "rng_state_3.pth").write_text("stale")
        build_trainer(tmp_path).train()
        assert not (tmp_path / "checkpoint-5" / "rng_state_3.pth").exists()
        assert not (tmp_path / ".incomplete").exists()

    def test_another_run_is_refused(self, tmp_path):
        build_trainer(tmp_path / "one").train()
        checkpoint = tmp_path / "one" / "checkpoint-5"
        for changes in ({"groups": GROUPS[:60]}, {"seed": 4}, {"gradient_accumulation_steps": 2}):
            with pytest.raises(CheckpointError, match="is of another run"):
                build_trainer(tmp_path / "two", **changes).train(resume_from_checkpoint=str(checkpoint))
        for request in (checkpoint, True):
            with pytest.raises(CheckpointError, match="is of another run"):
                build_trainer(tmp_path / "one", seed=4).train(resume_from_checkpoint=request)

    def test_the_trainer_passes_over_a_damaged_one_and_refuses_it_by_name(self, tmp_path):
        build_trainer(tmp_path).train()
        (tmp_path / "checkpoint-10" / "model.safetensors").write_text("torn")
        for request in (tmp_path / "checkpoint-10", str(tmp_path / "checkpoint-10")):
            with pytest.raises(CheckpointError, match="cannot be resumed from"):
                build_trainer(tmp_path).train(resume_from_checkpoint=request)
        again = build_trainer(tmp_path)
        again.train(resume_from_checkpoint=True)
        assert [record["step"] for record in again.state.log_history if "loss" in record] == list(range(1, 11))
        assert problem(tmp_path / "checkpoint-10") is None  # made again

    def test_tokens_seen_go_on_after_a_resume(self, tmp_path):
        whole, again = build_trainer(tmp_path / "whole"), build_trainer(tmp_path / "again")
        whole.train()
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
        assert again.state.num_input_tokens_seen == whole.state.num_input_tokens_seen > 0

    def test_nothing_to_resume_from(self, tmp_path):
        assert resolve_resume(None, tmp_path) is None
        assert resolve_resume("auto", tmp_path) is None
        with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
            resolve_resume(True, tmp_path)
        with pytest.raises(CheckpointError, match="does not exist"):
            resolve_resume(str(tmp_path / "absent"), tmp_path)

    @pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
    def test_a_part_that_is_missing_is_refused_by_the_trainer_too(self, tmp_path, name):
        build_trainer(tmp_path / "run").train()
        copy = tmp_path / "checkpoint-5"
        shutil.copytree(tmp_path / "run" / "checkpoint-5", copy)
        (copy / name).unlink()
        manifest = json.loads((copy / "manifest.json").read_text())
        del manifest["files"][name]  # as one that was saved without
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match=f"has no {name}"):
            build_trainer(tmp_path / "again").train(resume_from_checkpoint=str(copy))


class TestContract:
    """The Trainer is not ours: what we lean on is written down here, so that a new release breaks a test, not a run."""

    def test_what_is_overridden_is_listed_and_exists(self):
        ours = {**vars(HeldTrainer), **vars(SealedTrainer), **vars(PreferenceTrainer)}
        own = {name for name, value in ours.items() if inspect.isfunction(value)}
        assert {name for name in own if hasattr(Trainer, name) and name != "__init__"} == OVERRIDDEN

    @pytest.mark.parametrize("name", sorted(OVERRIDDEN))
    def test_signatures_agree(self, name):
        ours, theirs = (inspect.signature(getattr(c, name)).parameters for c in (PreferenceTrainer, Trainer))
        assert list(ours) == list(theirs)

    def test_the_loop_still_does_what_we_rely_on(self):
        loop = inspect.getsource(Trainer._run_epoch)
        assert "self.training_step(model, inputs, num_items_in_batch)" in loop
        assert "self.get_batch_samples(" in loop
        assert "train_dataloader.set_epoch(epoch)" in loop
        assert "underlying_sampler.set_epoch(epoch)" in loop
        assert "skip_first_batches(train_dataloader" in loop
        saving = inspect.getsource(Trainer._save_checkpoint)
        assert "self._get_output_dir(" in saving
