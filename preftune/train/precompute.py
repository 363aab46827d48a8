"""Log-probs of the reference model, computed once and kept on disk, so that the model can leave memory.

A table has one line a row of the data, in the rows' order. Its file is named by a hash of everything that it depends
on; a changed input is another name, and so is computed anew. It is verified before use, and renamed into place when
whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from preftune.data.plan import Cut
from preftune.errors import TrainingError
from preftune.model.reference import Reference
from preftune.model.sharding import lent
from preftune.train.identity import hash_groups, hash_weights
from preftune.train.loader import StepSource
from preftune.train.passes import alone
from preftune.train.step import Packing, build_step
from preftune.types import TokenizedGroup

logger = logging.getLogger(__name__)
CHUNK = 512  # groups planned together


def default_cache() -> Path:
    """`PREFTUNE_CACHE`, or preftune/ in the user's cache folder."""
    given = os.environ.get("PREFTUNE_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preftune"


def give_reference_logps(trainer: Any, cache: Path) -> str:
    """Give every row of a `PreferenceTrainer` its log-probs under its reference, whose weights' hash is returned."""
    args = trainer.args
    source = trainer.get_train_dataloader().dataset
    epochs = math.ceil(args.max_steps / source.steps if args.max_steps > 0 else args.num_train_epochs)
    tables = ReferenceTables(
        trainer.reference,
        cache,
        computing=f"bf16={args.bf16} fp16={args.fp16}",
        cut=trainer.cut,
        packing=replace(trainer._packing, joints=False),
        device=args.device,
        rank=args.process_index,
        ranks=args.world_size,
        summed=trainer._summed,
    )
    with trainer.accelerator.autocast(), lent(trainer.reference.model):
        trainer.train_dataset = tables.attach(source, epochs)
        held_out = {name: tables.attach(trainer._eval_source(rows)) for name, rows in trainer._eval_sets().items()}
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = held_out if isinstance(trainer.eval_dataset, dict) else held_out[""]
    return tables.weights_hash


def read_table(path: Path, key: str, groups: Sequence[TokenizedGroup]) -> Tensor | None:
    """The (rows, K) table of a file, or None where there is none that is whole and of these groups."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            sums = file.get_tensor("sums")
    except (OSError, SafetensorError):
        return None
    whole = facts.get("key") == key and facts.get("sha256") == hash_weights({"sums": sums})
    shape = (len(groups), max(len(group.response_ids) for group in groups))
    if whole and sums.shape == shape and sums.isfinite().all():
        return sums
    logger.warning("%s is not whole; the reference is computed again.", path)
    return None


def _check_writable(folder: Path) -> None:
    """Before the work of a pass, and on every rank, so that none waits for another that failed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as cause:
        raise TrainingError(
            f"reference_cache: '{folder}' cannot be written ({cause.strerror}). Name another."
        ) from cause


def write_table(path: Path, key: str, sums: Tensor) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({"sums": sums}, staged, metadata={"key": key, "sha256": hash_weights({"sums": sums})})
    os.replace(staged, path)


@dataclass(frozen=True)
class ReferenceTables:
    """Log-probs under one reference model, from the cache or computed.

    Args:
        reference: the model.
        cache: the folder of the tables.
        computing: the precision of computing, which enters the hash.
        cut, packing, device, rank, ranks: as for `preftune.train.step.build_step`; each rank computes its part.
        summed: adds up a tensor over the ranks.
    """

    reference: Reference
    cache: Path
    computing: str
    cut: Cut
    packing: Packing
    device: torch.device
    rank: int = 0
    ranks: int = 1
    summed: Callable[[Tensor], Tensor] = alone

    def attach(self, source: StepSource, epochs: int = 1) -> list[TokenizedGroup]:
        """The rows of `source` with their log-probs, and those of their probes in each epoch where they have any."""
        groups = list(source.groups)
        if not source.probes:
            lines = self.table(groups).tolist()
        else:
            tables = [self.table(source.joint_groups(epoch)) for epoch in range(epochs)]
            lines = torch.cat([tables[0][:, :1], *[table[:, 1:] for table in tables]], dim=1).tolist()
        used = [line if source.probes else line[: len(g.response_ids)] for g, line in zip(groups, lines, strict=True)]
        return [replace(group, reference=tuple(line)) for group, line in zip(groups, used, strict=True)]

    def table(self, groups: Sequence[TokenizedGroup]) -> Tensor:
        """(rows, K) log-prob sums in float32, nats; 0 where a ranked group has no such response.

        Raises:
            TrainingError: a log-prob is not finite, with its rows; or the folder cannot be written.
        """
        key = self._key(groups)
        path = self.cache / f"reference-{key[:24]}.safetensors"
        found = read_table(path, key, groups)
        everywhere = self.summed(torch.tensor(float(found is not None), device=self.device)).item() == self.ranks
        if found is not None and everywhere:
            logger.info("Reference log-probs of %d rows: from %s.", len(groups), path)
            return found
        _check_writable(self.cache)
        table = self._checked(self._computed(groups), groups)
        if self.rank == 0:
            write_table(path, key, table)
            logger.info("Reference log-probs of %d rows: computed, kept in %s.", len(groups), path)
        return table

    def _key(self, groups: Sequence[TokenizedGroup]) -> str:
        parts = [hash_groups(groups), self.weights_hash, self.reference.settings(), self.computing]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @cached_property
    def weights_hash(self) -> str:
        return hash_weights(self.reference.state_dict())

    @torch.no_grad()
    def _computed(self, groups: Sequence[TokenizedGroup]) -> Tensor:
        width = max(len(group.response_ids) for group in groups)
        table = torch.zeros(len(groups), width, device=self.device)
        for start in range(0, len(groups), CHUNK):
            members = groups[start : start + CHUNK]
            step = build_step(members, self.cut, rank=self.rank, ranks=self.ranks, packing=self.packing)
            for batch, places in zip(step.micro_batches, step.places, strict=True):
                batch = batch.to(self.device)
                sums = self.reference(batch).sums.float() * batch.weights[:, None]
                table[start + torch.tensor(places), : sums.shape[1]] += sums
        return self.summed(table).cpu()

    def _checked(self, table: Tensor, groups: Sequence[TokenizedGroup]) -> Tensor:
        bad = (~table.isfinite()).any(dim=1).nonzero()[:, 0].tolist()
        if bad:
            named = ", ".join(str(groups[row].origin) for row in bad[:5])
            raise TrainingError(
                f"The reference ({self.reference.describe()}) gives log-probs that are not finite for {len(bad)} rows: "
                f"{named}. Look at these rows, or use float32."
            )
        return table
