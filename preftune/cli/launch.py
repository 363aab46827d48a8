"""Processes by environment: NPROC_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, as torchrun's options.

A verb of training that finds them runs itself again under `torch.distributed.run`, and passes its exit code on.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preftune.errors import RecipeError

log = logging.getLogger(__name__)

OPTIONS = {
    "NPROC_PER_NODE": "--nproc_per_node",
    "NNODES": "--nnodes",
    "NODE_RANK": "--node_rank",
    "MASTER_ADDR": "--master_addr",
    "MASTER_PORT": "--master_port",
}


@dataclass(frozen=True)
class Processes:
    """What the environment asks for: `world` processes in all, and whether this one is to start them."""

    world: int
    starts: bool
    options: tuple[str, ...] = ()


def asked_processes(environment: Mapping[str, str] | None = None) -> Processes:
    """The processes that the environment asks for; inside torchrun, those that there are.

    Raises:
        RecipeError: a variable is no number.
    """
    given = os.environ if environment is None else environment
    if "WORLD_SIZE" in given:
        return Processes(_number(given, "WORLD_SIZE", 1), starts=False)
    if not given.get("NPROC_PER_NODE") and not given.get("NNODES"):
        return Processes(1, starts=False)
    each, nodes = _number(given, "NPROC_PER_NODE", 1), _number(given, "NNODES", 1)
    rank = _number(given, "NODE_RANK", 0, least=0)
    if rank >= nodes:
        raise RecipeError(f"environment: NODE_RANK {rank} must be below NNODES {nodes}. Number the nodes from 0.")
    options = [part for name, option in OPTIONS.items() if given.get(name) for part in (option, given[name])]
    if not given.get("NPROC_PER_NODE"):
        options += ["--nproc_per_node", "1"]
    if nodes == 1 and not given.get("MASTER_PORT"):
        options += ["--master_port", str(_free_port())]
    return Processes(each * nodes, starts=True, options=tuple(options))


def has_gpus_left() -> bool:
    """Whether CUDA_VISIBLE_DEVICES shows more GPUs than processes train here, and no engine of a launcher has them."""
    if any(os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true" for engine in ("FSDP", "DEEPSPEED")):
        return False
    processes = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("NPROC_PER_NODE") or "1"
    return len(_visible()) > int(processes)


def _visible() -> list[str]:
    return [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]


def keep_one_gpu() -> None:
    """Of several GPUs that CUDA_VISIBLE_DEVICES shows to one process, leave it the first."""
    visible = _visible()
    if len(visible) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[0]
        log.warning(
            "CUDA_VISIBLE_DEVICES: %d GPUs for one process, and this run does not spread a model's layers over "
            "them, so GPU %s is used. NPROC_PER_NODE=%d starts a process on each.",
            len(visible), visible[0], len(visible),
        )  # fmt: skip


def launch(asked: Processes, words: Sequence[str]) -> int:
    """Run `preftune WORDS` in these processes; returns its exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", *asked.options, "-m", "preftune", *words]
    log.info("run sh: %s", " ".join(command))
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": _search_path()}
    with subprocess.Popen(command, env=environment) as child:
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())  # Ctrl-C reaches the children by itself
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # the children have it too: they save and leave
                continue


def _search_path() -> str:
    """With the folder that this package is in, so that the processes run the same code."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    before = os.environ.get("PYTHONPATH")
    return f"{here}{os.pathsep}{before}" if before else here


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _number(given: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    text = given.get(name) or str(default)
    if not text.isdigit() or int(text) < least:
        raise RecipeError(f"environment: {name} must be a whole number of at least {least}, found '{text}'.")
    return int(text)
