"""A transformers model that answers a packed batch with log-probs.

`to_policy` swaps the class of the model instance and of its output head (as `fully_shard` does), so parameter names,
saving and PEFT stay as they are, and engines that hook the model and the head module keep working:

    policy(batch=batch)                         -> ResponseLogps, differentiable
    policy(batch=batch, group_loss=loss)        -> (loss, sums): the head's gradient is taken in the forward pass
    policy(batch=batch, read=f)                 -> f(model, batch): another reading of it (`preftune.model.tokens`)
    policy(input_ids=...), policy.generate(...) -> as before

A PEFT model is made a policy from inside: the transformers model in it, and its head, be that with LoRA or trained
whole (`modules_to_save`).

Two roads for the body: `packed` (every prompt once, no padding) and `padded` (one row a response; any decoder).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.errors import ModelError
from preftune.model.attention import NAME, AttentionPlan
from preftune.model.logps import GroupLoss, HeadTransform, chunked_logps, compute_dtype, fused_group_loss
from preftune.types import Origin, PackedBatch, ResponseLogps, TokenizedGroup

logger = logging.getLogger(__name__)
ROADS = ("auto", "packed", "padded")
Reading = Callable[[Any, PackedBatch], Any]
PREFLIGHT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # nats per token
LOW_PRECISION_TOLERANCE = 5e-2


class PolicyMixin:
    """What `to_policy` adds to a causal language model."""

    road: str
    usual_attention: str

    def forward(
        self,
        *args: Any,
        batch: PackedBatch | None = None,
        group_loss: GroupLoss | None = None,
        read: Reading | None = None,
        **kwargs: Any,
    ) -> Any:
        if batch is not None and read is not None:
            return read(self, batch)
        if batch is not None:
            return response_logps(self, batch, group_loss)
        with attention(self, self.usual_attention), plain_layers(self):
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        with attention(self, self.usual_attention), plain_layers(self):  # masks and caches are made outside forward
            return super().generate(*args, **kwargs)  # type: ignore[misc]


def _policy_class(base: type) -> type:
    """`base` with the mixin in front, under its own name and with its own signature of `forward`.

    `generate` reads the signature to learn what the model takes (position_ids, logits_to_keep, ...).
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return PolicyMixin.forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
    return type(base.__name__, (PolicyMixin, base), {"forward": forward})


class HeadMixin:
    """Lets the head module score: `head(states, score=f)` returns f(states, weight, bias), the module's hooks run."""

    def forward(self, states: Tensor, score: Any = None) -> Any:
        if score is None:
            return super().forward(states)  # type: ignore[misc]
        return score(states, self.weight, getattr(self, "bias", None))  # type: ignore[attr-defined]


