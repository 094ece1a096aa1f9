"""Freed memory stays with the process: the next step's activations lie in pages that are there already.

A step allocates and frees a gigabyte of large tensors. glibc gives every block above 32 MiB, and the end of
its heap, back to the kernel at once, and each page that is needed again costs a fault that clears it: 0.3 s
for a gigabyte, several seconds on a virtual machine whose host takes free pages away. The most memory that a
process has at once grows by a few per cent.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt's parameters, see malloc.h."""
LARGEST_KEPT_BYTES = 288 << 20
"""Blocks above, such as the dequantised head of a large model, are mapped and unmapped one by one: a hole
that one of them leaves in the heap might be bitten into, and the next would need room of its own."""
USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""With one of these variables the user has set the allocator up."""


def keep_freed_memory() -> bool:
    """For the whole process, from now on. False, and nothing is changed, where the C library is not glibc or
    the user has set it up."""
    if any(name in os.environ for name in USERS_OWN):
        return False
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version")):
        return False
    settings = ((_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES), (_M_TRIM_THRESHOLD, -1))  # -1: never trimmed
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
