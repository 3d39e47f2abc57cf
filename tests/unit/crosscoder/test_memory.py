"""What a loop frees is used again while it lasts, and the system's afterwards."""

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from featurewatch.workers.crosscoder.fit.memory import freed_blocks_used_again

MEGABYTE = 2**20


def resident() -> float:
    """Megabytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / MEGABYTE


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings; elsewhere nothing is set")
def test_freed_blocks_stay_until_the_end() -> None:
    before = resident()
    with freed_blocks_used_again():
        blocks = [np.ones(20 * MEGABYTE, dtype=np.int8) for _ in range(10)]
        blocks.clear()
        assert resident() - before > 150
    assert resident() - before < 50
