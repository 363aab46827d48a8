"""The tokens of a micro-batch by the memory that is free when a run starts.

Where a recipe names no `micro_batch_tokens`, it is the usual number (`arguments.py`), or half of it, and half again,
while the plan (`preftune.train.memory`) says that it would not fit beside what is still to come: gradients, masters,
moments, a frozen copy. So it is never more than usual, and the same from run to run unless memory is short. The cut
changes no result but for rounding, so a resumed run may have another one. What the plan misjudges is caught when memory
ends (`preftune.train.redo`), which halves too.

Free memory: of a GPU what the driver says is free; else of the machine what is available, or what is left of the
cgroup's limit where that is less, divided by the processes of this machine.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from preftune.errors import PreftuneError
from preftune.model.footprint import Engine
from preftune.model.sharding import own_piece
from preftune.recipe import Recipe
from preftune.train.arguments import default_micro_batch_tokens
from preftune.train.engines import asked_engine
from preftune.train.memory import RunMemory

logger = logging.getLogger(__name__)
GIB = 2**30
LEAST = 256  # tokens; a row that is longer gets a micro-batch of its own in any case
MARGIN = 0.9  # of the free memory: the plan is within 15 % of what small models hold
CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def choose_micro_batch_tokens(
    recipe: Recipe, args: Any, model: PreTrainedModel, reference: PreTrainedModel | None = None
) -> int:
    """The recipe's tokens of a micro-batch, or those that memory allows; the same on every process.

    Args:
        args: the run's arguments.
        model, reference: as they are loaded, before an engine holds them.
    """
    usual = recipe.micro_batch_tokens or default_micro_batch_tokens(args.device)
    if recipe.micro_batch_tokens:
        return usual
    free, device = free_gib(args.device), args.device.type
    loaded = sum(_bytes_on(part, device) for part in (model, reference) if part is not None) / GIB
    run, engine = RunMemory(recipe, model.config), engine_of(args)

    def to_come(tokens: int) -> float:
        return run.estimate(tokens, engine, device="cpu" if device == "cpu" else "cuda").total - loaded

    tokens = usual
    try:
        while free is not None and tokens > LEAST and to_come(tokens) > MARGIN * free:
            tokens //= 2
        needed = to_come(usual)
    except PreftuneError as error:  # a model that cannot be counted
        logger.debug("Micro-batches are of %d tokens: %s", usual, error)
        needed = 0.0
    tokens = _least_of_all(tokens, args.device)
    if tokens < usual and args.process_index == 0:
        logger.warning(
            "Micro-batches of up to %d tokens in place of %d, which would take about %.1f GiB more; %.1f are free. "
            "gradient_checkpointing: true makes room for larger ones.",
            tokens, usual, needed, free,
        )  # fmt: skip
    return tokens


def _bytes_on(model: PreTrainedModel, device: str) -> int:
    return sum(piece.nbytes for piece in map(own_piece, model.parameters()) if piece.device.type == device)


def free_gib(device: torch.device, root: Path = Path("/")) -> float | None:
    """GiB that this process may still take; None where nothing says.

    Args:
        root: where /proc and /sys are.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    found = [number for number in (_available(root), _left_of_cgroup(root)) if number is not None]
    return min(found) / int(os.environ.get("LOCAL_WORLD_SIZE", "1")) / GIB if found else None


def _available(root: Path) -> float | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_of_cgroup(root: Path) -> float | None:
    for limit, used in CGROUPS:
        try:
            numbers = [(root / "sys/fs/cgroup" / name).read_text(encoding="ascii").strip() for name in (limit, used)]
        except OSError:
            continue
        if all(number.isdecimal() for number in numbers) and int(numbers[0]) < 2**60:  # v1 has no word for "no limit"
            return max(0.0, float(int(numbers[0]) - int(numbers[1])))
    return None


def _least_of_all(tokens: int, device: torch.device) -> int:
    """Every process plans the step of all, so all cut alike."""
    if not (dist.is_available() and dist.is_initialized()):
        return tokens
    shared = torch.tensor([tokens], device=device if device.type == "cuda" else "cpu")
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return int(shared.item())


def engine_of(args: Any) -> Engine:
    """As the arguments of a run have it."""
    plugin = args.deepspeed_plugin
    offloads = ""
    if plugin is not None:
        zero = plugin.deepspeed_config.get("zero_optimization", {})
        if zero.get("offload_optimizer", {}).get("device", "none") != "none":
            offloads = "all" if zero.get("offload_param", {}).get("device", "none") != "none" else "optimizer"
    return Engine(asked_engine(args), args.world_size, offloads)
