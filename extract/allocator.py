"""How the C library treats the memory of activations."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER = 2**31 - 1
_LARGEST = 1 << 25  # that glibc takes: larger arrays are mapped one by one


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep memory that is freed, in this process and from now on.

    Activations are freed and asked for again in every forward pass. By default the end of the heap goes back to the system
    once a few of them are free there, and comes again a page at a time: in runs whose heap happens to lie so, that took
    8 to 14 % of the time on a CPU. The peak of a run of 24 blocks was the same with and without.

    Returns:
        Whether the C library has been told; others than glibc are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_MMAP_THRESHOLD, _LARGEST))
