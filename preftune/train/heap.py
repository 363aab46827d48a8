"""The C library's heap on CPU: what a step frees stays with the process for the next step.

By default glibc gives freed memory at the top of the heap back to the system, so each step pays a page fault for every
4 KiB that it writes again: 5 to 10 % of a step of a small model. Blocks of many megabytes (a tile of logits, a gradient
of the head) are still mapped alone and given back: among them, kept ones would leave holes and raise the peak.
"""

from __future__ import annotations

import ctypes
import os
import platform

KEPT_BYTES = 1 << 30  # as much may stand free at the top of the heap
ALONE_BYTES = 32 << 20  # blocks from this size on are mapped alone
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory; False where the C library is another, or the user has tuned it already."""
    tuned = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, ALONE_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
