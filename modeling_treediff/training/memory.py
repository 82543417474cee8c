"""Peak memory of a process: the accelerator's, or the resident set where there is none."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

GIBIBYTE = 2**30
PROCESS_STATUS = Path("/proc/self/status")
PROCESS_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class PeakMemory:
    """Peaks since the last reset, in bytes.

    Attributes:
        allocated: tensors on the CUDA device; None on a CPU.
        reserved: what the CUDA allocator holds for them; None on a CPU.
        resident: resident set size of the process on the host.

    """

    allocated: int | None
    reserved: int | None
    resident: int

    def __str__(self) -> str:
        if self.allocated is None or self.reserved is None:
            return f"{self.resident / GIBIBYTE:.2f} GiB RSS"
        return f"{self.allocated / GIBIBYTE:.2f} GiB ({self.reserved / GIBIBYTE:.2f} reserved)"


class MemoryTracker:
    """Reports peak memory since its creation or its last reset."""

    def __init__(self, device: torch.device | str) -> None:
        """Track the device a model trains on."""
        self.device = torch.device(device)
        self._phases: dict[str, PeakMemory] = {}
        self.reset()

    def reset(self) -> None:
        """Start a new peak; where the host cannot (outside Linux), its peak since the process began goes on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            PROCESS_RESET.write_text("5")  # resets VmHWM, see proc(5)
        except OSError:
            pass

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as this phase."""
        yield
        if name not in self._phases or self.peak().resident > self._phases[name].resident:
            self._phases[name] = self.peak()

    def phases(self) -> dict[str, PeakMemory]:
        """Return the peak of each phase that has been seen."""
        return dict(self._phases)

    def peak(self) -> PeakMemory:
        """Return the peaks so far."""
        allocated = reserved = None
        if self.device.type == "cuda":
            allocated = torch.cuda.max_memory_allocated(self.device)
            reserved = torch.cuda.max_memory_reserved(self.device)
        return PeakMemory(allocated, reserved, _peak_resident_bytes())


def _peak_resident_bytes() -> int:
    lines = PROCESS_STATUS.read_text().splitlines() if PROCESS_STATUS.exists() else []
    for line in lines:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # since the process began: cannot be reset
    return peak if sys.platform == "darwin" else peak * 1024
