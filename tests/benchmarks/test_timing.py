"""Timing in turns."""

import platform

import pytest
from helpers.processes import run_python

from benchmarks import timing


def test_turns_interleave_and_warm_up_does_not_count():
    called = []
    actions = [lambda: called.append("a"), lambda: called.append("b")]
    seconds = timing.seconds_in_turns(actions, turns=3, warm_up=2, device="cpu")
    assert "".join(called) == "ab" * 5 and [len(some) for some in seconds] == [3, 3]


def test_quartiles_of_one_value_are_that_value():
    assert timing.quartiles("x", [5.0]) == {"x": 5, "x_lower_quartile": 5, "x_upper_quartile": 5}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_freed_memory is for glibc")
def test_freed_memory_stays_with_the_process_once_it_is_to_be_kept():
    """As glibc has it; each in a fresh process, whose resident memory after the tensor is freed is printed."""
    code = (
        "import os, sys, torch; from benchmarks.timing import keep_freed_memory\n"
        "kept = keep_freed_memory() if sys.argv[1] == 'keep' else True\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGESIZE')\n"
        "before = resident(); tensor = torch.ones(2**25); del tensor\n"
        "print(kept, resident() - before)"
    )
    environment = {"MALLOC_MMAP_MAX_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
    ran = [run_python("-c", code, what, **environment) for what in ("keep", "free")]
    assert not any(one.returncode for one in ran), [one.stderr for one in ran]
    (kept, most), (_, least) = (one.stdout.split() for one in ran)
    assert kept == "True" and int(most) > 0.9 * 2**27 and int(least) < 0.1 * 2**27
