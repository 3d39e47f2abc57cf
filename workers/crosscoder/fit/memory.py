"""Memory that the next step uses again instead of having the system clear new pages for it."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BYTES = 2**30
_USUAL = 32 * 2**20
"""What glibc calls large at most, by itself; it keeps twice as much."""


@contextmanager
def freed_blocks_used_again() -> Iterator[None]:
    """glibc keeps what is freed, in blocks of up to a gibibyte each and all together; at the end it gives it back.

    For a loop that makes the same arrays in every round. Without it a tenth of a small step was new pages.
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
    """Call a function of glibc's malloc; where another library is in its place there is none."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*values)
