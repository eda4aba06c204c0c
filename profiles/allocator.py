"""Freed memory kept for the next tensor instead of given back: taking a page anew can cost more than computing in it.

glibc maps every large block afresh and unmaps it when it is freed, so every temporary of a backward pass faults in all
its pages. On a virtual machine, whose host has to find each, that was a good part of the time of a model's profile.
"""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""

MAPPED_FROM_BYTES = 2**30
KEPT_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for good; whether its C library can be told so (glibc can)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, MAPPED_FROM_BYTES)) and bool(mallopt(TRIM_THRESHOLD, KEPT_BYTES))
