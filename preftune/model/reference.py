"""The reference model of an objective, as a function from a packed batch to log-probs without gradients.

    FrozenModel    another model
    AdapterOff     the policy with its adapter switched off: the base model is the reference
    Snapshot       the policy with its trainable weights as they were: a frozen copy that shares everything frozen

`own_reference` chooses between the last two. The reference of a run that starts from a trained adapter is that
adapter; switched off, the *base* model would be the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from preftune.model.sharding import exchange_pieces, is_partitioned, is_sharded, own_piece, to_pieces
from preftune.types import PackedBatch


class Reference(Protocol):
    """What the step asks for log-probs under the reference model."""

    def __call__(self, batch: PackedBatch, **reading: Any) -> Any:
        """`ResponseLogps`, or what the policy gives for `read`."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All its weights, to know it by; under ZeRO-3 they are in pieces (`preftune.model.sharding.whole`)."""
        ...

    def settings(self) -> dict[str, Any]:
        """What its log-probs depend on beside weights and precision: configuration, road, adapter."""
        ...

    def describe(self) -> str:
        """One phrase for the log."""
        ...


class FrozenModel:
    """A model of its own, a policy already (`preftune.model.policy.to_policy`)."""

    def __init__(self, model: Any) -> None:
        self.model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, **reading: Any) -> Any:
        return self.model(batch=batch, **reading)

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict(keep_vars=True)

    def settings(self) -> dict[str, Any]:
        return _settings(self.model)

    def describe(self) -> str:
        return f"the model {self.model.config.name_or_path or type(self.model).__name__}"


class AdapterOff:
    """A policy with an adapter (`peft.PeftModel`), scored without it."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, **reading: Any) -> Any:
        """PEFT sets `requires_grad` of the adapter at both ends: of the pieces, from which what is gathered has it."""
        to_pieces(self.model)
        with evaluating(self.model), self.model.disable_adapter():
            found = self.model(batch=batch, **reading)
            to_pieces(self.model)
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Without the adapter: its factors, and what it trains beside them (whole modules, rows of tokens)."""
        weights = self.model.state_dict(keep_vars=True)
        return {name: value for name, value in weights.items() if "lora_" not in name and not value.requires_grad}

    def settings(self) -> dict[str, Any]:
        return _settings(self.model, adapter=False)

    def describe(self) -> str:
        return "the base model (adapter off)"


class Snapshot:
    """A policy scored with its trainable weights as they are now; costs a copy of these alone.

    Args:
        copy: False for a reference that is used up before the policy takes its first step, or one of weights that an
            engine is still to cut in pieces: `keep` copies them then.
    """

    def __init__(self, model: Any, copy: bool = True) -> None:
        self.model = model
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.partial = len(trained) < sum(1 for _ in model.parameters())
        self.kept: dict[str, Tensor] = {}
        self.in_pieces = False
        if copy:
            self.keep()

    def keep(self) -> None:
        """Copy the weights as they are now; of sharded ones this rank's pieces. The first copy stays."""
        if not self.kept:
            self.in_pieces = is_sharded(self.model)
            self.kept = {name: own_piece(p).clone() for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, **reading: Any) -> Any:
        with evaluating(self.model), self._swapped_in():
            return self.model(batch=batch, **reading)

    @contextmanager
    def _swapped_in(self) -> Iterator[None]:
        """Storage is exchanged, nothing is copied; a tied weight is one parameter and is exchanged once.

        The pieces of a sharded weight lie in an engine's buffers, and their content is exchanged instead.
        """
        exchange = self._exchange_pieces if self.in_pieces else self._exchange_storage
        exchange()
        try:
            yield
        finally:
            exchange()

    def _exchange_pieces(self) -> None:
        exchange_pieces(self.model, self.kept)

    def _exchange_storage(self) -> None:
        """Autocast keeps its casts by parameter, whatever storage it has, so they are forgotten."""
        for name, parameter in self.model.named_parameters():
            if name in self.kept:
                kept = self.kept[name].to(parameter.device)
                self.kept[name], parameter.data = parameter.data, kept
        torch.clear_autocast_cache()

    def state_dict(self) -> dict[str, Tensor]:
        with self._swapped_in():
            weights = self.model.state_dict(keep_vars=True)
            return {name: value if is_partitioned(value) else value.detach() for name, value in weights.items()}

    def settings(self) -> dict[str, Any]:
        return _settings(self.model)

    def describe(self) -> str:
        if hasattr(self.model, "peft_config"):
            return "the starting adapter, frozen"
        return "a frozen copy of what is trained" if self.partial else "a frozen copy of the model"


def own_reference(model: Any, copy: bool = True) -> AdapterOff | Snapshot:
    """The policy as it stands now, as a reference.

    A fresh adapter adds nothing yet, so it is switched off; a trained one, or one whose initialisation changes the base
    weights (PiSSA, OLoRA), is kept as it is, as are full weights. `copy`: see `Snapshot`.
    """
    return AdapterOff(model) if adds_nothing(model) else Snapshot(model, copy)


def adds_nothing(model: Any) -> bool:
    """Whether the model has an adapter, and all its B matrices are zero."""
    if not hasattr(model, "peft_config"):
        return False
    factors = [p for name, p in model.named_parameters() if ".lora_B." in name or ".lora_embedding_B." in name]
    return bool(factors) and not any(factor.detach().any() for factor in factors)


# Where a configuration was read from, and by what: another place is not another model.
_ORIGINS = ("_name_or_path", "transformers_version", "base_model_name_or_path", "inference_mode", "peft_version")


def _settings(model: Any, adapter: bool = True) -> dict[str, Any]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = {"road": base.road, "model": base.config.to_dict()}
    if adapter and hasattr(model, "peft_config"):
        found["adapters"] = {name: config.to_dict() for name, config in model.peft_config.items()}
    for place in (found["model"], *found.get("adapters", {}).values()):
        for key in _ORIGINS:
            place.pop(key, None)
    return found


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout, and back in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
