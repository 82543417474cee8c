"""The line through resident memory, and whose memory it is."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.robustness.soak import MEBIBYTE, resident_bytes, slope


def test_a_leak_of_a_known_rate_is_found():
    seconds = np.arange(0.0, 1800.0, 5.0)
    noise = np.random.default_rng(0).normal(0, 3, len(seconds))
    found = slope(seconds, 670 + 12 * seconds / 3600 + noise)
    assert found["slope_mib_per_hour"] == pytest.approx(12, abs=4)
    assert found["mean_mib"] == pytest.approx(673, abs=1) and found["first_to_last_tenth_mib"] > 2
    assert slope(seconds, np.full(len(seconds), 670.0))["slope_mib_per_hour"] == pytest.approx(0, abs=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_children_counts():
    hold = (
        f"held = bytearray({64 * MEBIBYTE}); held[::4096] = b'x' * {64 * MEBIBYTE // 4096}; print(flush=True); input()"
    )
    before = resident_bytes(os.getpid())
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert resident_bytes(os.getpid()) - before > 60 * MEBIBYTE
        child.communicate(b"\n")
    assert resident_bytes(child.pid) == 0
