"""Reuse of freed memory between steps, so that the system need not clear new pages."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BYTES = 2**30
_USUAL = 32 * 2**20
"""glibc's own upper limit of the threshold for large blocks; it retains twice as much."""


@contextmanager
def freed_blocks_used_again() -> Iterator[None]:
    """Make glibc retain up to a gibibyte of freed memory, and return it at the end.

    For a loop that allocates the same arrays in every iteration. Without it, new pages take a tenth of a small step.
    """
    _keep(_BYTES, _BYTES)
    try:
        yield
    finally:
        _keep(_USUAL, 2 * _USUAL)
        _glibc("malloc_trim", 0)


def _keep(block: int, together: int) -> None:
    _glibc("mallopt", _M_MMAP_THRESHOLD, block)
    _glibc("mallopt", _M_TRIM_THRESHOLD, together)


def _glibc(name: str, *values: int) -> None:
    """Call a function of glibc's malloc, if it is the allocator."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*values)
