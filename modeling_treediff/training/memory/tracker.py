"""Peak memory of a process, overall and by phase: the accelerator's, and the resident set on the host."""

import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

MEBIBYTE, GIBIBYTE = 2**20, 2**30
PROCESS_STATUS = Path("/proc/self/status")
PROCESS_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class PeakMemory:
    """Peaks over some time, in bytes.

    Attributes:
        allocated: tensors on the accelerator; None on a CPU and where the accelerator counts no peaks (MPS).
        reserved: what the allocator holds for them; None likewise.
        resident: resident set size of the process on the host.

    """

    allocated: int | None
    reserved: int | None
    resident: int

    def __str__(self) -> str:
        if self.allocated is None or self.reserved is None:
            return f"{self.resident / GIBIBYTE:.2f} GiB RSS"
        return f"{self.allocated / GIBIBYTE:.2f} GiB ({self.reserved / GIBIBYTE:.2f} reserved)"

    @property
    def on_device(self) -> int:
        """Bytes where the model is: on the accelerator, or in the resident set."""
        return self.resident if self.allocated is None else self.allocated

    def or_more(self, other: "PeakMemory | None") -> "PeakMemory":
        """Return the peaks over both times."""
        if other is None:
            return self
        if self.allocated is None or self.reserved is None or other.allocated is None or other.reserved is None:
            return PeakMemory(None, None, max(self.resident, other.resident))
        return PeakMemory(
            max(self.allocated, other.allocated),
            max(self.reserved, other.reserved),
            max(self.resident, other.resident),
        )


class MemoryTracker:
    """Reports the peak memory of this process since its creation or last reset, and of each phase by name.

    A change of phase takes some tens of microseconds, so phases may be as short as the forward pass of a step. On an
    accelerator, work that is still queued when a phase ends has been allocated in it: nothing waits for the device.
    """

    def __init__(self, device: torch.device | str) -> None:
        """Track the device a model trains on."""
        self.device = torch.device(device)
        self._counters = _peak_counters(self.device)
        self.reset()

    def reset(self) -> None:
        """Forget all peaks; where the host cannot (outside Linux), its peak since the process began goes on."""
        self._overall: PeakMemory | None = None
        self._phases: dict[str, PeakMemory] = {}
        self._running: list[str] = []
        self._restart()

    def peak(self) -> PeakMemory:
        """Return the peaks so far."""
        return self._measure().or_more(self._overall)

    def phases(self) -> dict[str, PeakMemory]:
        """Return the peaks of each phase that has ended, in the order in which they first began."""
        return dict(self._phases)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as that phase, and as every phase around it; phases of one name are one."""
        self._close()
        self._running.append(name)
        try:
            yield
        finally:
            self._close()
            self._running.pop()

    def _close(self) -> None:
        """Credit the peaks since the last change of phase to all phases that are running, and start new ones."""
        measured = self._measure()
        self._overall = measured.or_more(self._overall)
        for name in self._running:
            self._phases[name] = measured.or_more(self._phases.get(name))
        self._restart()

    def _measure(self) -> PeakMemory:
        allocated = reserved = None
        if self._counters is not None:
            allocated = self._counters.max_memory_allocated(self.device)
            reserved = self._counters.max_memory_reserved(self.device)
        return PeakMemory(allocated, reserved, _peak_resident_bytes())

    def _restart(self) -> None:
        if self._counters is not None:
            self._counters.reset_peak_memory_stats(self.device)
        try:
            PROCESS_RESET.write_text("5")  # resets VmHWM, see proc(5)
        except OSError:
            pass


def memory_report(processes: Sequence[Mapping[str, PeakMemory]]) -> str:
    """Return a table of the phases: the largest peak of any process, and which one had it.

    Args:
        processes: `MemoryTracker.phases()` of each process, by rank.

    """
    rows = [("phase", "peak memory", "process")]
    for name in dict.fromkeys(name for phases in processes for name in phases):
        peaks = {rank: phases[name] for rank, phases in enumerate(processes) if name in phases}
        largest = max(peaks, key=lambda rank: peaks[rank].on_device)
        rows.append((name, str(peaks[largest]), str(largest)))
    return text_table(rows)


def readable(size: float) -> str:
    """Return a number of bytes as text."""
    if 0 < size < MEBIBYTE / 10:
        return f"{size / 1024:.3g} KiB"
    return f"{size / GIBIBYTE:.3g} GiB" if size >= GIBIBYTE / 10 else f"{size / MEBIBYTE:.3g} MiB"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _peak_counters(device: torch.device) -> ModuleType | None:
    """Return the module whose peak counters cover the device: torch.cuda and its like, else torch.accelerator's."""
    if device.type == "cpu":
        return None
    for module in (torch.get_device_module(device), torch.accelerator):
        if hasattr(module, "max_memory_allocated") and hasattr(module, "reset_peak_memory_stats"):
            try:
                module.max_memory_allocated(device)
            except (
                RuntimeError,
                NotImplementedError,
            ):  # torch.accelerator knows devices whose allocator keeps no peaks
                continue
            return module
    return None


def _peak_resident_bytes() -> int:
    lines = PROCESS_STATUS.read_text().splitlines() if PROCESS_STATUS.exists() else []
    for line in lines:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # since the process began: cannot be reset
    return peak if sys.platform == "darwin" else peak * 1024
