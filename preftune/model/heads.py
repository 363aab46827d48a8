"""Reward models: a decoder with one linear head that reads a number at the last token of each response.

`load_reward_model` makes one from a language model, a reward model, an adapter, or weights with a value-head file.
`to_scorer` swaps the class of the instance, as `preftune.model.policy.to_policy` does, so that names and saving stay:

    model(batch=pack(groups, feed_last=True))   -> ResponseLogps whose sums are the scores, differentiable
    model(batch=batch, read=f)                  -> f(model, batch): another reading of it (`preftune.model.tokens`)
    model(input_ids=..., attention_mask=...)    -> as before

Saved, it is a sequence-classification model of transformers with one label; `save_value_head` puts the head into a file
of its own beside it (`preftune.model.value_head`).
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from preftune.data.chat import read_chat_format
from preftune.data.pack import pack
from preftune.errors import ModelError
from preftune.model.attention import AttentionPlan
from preftune.model.load import checked_place, dtype_of, find_adapter, has_tokenizer, hub_hint, load_tokenizer, one_line
from preftune.model.policy import (
    ROADS,
    HeadMixin,
    Reading,
    attention,
    obstacle_to_packing,
    packed_states,
    padded_states,
    some_ids,
    take_road,
    tolerance_of,
)
from preftune.model.usable_attention import usable_attention
from preftune.model.value_head import (
    HEAD,
    base_of,
    head_of,
    load_value_head,
    save_value_head,
    set_value_head,
    value_head_file,
)
from preftune.types import Origin, PackedBatch, ResponseLogps, TokenizedGroup

__all__ = ["load_reward_model", "load_value_head", "save_value_head", "set_pad_token", "to_scorer"]

logger = logging.getLogger(__name__)

PAD = "<|pad|>"


# --- loading


def load_reward_model(
    name: str,
    *,
    torch_dtype: str | None = None,
    attn_implementation: str | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    use_safetensors: bool | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    new_head: bool = True,
) -> PreTrainedModel:
    """A sequence-classification model with one label.

    Args:
        name: a reward model, a language model, either with a value-head file beside its weights, or a folder with an
            adapter of one of them, which is merged; a folder in transformers format or a hub name.
        torch_dtype, attn_implementation, revision, trust_remote_code, use_safetensors: as
            `preftune.model.load.load_model` has them.
        tokenizer: used to choose the padding token (`set_pad_token`) where the model's own is not set or the head is
            not the model's own; None takes that of `name`, if it has one.
        new_head: make a head where there is none: normal with standard deviation 1/sqrt(D + 1), by the seed in force
            (Huang et al. 2024, arXiv:2403.17031, after Stiennon et al. 2020).

    Raises:
        ModelError: nothing can be loaded from there, the model has more than one label, or it has no head and
            `new_head` is False.
        MissingExtraError: `name` holds an adapter and PEFT is not installed.
    """
    source = _Source(name, torch_dtype, attn_implementation, revision, trust_remote_code, use_safetensors)
    folder = Path(name).expanduser()
    adapted = (folder / "adapter_config.json").is_file()
    model, has_head = _load_adapted(folder, source) if adapted else _load_classifier(source)
    own_pad = has_head and model.config.get_text_config().pad_token_id is not None
    if not has_head and value_head_file(folder) is not None:
        set_value_head(model, load_value_head(folder))
    elif not has_head:
        if not new_head:
            raise ModelError(
                f"'{name}' is a language model without a score head. Give a reward model, or train one with "
                "objective: reward."
            )
        _initialise(head_of(model))
    if tokenizer is None and not own_pad and has_tokenizer(name):
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer is not None and not own_pad:
        set_pad_token(model, tokenizer)
    return model


@dataclass(frozen=True)
class _Source:
    name: str
    torch_dtype: str | None
    attn_implementation: str | None
    revision: str
    trust_remote_code: bool
    use_safetensors: bool | None


def _load_classifier(source: _Source) -> tuple[PreTrainedModel, bool]:
    """The model, and whether its head came with the weights."""
    name, dtype = source.name, dtype_of(source.torch_dtype)
    place, common = checked_place(name), {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(place, **common)
        if not any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ()):
            config.num_labels = 1
        if config.num_labels != 1:
            raise ModelError(f"'{name}' has {config.num_labels} labels; a reward model has one (num_labels: 1).")
        with _quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                place,
                config=config,
                dtype=dtype,
                attn_implementation=usable_attention(source.attn_implementation),
                use_safetensors=source.use_safetensors,
                output_loading_info=True,
                **common,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as cause:
        raise ModelError(f"No reward model can be loaded from '{name}'{hub_hint(name)}: {one_line(cause)}") from cause
    body = f"{model.base_model_prefix}."
    return model, all(key.startswith(body) for key in report["missing_keys"])


def _load_adapted(folder: Path, source: _Source) -> tuple[PreTrainedModel, bool]:
    """The base model with the adapter merged into it, and whether the head came with one of them."""
    from preftune.model.lora import load_adapter  # the extra `lora`
    from preftune.model.merge import merge_adapter

    adapter = find_adapter(str(folder), source.revision)
    assert adapter is not None  # adapter_config.json is there
    model, has_head = _load_classifier(replace(source, name=adapter.base, revision=adapter.base_revision))
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return merge_adapter(load_adapter(model, str(folder))), has_head or settings.get("task_type") == "SEQ_CLS"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the table of keys that the weights lack: the head's is looked at here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@torch.no_grad()
def _initialise(head: nn.Linear) -> None:
    deviation = (head.in_features + 1) ** -0.5
    head.weight.normal_(0.0, deviation)
    logger.info("The score head is new: normal, standard deviation 1/sqrt(D + 1) = %.4g, no bias.", deviation)


# --- the padding token


def set_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Give model and tokenizer a padding token that never ends a response; returns its id.

    transformers reads the score at the rightmost token that is not padding. Where padding is the end-of-turn token, as
    is often set, that is the token before the end, and training would read another state than whoever loads the model.
    Taken is the first that will do: the model's, the tokenizer's, one named after padding, a reserved one, BOS, a new
    one.

    Raises:
        ModelError: the tokenizer has no token that ends a response.
    """
    config = model.config.get_text_config()
    end = read_chat_format(tokenizer).end_id
    known = config.pad_token_id
    own = tokenizer.convert_ids_to_tokens(known) if known is not None and 0 <= known < len(tokenizer) else None
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    named = [token for word in ("pad", "reserved") for token in added if word in token.lower()]
    candidates = [own, tokenizer.pad_token, *named, tokenizer.bos_token]
    token = next((t for t in candidates if t is not None and tokenizer.convert_tokens_to_ids(t) != end), None)
    tokenizer.add_special_tokens({"pad_token": token or PAD})
    pad = int(tokenizer.pad_token_id)
    if pad >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config.pad_token_id = pad
    return pad


