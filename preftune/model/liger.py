"""Liger's kernels for what stands between the matrix products of a layer: norms, rotary embedding, feed-forward.

In: a model on a GPU. Out: the same model with these kernels in place (Hsu et al. 2024, arXiv:2410.10989). Liger's
losses are left out: the head here never holds all logits, and gives log-probs. Needs the extra `liger`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from preftune.errors import MissingExtraError, ModelError, RecipeError
from preftune.model.policy import LOW_PRECISION_TOLERANCE, decoder_of, some_ids

logger = logging.getLogger(__name__)
KEY = "'use_liger_kernel' true"
LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}
STATES_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # relative; in lower precision that of two roads


def check_liger(on_gpu: bool) -> None:
    """Refuse before anything is read.

    Raises:
        RecipeError: there is no GPU.
        MissingExtraError: Liger is not installed.
    """
    if not on_gpu:
        raise RecipeError(
            f"{KEY} needs a CUDA device: Liger's kernels are written for GPUs. Leave it out; the head never holds all "
            "logits with it or without it."
        )
    if find_spec("liger_kernel") is None:
        raise MissingExtraError(KEY, "liger")


def use_layer_kernels(model: Any, asked: Mapping[str, bool] | None = None) -> None:
    """Put Liger's layer kernels into `model`, in place, and hold its states against those from before.

    Args:
        model: a transformers model, or a PEFT model around one, on the device where it will run.
        asked: `liger_kernel_config`: kernels by name (rope, rms_norm, swiglu, ...) to leave out or to put in.

    Raises:
        ModelError: Liger has no kernels for it, or they change its states.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name, kind = type(base).__name__, base.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ModelError(f"{KEY}: Liger has no kernels for models of type {kind} ({name}). Leave it out.")
    before = _states(base)
    _apply_liger_kernel_to_instance(model=base, **{**(asked or {}), **LOSSES})
    gap = ((_states(base) - before).norm() / before.norm()).item()
    if not gap <= STATES_TOLERANCE.get(base.dtype, LOW_PRECISION_TOLERANCE):
        raise ModelError(f"{KEY}: Liger's kernels change the states of {name} by {gap:.2g}. Leave it out.")
    logger.info("Liger's layer kernels are in place; states differ by %.1e.", gap)


@torch.no_grad()
def _states(model: Any) -> Tensor:
    """(1, T, D) states of a few tokens, in float32."""
    was_training = model.training
    model.eval()
    ids = torch.tensor([some_ids(model.config.get_text_config())], device=model.device)
    states = decoder_of(model)(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state.float()
    model.train(was_training)
    return states
