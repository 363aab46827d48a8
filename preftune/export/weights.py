"""The model that is exported, whole: an adapter merged, in the precision that was asked for.

Two kinds: a language model, and a reward model (sequence classification with one label). A value-head file beside a
language model stays a file beside it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from preftune.errors import ModelError
from preftune.model.heads import load_reward_model
from preftune.model.load import DTYPES, dtype_of, find_adapter, has_tokenizer, load_model, load_tokenizer, one_line
from preftune.model.place import refuse_pickle
from preftune.model.policy import some_ids
from preftune.train.models import end_turns

log = logging.getLogger(__name__)
PROBED = 32  # tokens whose logits are compared before and after a merge
# Of the largest logit: what merging may change. In 16 bits the merged weights are rounded once.
MERGED_WITHIN = {torch.float32: 1e-4}
MERGED_WITHIN_16_BIT = 0.1


@dataclass(frozen=True)
class WholeModel:
    """model: without an adapter; tokenizer: None where the folder has none; base: what the adapter was merged into."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    reward: bool
    base: str | None


def load_whole(
    name: str, *, dtype: str = "auto", trust_remote_code: bool = False, allow_pickle: bool = False
) -> WholeModel:
    """Load a model, an adapter being merged into its base.

    Args:
        name: a folder with a model or an adapter, or a hub name.
        dtype: of the weights: auto (as they are, an adapter takes its base's), float32, bfloat16, float16.
        trust_remote_code: run code that comes with the model.
        allow_pickle: read weights that are there as pickle files alone.

    Raises:
        ModelError: nothing can be loaded from there, the merged model answers otherwise, or weights are not finite.
    """
    if not allow_pickle:
        refuse_pickle(name)
    adapter = find_adapter(name, "main")
    reward = _is_reward_model(name, trust_remote_code)
    exact = dtype == "auto" or dtype_of(dtype) == _stored_dtype(name if adapter is None else adapter.base)
    loading = "auto" if exact else "float32"  # merged, and only then rounded
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code) if adapter or has_tokenizer(name) else None
    common: dict[str, Any] = {
        "torch_dtype": loading,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": None if allow_pickle else True,
    }
    if reward:
        model = load_reward_model(name, tokenizer=tokenizer, new_head=False, **common)
    else:
        model = load_model(name, **common)
        if adapter is not None:
            model = _merged(model)
        if tokenizer is not None:
            end_turns(model, tokenizer)
    if getattr(model, "is_quantized", False):
        raise ModelError(f"The weights of '{name}' are quantised already; export the model that they were made from.")
    if dtype != "auto":
        model = model.to(dtype_of(dtype))
    _check_finite(model)
    return WholeModel(model.eval(), tokenizer, reward, adapter.base if adapter else None)


def _is_reward_model(name: str, trust_remote_code: bool) -> bool:
    adapter = Path(name).expanduser() / "adapter_config.json"
    if adapter.is_file():
        return bool(json.loads(adapter.read_text(encoding="utf-8")).get("task_type") == "SEQ_CLS")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError):
        return False  # the loader says what is wrong
    return any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ())


def _stored_dtype(name: str) -> torch.dtype | None:
    try:
        settings = json.loads((Path(name).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return DTYPES.get(str(settings.get("dtype") or settings.get("torch_dtype")))


def _merged(adapted: torch.nn.Module) -> PreTrainedModel:
    from preftune.model.merge import merge_adapter  # the extra `lora`

    before = _logits(adapted)
    merged = merge_adapter(adapted)
    gap = ((_logits(merged) - before).abs().max() / before.abs().max()).item()
    allowed = MERGED_WITHIN.get(merged.dtype, MERGED_WITHIN_16_BIT)
    if not gap <= allowed:
        raise ModelError(
            f"The merged model answers otherwise than the adapter on its base: logits differ by a share of {gap:.2g} "
            f"(allowed {allowed:g}). Use the adapter as it is, or --dtype float32."
        )
    log.info("The adapter is merged; logits of %d tokens differ by a share of %.2g.", PROBED, gap)
    return merged


@torch.inference_mode()
def _logits(model: torch.nn.Module) -> Tensor:
    ids = torch.tensor([some_ids(model.config.get_text_config())[:PROBED]])  # type: ignore[union-attr]
    try:
        return model.eval()(input_ids=ids, use_cache=False).logits[0].float()
    except (RuntimeError, ValueError, TypeError, IndexError) as cause:
        raise ModelError(f"{type(model).__name__} cannot be run ({one_line(cause)}).") from cause


def _check_finite(model: PreTrainedModel) -> None:
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            much = " float16 ends at 65504: take bfloat16." if weight.dtype is torch.float16 else ""
            raise ModelError(f"The weight {name} holds numbers that are not finite.{much}")
