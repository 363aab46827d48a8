"""Processes by environment."""

import json
import sys

import pytest
import yaml

from preftune.cli import launch as launching
from preftune.cli.launch import asked_processes, has_gpus_left, keep_one_gpu, launch
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


def dry_run(line: str, capsys) -> dict:
    words = ["--model_id_or_path", "m", "--dataset", "a.jsonl", "--dry_run", "true"]
    assert main([*line.split(), *words]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("gpus", "processes", "line", "asked", "left"),
    [
        ("0,1", None, "simpo", "auto", "0,1"),  # as published: layers over both
        ("0,1,2,3", "2", "dpo --sft_type full", "auto", "0,1,2,3"),  # two processes over two GPUs each
        ("0,1", "2", "simpo", None, "0,1"),
        ("3", None, "simpo", None, "3"),
        ("2,3", None, "simpo --deepspeed default-zero2", None, "2"),
        ("2,3", None, "simpo --quantization_bit 4", None, "2"),
        ("2,3", None, "simpo --device_map {'model.layers':1}", {"model.layers": 1}, "2,3"),
    ],
)
def test_layers_go_over_the_gpus_that_processes_leave(monkeypatch, capsys, gpus, processes, line, asked, left):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "NNODES", "NPROC_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    if processes:
        monkeypatch.setenv("NPROC_PER_NODE", processes)
    assert dry_run(line.replace("'", '"'), capsys)["device_map"] == asked
    assert launching.os.environ["CUDA_VISIBLE_DEVICES"] == left


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_an_engine_of_the_launcher_keeps_the_gpus(monkeypatch, engine):
    monkeypatch.delenv("NPROC_PER_NODE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert has_gpus_left()
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    assert not has_gpus_left()


def test_a_map_is_read_from_its_file(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("NPROC_PER_NODE", raising=False)
    file, places = tmp_path / "map.json", {"model.layers.0": 0, "model.layers": "1"}
    file.write_text(json.dumps(places))
    assert dry_run(f"simpo --device_map_config {file}", capsys)["device_map"] == places
    file.write_text("[0, 1]")
    assert main(["simpo", "--model_id_or_path", "m", "--dataset", "a.jsonl", "--device_map_config", str(file)]) == 2
    assert "must hold an object of module names and GPUs" in capsys.readouterr().err


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