class LoraHeadMixin:
    """The same for a head with LoRA, whose weight is W + s·B·A: f sees the states [h | s·A h] and the weight [W | B].

    The sum itself would be rounded to the precision of W, in which a small B·A is lost, and cost a second [V, D].
    """

    def forward(self: Any, states: Tensor, *args: Any, score: Any = None, **kwargs: Any) -> Any:
        if score is None:
            return super().forward(states, *args, **kwargs)  # type: ignore[misc]
        if self.disable_adapters and self.merged:
            self.unmerge()
        columns, factors = [states], []
        for name in () if self.disable_adapters or self.merged else self.active_adapters:
            if name in self.lora_A:
                down = self.lora_A[name]
                low = down(self.lora_dropout[name](states.to(down.weight.dtype))) * self.scaling[name]
                columns.append(low.to(states.dtype))
                factors.append(self.lora_B[name].weight)

        def widened(states: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            if factors:
                weight = torch.cat([weight, *(factor.to(weight.dtype) for factor in factors)], dim=1)
            return score(torch.cat(columns, dim=1), weight, bias)

        return self.base_layer(states, score=widened)


def scoring_head(model: Any) -> Any:
    """The output head of a transformers model, able to score; what an adapter has put around it is looked through.

    Raises:
        ModelError: it is not one linear layer in floating point, or carries a kind of adapter whose log-probs cannot
            be made tile by tile (DoRA, a bias in LoRA).
    """
    head = model.get_output_embeddings()
    _make_scoring(head, type(model).__name__)
    return head


def _make_scoring(head: Any, name: str) -> None:
    if isinstance(head, (HeadMixin, LoraHeadMixin)):
        return
    if hasattr(head, "modules_to_save"):
        for module in (head.original_module, *head.modules_to_save.values()):
            _make_scoring(module, name)
    elif hasattr(head, "lora_A"):
        if head.lora_variant or any(head.lora_bias.values()):
            raise ModelError(
                f"The output head of {name} can be trained with plain LoRA (also rsLoRA, PiSSA), not with DoRA or a "
                "LoRA bias. Leave the head out of lora_target_modules, or set use_dora: false."
            )
        _make_scoring(head.base_layer, name)
        head.__class__ = type(type(head).__name__, (LoraHeadMixin, type(head)), {})
    elif isinstance(head, nn.Linear) and head.weight.is_floating_point():
        head.__class__ = type(type(head).__name__, (HeadMixin, type(head)), {})
    else:
        found = type(head).__name__
        raise ModelError(f"{name} needs a linear output head to score responses, found {found}.")


def to_policy(model: PreTrainedModel, road: str = "auto") -> PreTrainedModel:
    """Make `model` answer packed batches, in place, and return it.

    Args:
        model: a causal language model of transformers, whose output embedding must be one linear layer, or a PEFT model
            around one.
        road: `packed`, `padded`, or `auto`: a preflight sends two short groups down both and takes `packed` where
            they agree; otherwise `padded`, with one line in the log.

    Raises:
        ModelError: the model's log-probs are not those of one linear head over its decoder's states, or `road` is
            `packed` and the preflight differs.
    """
    if road not in ROADS:
        raise ModelError(f"'road' must be one of {', '.join(ROADS)}, found {road!r}.")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    scoring_head(base)
    if not isinstance(base, PolicyMixin):
        base.__class__ = _policy_class(type(base))
        base.usual_attention = base.config._attn_implementation or "sdpa"
    take_road(base, "padded")
    _check_own_logits(base)
    if road != "padded":
        problem = preflight(base)
        if problem is None:
            take_road(base, "packed")
        elif road == "packed":
            raise ModelError(f"road: packed cannot serve {type(base).__name__}: {problem} Use road: auto.")
        else:
            logger.warning("%s takes the padded road: %s", type(base).__name__, problem)
    return model


def take_road(model: Any, road: str) -> None:
    model.road = road
    model.set_attn_implementation(NAME if road == "packed" else model.usual_attention)


@contextmanager
def attention(model: Any, implementation: str) -> Iterator[None]:
    """Run with another attention implementation, and put the old one back."""
    before = model.config._attn_implementation
    if before == implementation:
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def plain_layers(model: Any) -> Iterator[None]:
    """Run without the compiled layers that `preftune.model.compiled` has put in place."""
    layers = getattr(model, "compiled_layers", ())
    compiled = [layer.__dict__.pop("forward", None) for layer in layers]
    try:
        yield
    finally:
        for layer, forward in zip(layers, compiled, strict=True):
            if forward is not None:  # already taken out by an outer call
                layer.forward = forward


def decoder_of(model: Any) -> nn.Module:
    """The model without its head."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return model.base_model if decoder is None or decoder is model else decoder


def layers_of(model: Any) -> list[nn.Module]:
    """The decoder layers of a transformers model, first to last.

    Raises:
        ModelError: it has no list of them.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in decoder_of(model).children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(f"{type(model).__name__} has no list of {count} decoder layers.")


def response_logps(
    model: Any, batch: PackedBatch, group_loss: GroupLoss | None = None, states: Tensor | None = None
) -> Any:
    """Log-probs of a batch's responses under `model`, by its road; see `PolicyMixin`.

    Args:
        states: (N, D), where they are known already; else the decoder is run.
    """
    states = states_of(model, batch) if states is None else states
    transform, head = HeadTransform.of(model.config.get_text_config()), scoring_head(model)
    groups, responses = batch.lengths.shape
    if group_loss is not None:

        def score(states: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
            return fused_group_loss(
                states, weight, bias, batch.targets, transform, batch.owner, responses, batch.rows_per_group, group_loss
            )

        return head(states, score=score)
    logps = head(
        states, score=lambda states, weight, bias: chunked_logps(states, weight, bias, batch.targets, transform)
    )
    sums = logps.new_zeros(groups * responses).index_add(0, batch.owner, logps)
    return ResponseLogps(sums.view(groups, responses), batch.lengths)


def states_of(model: Any, batch: PackedBatch) -> Tensor:
    """(N, D) hidden states that predict the targets, by the model's road."""
    return packed_states(model, batch) if model.road == "packed" else padded_states(model, batch)


def packed_states(model: Any, batch: PackedBatch, plan: AttentionPlan | None = None) -> Tensor:
    """(N, D) hidden states that predict the targets, every prompt computed once."""
    plan = plan or AttentionPlan(batch.trees, batch.input_ids.device)
    out = decoder_of(model)(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, return_dict=True, tree=plan
    )
    return out.last_hidden_state[0].index_select(0, batch.scored)


def padded_states(model: Any, batch: PackedBatch) -> Tensor:
    """(N, D) hidden states that predict the targets, each response behind its own copy of the prompt, right-padded."""
    sources = _sources(batch)
    width = max(len(source) for source in sources)
    rows = torch.tensor([source + [0] * (width - len(source)) for source in sources]).to(batch.input_ids.device)
    real = torch.tensor([[1] * len(source) + [0] * (width - len(source)) for source in sources])
    out = decoder_of(model)(
        input_ids=batch.input_ids[0][rows], attention_mask=real.to(rows.device), use_cache=False, return_dict=True
    )
    # a response's states stand at their positions in its own row
    first = torch.arange(batch.lengths.numel(), device=rows.device)
    if batch.lengths.numel() != len(sources):  # ranked groups may have gaps
        first = torch.cumsum((batch.lengths.flatten() > 0).long(), 0) - 1
    index = first[batch.owner] * width + batch.position_ids[0][batch.scored]
    return out.last_hidden_state.flatten(0, 1).index_select(0, index)


def _sources(batch: PackedBatch) -> list[list[int]]:
    """For each response the packed indices of its sequence, in the order of `owner`."""
    sources = []
    for tree in batch.trees:
        shared = list(range(tree.start, tree.start + tree.shared))
        at = tree.start + tree.shared
        for length in tree.branches or (0,):
            sources.append([*shared, *range(at, at + length)])
            at += length
    return sources


@torch.no_grad()
def preflight(model: Any) -> str | None:
    """None where both roads give the same log-probs on two short groups, else the reason in one line.

    The model must stand on the padded road.
    """
    from preftune.data.pack import pack

    config = model.config.get_text_config()
    obstacle = obstacle_to_packing(model, config)
    if obstacle is not None:
        return obstacle
    ids = some_ids(config)
    origin = Origin("preflight", "check", 1)
    groups = [
        TokenizedGroup(ids[:40], [ids[40:60], ids[50:85]], origin),
        TokenizedGroup(ids[60:63], [ids[70:90], ids[70:75] + ids[90:100]], origin),
    ]
    was_training, before = model.training, model.road
    batch = pack(groups).to(model.device)
    model.eval()
    try:
        padded = response_logps(model, batch).means
        take_road(model, "packed")
        plan = AttentionPlan(batch.trees, batch.input_ids.device)
        packed_states(model, batch, plan)
        packed = response_logps(model, batch).means
    except Exception as cause:
        return f"a packed row does not pass through its layers ({type(cause).__name__}: {str(cause).splitlines()[0]})"
    finally:
        take_road(model, before)
        model.train(was_training)
    if plan.layers_served != config.num_hidden_layers:
        return f"only {plan.layers_served} of its {config.num_hidden_layers} layers use plain attention."
    gap, allowed = (padded - packed).abs().max().item(), tolerance_of(model)
    if not gap <= allowed:
        return f"packed and padded log-probs differ by {gap:.2g} nats per token (allowed {allowed:g})."
    return None


@torch.no_grad()
def _check_own_logits(model: Any) -> None:
    """Refuse a model whose own logits are not what the fused head makes of its states.

    Raises:
        ModelError: the log-probs differ, or the model cannot be run this way.
    """
    from preftune.data.pack import pack

    name, was_training = type(model).__name__, model.training
    ids = some_ids(model.config.get_text_config())
    model.eval()
    try:
        batch = pack([TokenizedGroup(ids[:8], [ids[8:24]], Origin("check", "check", 1))]).to(model.device)
        ours = response_logps(model, batch).means[0, 0]
        logits = model(input_ids=torch.tensor([ids[:24]], device=model.device), use_cache=False).logits[0, 7:23]
        own = logits.to(ours.dtype).log_softmax(-1).gather(1, batch.targets[:, None]).mean()
    except Exception as cause:
        lines = str(cause).splitlines() or [""]
        raise ModelError(f"{name} cannot be scored as a decoder ({type(cause).__name__}: {lines[0]}).") from cause
    finally:
        model.train(was_training)
    gap = (ours - own).abs().item()
    if not gap <= tolerance_of(model):
        raise ModelError(
            f"{name} does more to its states than one linear head: log-probs differ from its own by {gap:.2g} nats a "
            "token. Models of this kind cannot be trained here."
        )


def some_ids(config: Any) -> list[int]:
    return [(7 * i * i + 11 * i + 3) % config.vocab_size for i in range(120)]


def tolerance_of(model: Any) -> float:
    """Nats per token that two roads may differ by; rounding to few bits makes much of small differences."""
    if getattr(model, "is_quantized", False):
        return LOW_PRECISION_TOLERANCE
    return PREFLIGHT_TOLERANCE.get(compute_dtype(model.device.type, model.dtype), LOW_PRECISION_TOLERANCE)


def obstacle_to_packing(model: Any, config: Any) -> str | None:
    """What forbids packing whatever the weights: a preflight on fresh weights can be too small to show it."""
    if any(_drops_attention(name, module) for name, module in model.named_modules()):
        return "its attention dropout is on."
    return obstacle_to_own_attention(model, config)


def obstacle_to_own_attention(model: Any, config: Any) -> str | None:
    """Why an attention function of ours cannot stand in for that of all its layers."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention", "attention"}
    if kinds:
        return f"it has layers of another kind than plain attention ({', '.join(sorted(kinds))})."
    if any(isinstance(module, nn.Conv1d) for module in decoder_of(model).modules()):
        return "it has convolution or state-space layers, whose state cannot branch."
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return f"its rotary embedding ({rope['rope_type']}) depends on the longest sequence of a batch."
    return None


def _drops_attention(name: str, module: nn.Module) -> bool:
    if isinstance(module, nn.Dropout):
        return bool(module.p) and name.rpartition(".")[2] in ("attn_dropout", "attention_dropout")
    return isinstance(getattr(module, "attention_dropout", None), float) and module.attention_dropout > 0
