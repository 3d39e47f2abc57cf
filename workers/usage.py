"""What an attempt at a run costs: device, processor seconds, peak memory, positions per second of its stages."""

import re
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class Usage:
    """Counts from where it is made. One at a time in a process: peaks are the process's own, and are set back."""

    def __init__(self) -> None:
        self._cpu = _cpu_seconds()
        self.rates: dict[str, float] = {}
        """Stage -> positions per second, as the stage itself counts them"""
        with suppress(OSError):  # not on Linux: then the peak is that of the process's whole life
            _CLEAR.write_text("5")
        if (torch := _cuda()) is not None:
            torch.cuda.reset_peak_memory_stats()

    def now(self) -> dict[str, Any]:
        """Until now, as `service.runs.schemas.Usage` has it."""
        torch = _cuda()
        return {
            "device": "cpu" if torch is None else torch.cuda.get_device_name(),
            "cpu_seconds": round(_cpu_seconds() - self._cpu, 2),
            "peak_memory_bytes": _peak_memory(),
            "peak_device_memory_bytes": None if torch is None else torch.cuda.max_memory_allocated(),
            "positions_per_second": dict(self.rates),
        }


def _cuda() -> Any:
    """torch, where the run has put something on a GPU. Asked of the module that is there: to load it takes seconds."""
    torch = sys.modules.get("torch")
    cuda: Any = getattr(torch, "cuda", None)  # not there yet while another thread is loading it
    return torch if hasattr(cuda, "is_initialized") and cuda.is_initialized() else None


def _cpu_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)  # processes of a fit on several GPUs
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _peak_memory() -> int:
    with suppress(OSError):
        if found := _PEAK.search(_STATUS.read_text()):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
