"""Which optimizer steps a model's weights, by their type and by what the recipe asks for.

weights             master_weights   optimizer_state      optimizer
float32             any              float32              what `optim` says
bfloat16, float16   true             float32              AdamW on a float32 copy (`master.py`)
bfloat16            split            any                  AdamW on weight + low word (`split.py`)
bfloat16            true             bfloat16, 8bit       the same: it is the same float32 master
float32             any              bfloat16, 8bit       AdamW with small moments (`split.py`)
bfloat16, float16   false            float32              what `optim` says, with a warning
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from preftune.errors import RecipeError
from preftune.train.master import MasterAdamW
from preftune.train.moments import MomentType
from preftune.train.split import SplitAdamW

logger = logging.getLogger(__name__)
LOW = (torch.bfloat16, torch.float16)
SAMPLED = 1 << 16  # weights of a tensor that are looked at


def choose_optimizer(
    model: nn.Module,
    args: TrainingArguments,
    master_weights: bool | str = True,
    optimizer_state: MomentType = "float32",
    *,
    sharded: bool = False,
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """The class of the optimizer and its settings; None leaves the choice to the Trainer.

    Args:
        master_weights: True, "split" or False; optimizer_state: float32, bfloat16 or 8bit; both as in a recipe.
        sharded: an engine holds the weights in shards.

    Raises:
        RecipeError: what is asked for does not go together.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds = {parameter.dtype for parameter in trained}
    low = bool(kinds.intersection(LOW))
    small = optimizer_state != "float32"
    split = low and (master_weights == "split" or (bool(master_weights) and small))
    if sharded and not (small or master_weights == "split"):
        return None  # engines keep float32 weights of their own
    if not (low or small):
        return None
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if low and not master_weights:
        if small:
            raise RecipeError(
                f"optimizer_state {optimizer_state} and master_weights false: rounded moments and rounded weights do "
                "not learn. Set master_weights: split, which takes 2 bytes a parameter more."
            )
        logger.warning(_bare_weights(trained, args.learning_rate))
        return None
    if not issubclass(kind, torch.optim.AdamW):
        wanted = "keep float32 masters" if low else f"keep its state in {optimizer_state}"
        name = getattr(args.optim, "value", args.optim)
        raise RecipeError(f"optim '{name}' cannot {wanted}. Use adamw_torch or torch_dtype: float32.")
    if not (split or small):
        return MasterAdamW, kwargs
    if torch.float16 in kinds:
        raise RecipeError("A split master is of bfloat16 weights, and these are float16. Use torch_dtype: bfloat16.")
    if sharded:
        raise RecipeError(
            "master_weights: split and a small optimizer_state need whole weights on each device, and FSDP and "
            "DeepSpeed shard them. Leave both keys out."
        )
    known = {name: kwargs[name] for name in ("lr", "betas", "eps", "weight_decay", "fused") if name in kwargs}
    return SplitAdamW, {**known, "moments": optimizer_state}


def movable_share(parameters: Iterable[Tensor], learning_rate: float) -> float:
    """The share of low-precision weights that an AdamW step of this size moves at all: it must exceed half a digit.

    An AdamW update is at most about the learning rate; a weight w is rounded to a multiple of eps * 2^floor(log2 |w|).
    """
    moving = counted = 0.0
    for parameter in parameters:
        if parameter.dtype not in LOW:
            continue
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLED)].float()
        _, exponent = torch.frexp(sample)  # |w| = m * 2^exponent, m in [0.5, 1)
        half_digit = torch.ldexp(torch.full_like(sample, torch.finfo(parameter.dtype).eps / 4), exponent)
        moving += ((half_digit < learning_rate) | (sample == 0)).float().mean().item() * flat.numel()
        counted += flat.numel()
    return moving / max(counted, 1)


def _bare_weights(trained: Iterable[Tensor], learning_rate: float) -> str:
    share = movable_share(trained, learning_rate)
    return (
        "Weights are trained in low precision without a float32 master (master_weights: false): a step of the "
        f"learning rate {learning_rate:g} is less than half the last digit of most weights, so {share:.1%} of them can "
        "move. Set master_weights: split (2 bytes a parameter) or true (4)."
    )
