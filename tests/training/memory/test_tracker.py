"""Peaks by phase, on the host and from an accelerator's counters."""

import mmap
import os
from types import SimpleNamespace

import pytest
import torch

from modeling_treediff.training.memory import tracker as memory
from modeling_treediff.training.memory.tracker import PROCESS_RESET, MemoryTracker, PeakMemory, memory_report, readable

MEBIBYTE = 2**20
needs_reset = pytest.mark.skipif(not os.access(PROCESS_RESET, os.W_OK), reason="the peak RSS cannot be reset here")


def touch(size):
    """Make `size` bytes resident, straight from the kernel, and give them back."""
    with mmap.mmap(-1, size) as block:
        block.write(b"x" * size)


@needs_reset
def test_each_phase_has_its_own_peak_and_the_whole_the_largest():
    tracker = MemoryTracker("cpu")
    with tracker.phase("small"):
        touch(8 * MEBIBYTE)
    with tracker.phase("large"):
        touch(96 * MEBIBYTE)
    with tracker.phase("idle"):
        pass
    peaks = {name: peak.resident for name, peak in tracker.phases().items()}
    assert list(peaks) == ["small", "large", "idle"]
    assert peaks["large"] - max(peaks["small"], peaks["idle"]) > 48 * MEBIBYTE
    assert tracker.peak().resident == peaks["large"]
    tracker.reset()
    assert tracker.phases() == {} and tracker.peak().resident < peaks["large"] - 48 * MEBIBYTE


@pytest.fixture
def counters(monkeypatch):
    """An accelerator whose peak is a number that the test sets; a reset lowers it to what is allocated."""
    device = SimpleNamespace(now=0, peak=0)

    def allocate(size):
        device.now += size
        device.peak = max(device.peak, device.now)

    device.allocate = allocate
    device.max_memory_allocated = lambda _: device.peak
    device.max_memory_reserved = lambda _: 2 * device.peak
    device.reset_peak_memory_stats = lambda _: setattr(device, "peak", device.now)
    monkeypatch.setattr(memory, "_peak_counters", lambda _: device)
    return device


def test_phases_within_phases_count_for_both(counters):
    tracker = MemoryTracker("cuda")
    with tracker.phase("evaluation"):
        counters.allocate(3)
        with tracker.phase("generation"):
            counters.allocate(7)
            counters.allocate(-9)
        counters.allocate(1)
    counters.allocate(4)
    allocated = {name: peak.allocated for name, peak in tracker.phases().items()}
    assert allocated == {"generation": 10, "evaluation": 10}
    assert tracker.peak().allocated == 10 and tracker.peak().reserved == 20
    counters.allocate(90)
    assert tracker.peak().allocated == 96  # outside of any phase too


def test_a_phase_entered_again_keeps_its_largest_peak_and_ends_also_by_an_error(counters):
    tracker = MemoryTracker("cuda")
    for size in (5, 50, 2):
        with pytest.raises(KeyError), tracker.phase("forward"):
            counters.allocate(size)
            counters.allocate(-size)
            raise KeyError
    with tracker.phase("backward"):
        counters.allocate(1)
    assert {name: peak.allocated for name, peak in tracker.phases().items()} == {"forward": 50, "backward": 1}


def test_the_report_names_the_process_that_needed_most():
    first = {"forward": PeakMemory(2**30, 2**31, 5), "load": PeakMemory(1, 1, 1)}
    second = {"forward": PeakMemory(3 * 2**29, 2**31, 4)}
    lines = memory_report([first, second]).splitlines()
    assert lines[0].split() == ["phase", "peak", "memory", "process"]
    assert lines[1].split() == ["forward", "1.50", "GiB", "(2.00", "reserved)", "1"]
    assert lines[2].split()[-1] == "0" and len(lines) == 3
    assert "0.00 GiB RSS" in memory_report([{"load": PeakMemory(None, None, 1000)}])


def test_peaks_of_two_times_are_the_larger_ones():
    assert PeakMemory(1, 9, 5).or_more(PeakMemory(2, 3, 4)) == PeakMemory(2, 9, 5)
    assert PeakMemory(1, 9, 5).or_more(None) == PeakMemory(1, 9, 5)
    assert PeakMemory(None, None, 5).or_more(PeakMemory(None, None, 7)) == PeakMemory(None, None, 7)


@pytest.mark.gpu
def test_phases_on_the_gpu():
    tracker = MemoryTracker("cuda")
    with tracker.phase("large"):
        block = torch.ones(64 * MEBIBYTE // 4, device="cuda")
    del block
    with tracker.phase("idle"):
        pass
    peaks = tracker.phases()
    assert peaks["large"].allocated - peaks["idle"].allocated >= 60 * MEBIBYTE


def test_sizes_read_as_numbers_of_three_digits():
    shown = [readable(size) for size in (0, 1024, 100_000, 200_000, 3 * 2**20, 2**30)]
    assert shown == ["0 MiB", "1 KiB", "97.7 KiB", "0.191 MiB", "3 MiB", "1 GiB"]
