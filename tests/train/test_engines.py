"""A run stops when the engine or the number of processes is not what was asked for."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from preftune.errors import RecipeError, TrainingError
from preftune.train.arguments import PreferenceArguments
from preftune.train.engines import ONE, check_engine, check_world, prepare_environment, running_engine
from preftune.train.trainer import PreferenceTrainer
from tests.small import build_groups, build_model

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (*LAUNCHER, "DS_ACCELERATOR", "FSDP_VERSION", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.setenv(name, "")  # put back afterwards, whatever the test sets
        monkeypatch.delenv(name)


class Zero(torch.nn.Linear):
    def zero_optimization_stage(self) -> int:
        return 2


@pytest.mark.parametrize("asked", ["FSDP2", "ZeRO-3", "ZeRO-2"])
def test_a_model_that_nothing_holds_is_no_engine(asked):
    with pytest.raises(TrainingError, match=f"{asked} was asked for and the model is held by one process"):
        check_engine(asked, torch.nn.Linear(2, 2))


def test_zero_2_is_not_zero_3():
    assert running_engine(Zero(2, 2)) == "ZeRO-2"
    check_engine("ZeRO-2", Zero(2, 2))
    with pytest.raises(TrainingError, match="ZeRO-3 was asked for and the model is held by ZeRO-2"):
        check_engine("ZeRO-3", Zero(2, 2))


def test_ddp_over_one_process_may_be_left_out():
    check_engine("DDP", torch.nn.Linear(2, 2))
    check_engine(ONE, torch.nn.Linear(2, 2))


def test_a_world_of_another_size_than_asked_for_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="2 processes were asked for and 1 take part"):
        check_world(SimpleNamespace(num_processes=1, device="cpu"))


def test_accelerate_that_starts_one_of_two_processes_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    prepare_environment(on_cpu=True)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(RecipeError, match="asked for several processes and has started one"):
        prepare_environment(on_cpu=True)
    monkeypatch.setenv("RANK", "0")
    prepare_environment(on_cpu=True)


def test_fsdp_of_a_published_launcher_file_is_the_second_kind(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    prepare_environment(on_cpu=True)
    assert os.environ["FSDP_VERSION"] == "2"


def test_loading_on_the_first_process_alone_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="'cpu_ram_efficient_loading' gives weights to the first process alone"):
        PreferenceArguments(output_dir=str(tmp_path), fsdp=True, fsdp_config={"cpu_ram_efficient_loading": True})


def test_a_training_step_looks_at_the_engine(tmp_path):
    args = PreferenceArguments(output_dir=str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True)
    trainer = PreferenceTrainer(build_model(), args, train_dataset=build_groups(8))
    assert trainer.engine == ONE
    trainer.engine = "ZeRO-3"
    with pytest.raises(TrainingError, match="ZeRO-3 was asked for"):
        trainer.train()
