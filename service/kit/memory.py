"""Memory settings of a process: return large arrays to the system, and skip permanent objects in collections."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 1024 * 1024
_TRIM_BYTES = 16 * 1024 * 1024
_ARENAS = 2


def return_large_blocks() -> None:
    """Make glibc map every large block separately and unmap it when it is freed.

    By default, glibc raises its threshold for large blocks to the largest block freed so far. The arrays of comparisons
    then come from the heaps of all threads, and later allocations keep those heaps from shrinking: 300 MB after 1,500
    requests. Smaller blocks come from two heaps, which retain some memory for reuse: returning and requesting it page
    by page took as long as the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl does not have it
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Exclude all existing objects from garbage collection: modules and routes, 200,000 objects that are never freed.

    Traversing them takes 100 ms, in the middle of some request.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
