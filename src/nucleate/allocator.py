"""Memory that is kept instead of returned."""

from __future__ import annotations

import contextlib
import ctypes


def keep_memory() -> None:
    """Let glibc keep freed memory for the rest of the process; elsewhere, do nothing.

    By default every tensor above 128 kB is a fresh mapping, and zeroing its pages costs more than
    the arithmetic on small batches.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
