"""The tokens of a micro-batch by the memory that is free when a run starts.

Where a recipe names no `micro_batch_tokens`, it is the usual number (`arguments.py`), or half of it, and half again,
while the plan (`preftune.train.memory`) says that it would not fit beside what is still to come: gradients, masters,
moments, a frozen copy. So it is never more than usual, and the same from run to run unless memory is short. Where
nothing fits, it is what takes least: a step that is cut no longer fits into one micro-batch, and gradients then wait
for the next. The cut changes a result by rounding alone; a resumed run keeps that of its checkpoint all the same
(`kept_tokens`), so that it is the same bit for bit. What the plan misjudges is caught when memory ends
(`preftune.train.redo`), which halves too.

Free memory: of a GPU what the driver says is free; else of the machine what is available, or what is left of the
cgroup's limit where that is less (the cache of files that were read counts as free), divided by the processes of this
machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from preftune.model.footprint import Engine
from preftune.model.load import one_line
from preftune.model.sharding import own_piece
from preftune.objectives.base import Baseline
from preftune.recipe import Recipe
from preftune.train.arguments import default_micro_batch_tokens
from preftune.train.check import packing_of
from preftune.train.engines import asked_engine
from preftune.train.memory import RunMemory
from preftune.train.memory_plan import Lengths, measured_lengths
from preftune.train.redo import kept_tokens
from preftune.types import TokenizedGroup

logger = logging.getLogger(__name__)
GIB = 2**30
LEAST = 256  # tokens; a row that is longer gets a micro-batch of its own in any case
MARGIN = 0.9  # of the free memory: the plan is within 15 % of what small models hold
# Limit, use and statistics of a cgroup, and the word there for cached files that nothing has touched lately.
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def choose_micro_batch_tokens(
    recipe: Recipe,
    args: Any,
    model: PreTrainedModel,
    reference: PreTrainedModel | None = None,
    *,
    groups: Sequence[TokenizedGroup] | None = None,
    resume: Path | None = None,
) -> int:
    """The recipe's tokens of a micro-batch, or those that memory allows; the same on every process.

    Args:
        args: the run's arguments.
        model, reference: as they are loaded, before an engine holds them.
        groups: what is trained on; None: not known before (a stream).
        resume: the checkpoint that is gone on with.
    """
    usual = recipe.micro_batch_tokens or default_micro_batch_tokens(args.device)
    kept = kept_tokens(resume, recipe.micro_batch_tokens, asked_engine(args), args.world_size)
    if kept is not None or recipe.micro_batch_tokens:
        return kept or usual
    free, device = free_on_all(args.devices), args.device.type
    if free is None:
        return _least_of_all(usual, args.device)
    loaded = sum(_bytes_on(part, device) for part in (model, reference) if part is not None) / GIB

    def to_come(tokens: int, lengths: Lengths | None) -> float:
        size = tokens if lengths is None else max(lengths.longest, min(tokens, lengths.step))
        several = lengths is None or lengths.step > tokens
        kind = "cpu" if device == "cpu" else "cuda"
        return run.estimate(size, engine, several=several, device=kind).total - loaded

    tokens, needed = usual, 0.0
    try:
        run, engine = RunMemory(recipe, model.config), engine_of(args)
        if to_come(usual, None) > MARGIN * free:  # at most so much; the rows say how much
            lengths = _lengths_of(recipe, groups, args.world_size) if groups else None
            tokens = _fitting(lambda number: to_come(number, lengths), usual, MARGIN * free)
            needed = to_come(usual, lengths)
    except Exception as cause:  # model code of any kind runs here; a run can do without an estimate
        logger.info("Micro-batches are of %d tokens, whatever memory is free (%s).", usual, one_line(cause))
    tokens = _least_of_all(tokens, args.device)
    if tokens < usual and args.process_index == 0:
        logger.warning(
            "Micro-batches of up to %d tokens in place of %d, which would take about %.1f GiB more; %.1f are free. "
            "gradient_checkpointing: true makes room for larger ones.",
            tokens, usual, needed, free,
        )  # fmt: skip
    return tokens


def _fitting(taken: Callable[[int], float], usual: int, limit: float) -> int:
    """The most tokens that fit, halved from the usual ones; where none do, the most of those that take least."""
    numbers = [usual]
    while numbers[-1] > LEAST:
        numbers.append(numbers[-1] // 2)
    found = {number: taken(number) for number in numbers}
    return next((number for number in numbers if found[number] <= limit), min(numbers, key=found.__getitem__))


def _lengths_of(recipe: Recipe, groups: Sequence[TokenizedGroup], ranks: int) -> Lengths:
    """Of the rows as steps are cut; a row of KTO counts with a response to another prompt."""
    packing = packing_of(recipe)
    probes = recipe.build_objective().baseline == Baseline.PROBES
    more = max(len(group.response_ids[0]) for group in groups) if probes else 0
    return measured_lengths(recipe, [packing.cost(group) + more for group in groups], ranks)


def _bytes_on(model: PreTrainedModel, device: str) -> int:
    return sum(piece.nbytes for piece in map(own_piece, model.parameters()) if piece.device.type == device)


def free_on_all(devices: Sequence[torch.device]) -> float | None:
    """GiB on all devices that hold one model; where a map fills them unevenly, one may be full before the others."""
    found = [free_gib(device) for device in devices]
    return None if None in found else sum(number for number in found if number is not None)


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
    for limit, used, statistics, word in CGROUPS:
        try:
            numbers = [(root / "sys/fs/cgroup" / name).read_text(encoding="ascii").strip() for name in (limit, used)]
        except OSError:
            continue
        if all(number.isdecimal() for number in numbers) and int(numbers[0]) < 2**60:  # v1 has no word for "no limit"
            held = max(0, int(numbers[1]) - _cached(root / "sys/fs/cgroup" / statistics, word))
            return max(0.0, float(int(numbers[0]) - held))
    return None


def _cached(statistics: Path, word: str) -> int:
    """Bytes of files that the kernel drops as soon as memory is asked for; 0 where nothing says."""
    try:
        lines = [line.split() for line in statistics.read_text(encoding="ascii").splitlines()]
    except OSError:
        return 0
    return next((int(parts[1]) for parts in lines if parts[0] == word), 0)


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
