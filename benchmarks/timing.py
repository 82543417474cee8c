"""Timing things in turns, so that whatever else the machine does hits all of them."""

import ctypes
import time
from collections.abc import Callable, Sequence
from statistics import quantiles

import torch
from tqdm import tqdm

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep freed memory, as docs/how_to/training.md advises on a CPU; False without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def synchronized_clock(device: str) -> Callable[[], float]:
    """Return a clock that first waits for what the device still has to do."""

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def seconds_in_turns(
    actions: Sequence[Callable[[], object]], turns: int, warm_up: int, device: str
) -> list[list[float]]:
    """Return for each action the seconds of each of its turns; those that warm up come first and do not count.

    On a GPU seconds on the wall; on a CPU those of this process, for which other work on the machine hardly counts:
    with one thread (`torch.set_num_threads`) the same as on the wall of an idle machine.
    """
    clock = synchronized_clock(device) if device == "cuda" else time.process_time
    seconds: list[list[float]] = [[] for _ in actions]
    for turn in tqdm(range(warm_up + turns), disable=None):
        for action, some in zip(actions, seconds, strict=True):
            start = clock()
            action()
            if turn >= warm_up:
                some.append(clock() - start)
    return seconds


def quartiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the median under the name itself, and the quartiles beside it."""
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {name: middle, f"{name}_lower_quartile": low, f"{name}_upper_quartile": high}