# --- scoring packed batches


class Scorer:
    """What `to_scorer` adds to a sequence-classification model."""

    road: str
    usual_attention: str


def _scorer_class(base: type) -> type:
    """`base` with `Scorer` in front, under its own name and with its own signature of `forward`."""

    def forward(
        self: Any, *args: Any, batch: PackedBatch | None = None, read: Reading | None = None, **kwargs: Any
    ) -> Any:
        if batch is not None and read is not None:
            return read(self, batch)
        if batch is not None:
            return response_scores(self, batch)
        with attention(self, self.usual_attention):
            return base.forward(self, *args, **kwargs)  # type: ignore[attr-defined]

    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
    return type(base.__name__, (Scorer, base), {"forward": forward})


def to_scorer(model: Any, road: str = "auto") -> Any:
    """Make `model` answer packed batches with scores, in place, and return it.

    Args:
        model: a sequence-classification model with one label, or a PEFT model around one, whose inside is changed.
        road: `packed`, `padded`, or `auto`: a preflight sends two short groups down both and takes `packed` where the
            states of their last tokens agree; otherwise `padded`, with one line in the log.

    Raises:
        ModelError: the model's scores are not those of one linear head over the state of the last token, or `road` is
            `packed` and the preflight differs.
    """
    if road not in ROADS:
        raise ModelError(f"'road' must be one of {', '.join(ROADS)}, found {road!r}.")
    base = base_of(model)
    head_of(model)
    for module in getattr(base, HEAD).modules():
        if isinstance(module, nn.Linear) and not isinstance(module, HeadMixin):
            module.__class__ = type(type(module).__name__, (HeadMixin, type(module)), {})
    if not isinstance(base, Scorer):
        base.__class__ = _scorer_class(type(base))
        base.usual_attention = base.config._attn_implementation or "sdpa"
    take_road(base, "padded")
    _check_own_scores(base)
    if road != "padded":
        problem = preflight(base)
        if problem is None:
            take_road(base, "packed")
        elif road == "packed":
            raise ModelError(f"road: packed cannot serve {type(base).__name__}: {problem} Use road: auto.")
        else:
            logger.warning("%s takes the padded road: %s", type(base).__name__, problem)
    return model


