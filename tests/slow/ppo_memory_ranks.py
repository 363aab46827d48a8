"""PPO in two processes, of which the second runs out of memory; beside it a run with the budget that they come to.

python -m torch.distributed.run --nproc_per_node 2 tests/slow/ppo_memory_ranks.py KEYS.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from preftune import train
from preftune.train.ppo import update

LIMIT = 100  # tokens that a micro-batch may have in the second process
usual = update.pack


def pack(groups):
    batch = usual(groups)
    if batch.tokens > LIMIT and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError(f"Tried to allocate {batch.tokens} tokens")
    return batch


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    keys = json.loads(Path(sys.argv[1]).read_text())
    update.pack = pack
    train(None, **keys, output_dir="short")
    taken = json.loads(Path("short/checkpoint-2/manifest.json").read_text())["micro_batch_tokens"]["taken"]
    update.pack = usual
    train(None, **{**keys, "micro_batch_tokens": taken}, output_dir="small")
    dist.barrier()
    dist.destroy_process_group()
