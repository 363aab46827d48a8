"""A second kind of device, `second:0` and `second:1`, in host memory: see second_device.cpp."""

from __future__ import annotations

import ctypes
import types
from pathlib import Path

import torch
from torch.utils.cpp_extension import load


def open_second_device(folder: Path) -> None:
    """Build it in `folder` and make it known to this process, for good."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("second_device.cpp")
    load("second_device", [str(source)], build_directory=str(folder), extra_cflags=["-O0"])
    torch.utils.rename_privateuse1_backend("second")
    module = types.ModuleType("torch.second")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.device_count = lambda: 2
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=None: torch.zeros(1, dtype=torch.uint8)  # nothing is drawn there
    module.set_rng_state = lambda state, device=None: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch._register_device_module("second", module)
    torch.UntypedStorage.cpu = _on_host  # what torch.save calls


def _on_host(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    if storage.device.type == "cpu" or not storage.nbytes():
        return storage
    content = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    return torch.frombuffer(content, dtype=torch.uint8).clone().untyped_storage()
