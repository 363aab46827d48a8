"""Our own step over several processes of one thread each, under DistributedDataParallel with gloo; prints JSON.

    python benchmarks/worker_ranks.py --ranks 2 --pairs 4 --prompt 128 --response 128

Every rank gets the same number of pairs; the step is planned over all of them, as the trainer does it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing
from torch import distributed, nn
from weights import save_model
from worker_preftune import SIMPO, autocast, to_groups
from workload import LEARNING_RATE, MAX_GRAD_NORM, ModelSize, exact_pairs

from preftune.data.plan import Cut
from preftune.model.policy import to_policy
from preftune.train.arguments import default_micro_batch_tokens
from preftune.train.step import build_step, micro_batch_loss, step_counts


def parse_arguments() -> argparse.Namespace:
    default = ModelSize()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ranks", "pairs", "prompt", "response"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--repeats", type=int, default=3)
    for name in ("hidden", "layers", "heads", "mlp", "vocab"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    return parser.parse_args()


def run_rank(rank: int, arguments: argparse.Namespace, scratch: str) -> None:
    """One process; the first one writes the seconds of its steps."""
    torch.set_num_threads(1)
    meeting = f"file://{scratch}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=arguments.ranks)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(scratch) / "model", dtype=torch.float32).train()
    model = nn.parallel.DistributedDataParallel(to_policy(model, road="packed"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    seconds = [timed_step(model, optimizer, arguments, rank) for _ in range(arguments.repeats + 1)]
    if rank == 0:
        (Path(scratch) / "seconds.json").write_text(json.dumps(seconds[1:]), encoding="utf-8")
    distributed.destroy_process_group()


def timed_step(model: nn.Module, optimizer: torch.optim.Optimizer, arguments: argparse.Namespace, rank: int) -> float:
    """Wall seconds from rows to updated weights, from one meeting of the ranks to the next."""
    count = arguments.pairs * arguments.ranks
    rows = exact_pairs(arguments.prompt, arguments.response, count, arguments.vocab)
    distributed.barrier()
    started = time.perf_counter()
    cut = Cut(max_tokens=default_micro_batch_tokens(torch.device("cpu")))
    step = build_step(to_groups(rows), cut, rank=rank, ranks=arguments.ranks)
    counts = step_counts(step)
    for number, batch in enumerate(step.micro_batches):
        # the last micro-batch sends the gradients of all
        model.require_backward_grad_sync = number == len(step.micro_batches) - 1
        with autocast(arguments.precision):
            loss, _ = micro_batch_loss(model, batch, SIMPO, counts)
        (loss * arguments.ranks).backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()
    distributed.barrier()
    return time.perf_counter() - started


def main() -> None:
    arguments = parse_arguments()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    size = ModelSize(arguments.hidden, arguments.layers, arguments.heads, arguments.mlp, arguments.vocab)
    with tempfile.TemporaryDirectory(prefix="ranks-bench-") as scratch:
        save_model(size, Path(scratch) / "model")
        multiprocessing.spawn(run_rank, (arguments, scratch), nprocs=arguments.ranks)
        seconds = json.loads((Path(scratch) / "seconds.json").read_text(encoding="utf-8"))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
