"""Processes by environment."""

import sys

import pytest

from preftune.cli import launch as launching
from preftune.cli.launch import asked_processes, keep_one_gpu, launch
from preftune.cli.main import main
from preftune.errors import RecipeError


def test_without_variables_one_process_trains_here():
    asked = asked_processes({})
    assert (asked.world, asked.starts) == (1, False)


def test_the_variables_become_torchruns_options():
    given = {"NPROC_PER_NODE": "4", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    asked = asked_processes(given)
    assert (asked.world, asked.starts) == (8, True)
    assert asked.options == (
        "--nproc_per_node", "4", "--nnodes", "2", "--node_rank", "1",
        "--master_addr", "10.0.0.1", "--master_port", "29500",
    )  # fmt: skip


def test_nodes_alone_start_one_process_each():
    assert asked_processes({"NNODES": "2"}).options == ("--nnodes", "2", "--nproc_per_node", "1")


def test_one_node_finds_a_free_port():
    options = asked_processes({"NPROC_PER_NODE": "2"}).options
    assert options[:3] == ("--nproc_per_node", "2", "--master_port") and int(options[3]) > 1023


def test_inside_torchrun_nothing_is_started():
    asked = asked_processes({"NPROC_PER_NODE": "2", "WORLD_SIZE": "2"})
    assert (asked.world, asked.starts) == (2, False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"NPROC_PER_NODE": "two"}, "NPROC_PER_NODE must be a whole number of at least 1, found 'two'"),
        ({"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE must be a whole number of at least 1, found '0'"),
        ({"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK 2 must be below NNODES 2"),
    ],
)
def test_a_wrong_variable_is_refused(given, said):
    with pytest.raises(RecipeError, match=said):
        asked_processes(given)


def test_of_several_gpus_one_process_takes_the_first(monkeypatch, caplog):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    keep_one_gpu()
    assert launching.os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert "NPROC_PER_NODE=2 starts a process on each" in caplog.text


def test_the_exit_code_is_passed_on(monkeypatch):
    commands = []

    class Child:
        def __init__(self, command, env):
            commands.append((command, env["OMP_NUM_THREADS"]))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def wait(self):
            return 7

    monkeypatch.setattr(launching.subprocess, "Popen", Child)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = asked_processes({"NPROC_PER_NODE": "2", "MASTER_PORT": "29500"})
    assert launch(asked, ["rlhf", "--beta", "2"]) == 7
    options = ["--nproc_per_node", "2", "--master_port", "29500"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "preftune", "rlhf", "--beta", "2"]
    assert commands == [(command, "1")]


def test_a_wrong_flag_is_refused_before_any_process_starts(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    monkeypatch.setattr(launching.subprocess, "Popen", None)
    assert main(["simpo", "--model_id_or_path", "m", "--dataset", "a", "--bata", "1"]) == 2
    assert "did you mean '--beta'" in capsys.readouterr().err
