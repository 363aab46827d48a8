"""The C library's heap on CPU: what a step frees stays with the process for the next step.

By default glibc maps every large block afresh and gives it back when it is freed, so each step pays a page fault for
every 4 KiB that it writes first: 7 to 10 % of a step of a small model.
"""

from __future__ import annotations

import ctypes
import os
import platform

KEPT_BYTES = 1 << 30  # blocks up to this size come from the heap, and as much of it may stand free
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory; False where the C library is another, or the user has tuned it already."""
    tuned = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, KEPT_BYTES) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
