"""What was asked for is what runs: the number of processes, and the engine that holds the weights.

    one process   DDP   FSDP2   ZeRO-1   ZeRO-2   ZeRO-3

Engines are asked for by training arguments (`fsdp`, `deepspeed`) or by `accelerate launch`, through the environment.
Libraries fall back in silence: FSDP on CPU trains as DDP, processes that do not find each other train apart. So what
runs is read off the wrapped model, and the world is counted by an all-reduce.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from preftune.errors import RecipeError, TrainingError

ONE, DDP, FSDP2 = "one process", "DDP", "FSDP2"


def prepare_environment(on_cpu: bool) -> None:
    """Before the arguments of a run are made: what the libraries read from the environment.

    Raises:
        RecipeError: a launcher was asked for several processes and has started one.
    """
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed guesses by what is installed
    if _launched("FSDP"):
        os.environ["FSDP_VERSION"] = "2"  # `accelerate launch` writes 1 where its file is silent, and that is retired
        # the preflight and the reference look at the weights of every rank, and all but the first would have none
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # accelerate's launcher for one process names a port when it was asked for more
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and not _ranked():
        raise RecipeError(
            "accelerate launch was asked for several processes and has started one (on CPU it starts no more). "
            "Start them with NPROC_PER_NODE=N, preftune train --nproc N, or torchrun."
        )


def join_deepspeed(args: Any) -> None:
    """On CPU nobody tells DeepSpeed of the processes before it cuts the first weight, so it would count one."""
    if args.deepspeed_plugin is None or not args.use_cpu or not _several():
        return
    from deepspeed import comm  # the extra `deepspeed`

    if not comm.is_initialized():
        comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def asked_engine(args: Any) -> str:
    """The engine that the arguments of a run (after `__post_init__`) and its launcher ask for."""
    if args.deepspeed_plugin is not None:
        return f"ZeRO-{args.deepspeed_plugin.zero_stage}"
    if args.fsdp or _launched("FSDP"):
        return FSDP2
    return DDP if args.world_size > 1 else ONE


def check_world(accelerator: Any) -> None:
    """The processes that were asked for are all there, and reach each other.

    Raises:
        TrainingError: they are not.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != accelerator.num_processes:
        raise TrainingError(
            f"{asked} processes were asked for and {accelerator.num_processes} take part; "
            "the launcher and the trainer disagree about the world. Start with torchrun or accelerate launch."
        )
    if asked == 1:
        return
    counted = torch.ones((), device=accelerator.device)
    if dist.is_initialized():
        dist.all_reduce(counted)
    if counted.item() != asked:
        raise TrainingError(
            f"{asked} processes were asked for and a sum over them counts {int(counted.item())}: they train apart. "
            "Start with torchrun or accelerate launch."
        )


def check_engine(asked: str, model: Any) -> None:
    """The engine that was asked for is the one around `model`, as it goes into a training step.

    Raises:
        TrainingError: it is another.
    """
    found = running_engine(model)
    if found == asked or ({found, asked} == {ONE, DDP} and not _several()):
        return
    remedy = (
        "accelerate shards on accelerators only; on CPU train with DDP, or DeepSpeed."
        if asked == FSDP2 and not torch.cuda.is_available()
        else "Look at the launcher's file and at 'deepspeed' and 'fsdp' of the recipe."
    )
    raise TrainingError(f"{asked} was asked for and the model is held by {found}: this would be another run. {remedy}")


def running_engine(model: Any) -> str:
    """What holds the weights of a wrapped model."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if hasattr(model, "zero_optimization_stage"):
        return f"ZeRO-{model.zero_optimization_stage()}"
    if isinstance(model, FSDPModule):
        whole = [name for name, weight in model.named_parameters() if not isinstance(weight, DTensor)]
        return f"FSDP2 that leaves {len(whole)} parameters whole ({whole[0]})" if whole else FSDP2
    return DDP if isinstance(model, DistributedDataParallel) else ONE


def settle_precision(accelerator: Any, model: Any, args: Any, master_weights: bool = True) -> None:
    """FSDP2 computes in bfloat16 over float32 shards, which are the masters, and casts no result.

    accelerate's own policy adds up gradients in bfloat16 and rounds the model's output, which here are log-probs.
    Weights loaded in bfloat16 (`torch_dtype`) are trained in the same way, unless masters are unwanted.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    low = any(weight.requires_grad and weight.dtype == torch.bfloat16 for weight in model.parameters())
    if low and master_weights:
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    if args.bf16 or accelerator.mixed_precision == "bf16" or (low and master_weights):
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, None)


def shard_frozen(model: Any, accelerator: Any) -> Any:
    """A model that is not trained, cut in pieces where the trained one is; else as it is."""
    if accelerator.distributed_type == DistributedType.FSDP:
        return fsdp2_prepare_model(accelerator, model)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return model
    if plugin.zero_stage != 3:
        return model.to(accelerator.device)
    import deepspeed  # the extra `deepspeed`

    given = plugin.deepspeed_config
    kept = {key: given["zero_optimization"][key] for key in ("offload_param",) if key in given["zero_optimization"]}
    settings = {
        "zero_optimization": {"stage": 3, **kept},
        "train_micro_batch_size_per_gpu": 1,
        **{key: given[key] for key in ("bf16", "fp16") if key in given},
    }
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    engine.eval()
    return engine.module


def first_says(value: str) -> str:
    """What the first rank says."""
    said = [value]
    if _several():
        dist.broadcast_object_list(said, src=0)
    return said[0]


def _launched(engine: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def _ranked() -> bool:
    return any(name in os.environ for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"))


def _several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
