"""How memory is kept: large arrays go back to the system, small ones are used again, and what stays is left alone."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 1024 * 1024
_KEPT_BYTES = 16 * 1024 * 1024
_ARENAS = 2


def give_back_large_blocks() -> None:
    """Have glibc map each large block by itself, for as long as it is needed.

    Else it raises what it calls large to the largest block that was freed. The arrays of comparisons then come from the
    heaps of all threads, and what lies behind them keeps those from shrinking: 300 MB over 1,500 requests. Smaller ones
    come from two heaps, which keep so much for the next ones: given back and asked for again, page by page, it took as
    long as the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)


@contextmanager
def what_is_there_stays() -> Iterator[None]:
    """Python's collector passes over what exists by now: modules and routes, 200,000 objects that never go.

    Going through them takes 100 ms, in the middle of some request.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
