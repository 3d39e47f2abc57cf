"""What an attempt at a run costs: device, processor seconds, peak memory, positions per second by stage."""

import re
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class Usage:
    """Counts from when it is created. Use one per process at a time: it resets the peaks of the process."""

    def __init__(self) -> None:
        self._cpu = _cpu_seconds()
        with suppress(OSError):  # only on Linux; elsewhere the peak is that of the whole process
            _CLEAR.write_text("5")
        if (torch := _cuda()) is not None:
            torch.cuda.reset_peak_memory_stats()

    def now(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """The usage so far, as in `service.runs.schemas.Usage`. rates: stage -> positions per second."""
        torch = _cuda()
        return {
            "device": "cpu" if torch is None else torch.cuda.get_device_name(),
            "cpu_seconds": round(_cpu_seconds() - self._cpu, 2),
            "peak_memory_bytes": _peak_memory(),
            "peak_device_memory_bytes": None if torch is None else torch.cuda.max_memory_allocated(),
            "positions_per_second": dict(rates),
        }


def _cuda() -> Any:
    """torch, if the run uses a GPU. Looks only at a loaded module: importing torch takes seconds."""
    torch = sys.modules.get("torch")
    cuda: Any = getattr(torch, "cuda", None)  # missing while another thread is still importing it
    return torch if hasattr(cuda, "is_initialized") and cuda.is_initialized() else None


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # of a fit on several GPUs
    return time.process_time() + children.ru_utime + children.ru_stime


def _peak_memory() -> int:
    with suppress(OSError):
        if match := _PEAK.search(_STATUS.read_text()):
            return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
