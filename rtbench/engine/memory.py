"""What becomes of the memory that tensors free."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt."""
KEPT, AHEAD = 2**31 - 1, 2**26
"""Free bytes at the end of the heap that are kept, the most there can be; bytes that are asked for beyond what is needed."""


def reuse_freed() -> None:
    """Lets this process use again what it frees, where its C library is glibc; elsewhere nothing changes.

    glibc hands large blocks back to the system as soon as they are free. Tensors of megabytes come and go with every step, and each
    would be mapped anew and its pages faulted in one by one: a twentieth of the time of an attack on an MLP, a tenth of training a CNN.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, KEPT)
        libc.mallopt(TOP_PAD, AHEAD)


def give_back() -> None:
    """Hands back to the system what is free now, as between two stages that need different amounts."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
