"""Counts what makes the host wait for the device, on a machine without one.

Everything that is computed from the model's weights or from a batch counts as on the device; what only host numbers
went into (plans, offsets) does not.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"}
FRESH = {"ones_like", "zeros_like", "empty_like", "full_like", "new_zeros", "new_empty", "new_ones", "new_full"}
METHODS = ("tolist", "numpy", "cpu")  # these pass by the dispatcher, or do nothing on a CPU
COLLECTIVES = ("all_reduce", "all_gather", "reduce", "broadcast", "barrier", "gather", "scatter", "all_to_all")


class HostReads(TorchDispatchMode):
    """As a context. `found`: names of the operations that read the device; `collectives`: of those that ranks share."""

    def __init__(self, on_device: Iterable[Tensor]) -> None:
        super().__init__()
        self.held: dict[int, Tensor] = {}
        self.found: list[str] = []
        self.collectives: list[str] = []
        self.mark(on_device)

    def mark(self, values: Iterable[object]) -> None:
        for value in tree_leaves(list(values)):
            if isinstance(value, Tensor):
                self.held[value.untyped_storage()._cdata] = value

    def on_device(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self.held

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        inputs = tree_leaves((args, kwargs))
        device = [value for value in inputs if self.on_device(value)]
        indices = tree_leaves(args[1:2]) if name.startswith("index") else []
        masks = any(isinstance(value, Tensor) and value.dtype == torch.bool for value in indices)
        if device and (name in READS or masks):
            self.found.append(name)
        out = func(*args, **kwargs)
        if device and name not in FRESH:
            self.mark([out])
            self.mark([args[0]] if name.endswith("_") else [])
            self.mark([kwargs["out"]] if "out" in kwargs else [])
        return out

    def __enter__(self):
        self.before = {name: getattr(dist, name) for name in COLLECTIVES}
        for name in COLLECTIVES:
            setattr(dist, name, self._counted(name))
        self.methods = {name: getattr(Tensor, name) for name in METHODS}
        for name in METHODS:
            setattr(Tensor, name, self._noted(name))
        return super().__enter__()

    def __exit__(self, *error):
        for name, function in self.before.items():
            setattr(dist, name, function)
        for name, method in self.methods.items():
            setattr(Tensor, name, method)
        return super().__exit__(*error)

    def _counted(self, name: str):
        def call(*args, **kwargs):
            self.collectives.append(name)
            return self.before[name](*args, **kwargs)

        return call

    def _noted(self, name: str):
        def call(tensor, *args, **kwargs):
            if self.on_device(tensor):
                self.found.append(name)
            return self.methods[name](tensor, *args, **kwargs)

        return call
