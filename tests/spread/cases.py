"""Models whose layers lie on several devices, against the same models on one: pytest in a process of its own.

The devices are GPUs and the CPU where there are GPUs, else two of a kind made for it (second_device.cpp). Another kind
of device changes what a process takes for its accelerator, so tests/slow/test_spread.py starts this file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from preftune.data.pack import pack
from preftune.model.checkpointing import checkpoint_first
from preftune.model.lora import LoraSettings, add_adapter
from preftune.model.policy import to_policy
from preftune.model.spread import spread
from preftune.train.checkpoint import checkpoints
from preftune.train.ppo.sampling import Sampling, sample
from preftune.train.watch import watch_collapse
from tests.model.test_equality import loss_of
from tests.small import build_group, build_groups, build_model, gradients, lengths_of, slow_logps, worst_gradient_gap
from tests.spread.second_device import open_second_device
from tests.train.test_trainer import build_trainer, losses_of

HOST = torch.device("cpu")
if torch.cuda.is_available():
    FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1") if torch.cuda.device_count() > 1 else HOST
else:
    open_second_device(Path(os.environ["SECOND_DEVICE_FOLDER"]))
    FIRST, SECOND = torch.device("second:0"), torch.device("second:1")
GROUPS = [*build_groups(3), build_group(9, 12, 18, opening=5), build_group(1, 6, 1)]
MAP = {"model.layers.0": "cpu", "model.layers.1": str(FIRST), "model.layers.2": str(SECOND)}


def on_host(tensors):
    return {name: value.to(HOST) for name, value in tensors.items()}


def test_an_operator_with_tensors_of_two_devices_fails():
    one, other = torch.ones(2, 2, device=FIRST), torch.ones(2, 2, device=SECOND)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        one @ other
    assert ((one @ one).to(SECOND) + other).sum().item() == 12


@pytest.mark.parametrize("home", [FIRST, HOST], ids=str)
@pytest.mark.parametrize("road", ["packed", "padded"])
@pytest.mark.parametrize("way", ["full", "checkpointing", "some layers", "lora"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral-window"])
def test_log_probs_and_gradients_are_those_of_one_device(name, way, road, home):
    model, lengths = build_model(name), lengths_of(GROUPS)
    if way == "lora":
        model = add_adapter(model, LoraSettings(r=3, target_modules="ALL"))
        torch.manual_seed(4)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.data.normal_(0, 0.1)
    means = slow_logps(model, GROUPS) / lengths
    loss_of(means).backward()
    wanted = gradients(model)
    model.zero_grad(set_to_none=True)

    spread(model, [home, SECOND, FIRST], home)
    if home != HOST and hasattr(model, "tie_weights"):
        model.tie_weights()  # what moves to a device of another kind becomes another parameter
    to_policy(model, road)
    if way == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if way == "some layers":
        checkpoint_first(model, 2)
    counts = lengths.to(home)
    loss, sums = model(batch=pack(GROUPS).to(home), group_loss=lambda sums, some: loss_of(sums / counts[some]))
    loss.backward()

    assert {weight.device for weight in model.parameters()} == {home, FIRST, SECOND}
    assert (sums.to(HOST) / lengths - means).abs().max() <= 1e-5
    assert worst_gradient_gap(on_host(gradients(model)), wanted) <= 1e-4


def test_a_model_that_is_moved_back_computes_on_one_device():
    model, ids = build_model("llama"), torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    spread(model, [HOST, FIRST, SECOND], HOST)
    assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-5)
    model.to(HOST)
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("loss", [{"objective": "simpo", "sft_weight": 0.3}, {"objective": "dpo"}], ids=str)
def test_a_run_ends_at_the_weights_of_one_device_and_goes_on_from_its_checkpoint(tmp_path, loss):
    plain = build_trainer(tmp_path / "plain", loss=loss)
    plain.train()
    runs = [build_trainer(tmp_path / name, loss=loss, device_map=MAP) for name in ("whole", "stopped")]
    runs[0].train()
    assert losses_of(runs[0]) == pytest.approx(losses_of(plain), rel=1e-5)
    wanted = plain.model.state_dict()
    whole = on_host(runs[0].model.state_dict())
    for name, value in whole.items():
        assert (value - wanted[name]).norm() <= 1e-4 * wanted[name].norm(), name
    assert {weight.device for weight in runs[0].model.parameters()} == {HOST, FIRST, SECOND}

    runs[1].train()
    shutil.rmtree(checkpoints(tmp_path / "stopped")[0])
    again = build_trainer(tmp_path / "stopped", loss=loss, device_map=MAP)
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(value.to(HOST), whole[name]) for name, value in again.model.state_dict().items())


def test_a_looked_at_run_and_its_samples_are_those_of_one_device(tmp_path):
    looks = {}
    for name, changes in {"plain": {}, "spread": {"device_map": MAP}}.items():
        trainer = build_trainer(tmp_path / name, held_out=build_groups(6, seed=5), save_strategy="no", **changes)
        watch_collapse(trainer, 4, 3, "warn")
        trainer.train()
        looks[name] = [line for line in trainer.state.log_history if any("watch" in key for key in line)]
        sampling = Sampling(length=12, temperature=0, ends=(2,), batch=4)
        looks[f"{name} answers"] = sample(trainer.model, [[5, 6, 7], [9, 10]], sampling)
    assert looks["spread answers"] == looks["plain answers"]
    assert len(looks["spread"]) == len(looks["plain"]) > 0
    for one, other in zip(looks["spread"], looks["plain"], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4, nan_ok=True)


def test_float32_masters_lie_with_their_weights(tmp_path):
    loss = {"objective": "simpo"}
    ends = []
    for name, changes in {"plain": {}, "spread": {"device_map": MAP}}.items():
        model = build_model("llama", dtype=torch.bfloat16)
        trainer = build_trainer(tmp_path / name, model=model, loss=loss, save_strategy="no", bf16=True, **changes)
        trainer.train()
        ends.append(losses_of(trainer))
    assert ends[1] == pytest.approx(ends[0], abs=2e-2)
