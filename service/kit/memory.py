"""Large arrays go back to the system when they are freed."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1024 * 1024


def give_back_large_blocks() -> None:
    """Have glibc map each large block by itself, for as long as it is needed.

    Else it raises what it calls large to the largest block that was freed. The arrays of comparisons then come from the
    heaps of all threads, and what lies behind them keeps those from shrinking: 300 MB over 1,500 requests.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