def response_scores(model: Any, batch: PackedBatch) -> ResponseLogps:
    """Scores (G, K) of a batch packed with `feed_last`, float32 or wider; 0 where a ranked group has a gap."""
    scores = getattr(model, HEAD)(_end_states(model, batch), score=linear_scores)
    gaps = ~batch.feedback.valid
    return ResponseLogps(scores.view_as(batch.lengths).masked_fill(gaps, 0.0), batch.lengths)


def _end_states(model: Any, batch: PackedBatch) -> Tensor:
    """(S, D) states of the last tokens; where a ranked group has a gap, some other state."""
    assert batch.ends is not None, "pack with feed_last"
    at_ends = replace(batch, scored=batch.ends, owner=torch.arange(batch.ends.numel(), device=batch.ends.device))
    return packed_states(model, at_ends) if model.road == "packed" else padded_states(model, at_ends)


def linear_scores(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(S,): one dot product a state. As a product and a sum, which autocast leaves in float32."""
    wide = torch.promote_types(states.dtype, torch.float32)
    scores = (states.to(wide) * weight.to(wide)).sum(dim=-1)
    return scores if bias is None else scores + bias.to(wide)


@torch.no_grad()
def preflight(model: Any) -> str | None:
    """None where both roads give the same states at the ends of two short groups, else the reason in one line.

    States and not scores, because a head that is still near zero would hide a difference. The model must stand on the
    padded road.
    """
    config = model.config.get_text_config()
    obstacle = obstacle_to_packing(model, config)
    if obstacle is not None:
        return obstacle
    ids, origin = some_ids(config), Origin("preflight", "check", 1)
    groups = [
        TokenizedGroup(ids[:40], [ids[40:60], ids[50:85]], origin),
        TokenizedGroup(ids[60:63], [ids[70:90], ids[70:75] + ids[90:100]], origin),
    ]
    batch = pack(groups, feed_last=True).to(model.device)
    was_training, before = model.training, model.road
    model.eval()
    try:
        padded = _end_states(model, batch).float()
        take_road(model, "packed")
        plan = AttentionPlan(batch.trees, batch.input_ids.device)
        packed_states(model, batch, plan)
        packed = _end_states(model, batch).float()
    except Exception as cause:
        return f"a packed row does not pass through its layers ({type(cause).__name__}: {one_line(cause)})"
    finally:
        take_road(model, before)
        model.train(was_training)
    if plan.layers_served != config.num_hidden_layers:
        return f"only {plan.layers_served} of its {config.num_hidden_layers} layers use plain attention."
    gap, allowed = ((padded - packed).norm(dim=1) / padded.norm(dim=1)).max().item(), tolerance_of(model)
    if not gap <= allowed:
        return f"packed and padded states differ by a share of {gap:.2g} (allowed {allowed:g})."
    return None


@torch.no_grad()
def _check_own_scores(model: Any) -> None:
    """Refuse a model whose own score is not the head's at the last token.

    Raises:
        ModelError: the scores differ, or the model cannot be run this way.
    """
    name, was_training = type(model).__name__, model.training
    config = model.config.get_text_config()
    ids = [number for number in some_ids(config) if number != config.pad_token_id][:24]
    model.eval()
    try:
        batch = pack([TokenizedGroup(ids[:8], [ids[8:]], Origin("check", "check", 1))], feed_last=True)
        ours = response_scores(model, batch.to(model.device)).sums[0, 0]
        own = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, 0]
    except Exception as cause:
        raise ModelError(f"{name} cannot be scored as a decoder ({one_line(cause)}).") from cause
    finally:
        model.train(was_training)
    gap = (ours - own.to(ours.dtype)).abs().item()
    if not gap <= tolerance_of(model) * max(1.0, ours.abs().item()):
        raise ModelError(
            f"{name} does more than reading one linear head at the last token: scores differ from its own by {gap:.2g}."
        )
