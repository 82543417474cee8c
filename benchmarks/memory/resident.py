"""Peak resident memory of a training step on a CPU, measured in a process of its own.

The allocator of that process gives freed blocks back to the kernel at once, so that what is resident is what is alive.
Products in bf16 are those of `bf16_products.py`. Kernels have run before, on a tiny model, and the optimizer has its
state from a step on a tiny batch. What is resident before the model is made does not count.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unittest.mock import patch

import torch
from transformers import PreTrainedModel

from benchmarks.memory.bf16_products import use_fp32_tiles
from benchmarks.training_step import random_batch, training_step
from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.training.memory.tracker import MemoryTracker

RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
KEEP = "MALLOC_MMAP_MAX_"  # whose 0 would keep all blocks
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def resident_bytes(make: Callable[[], PreTrainedModel], precision: str, shape: tuple[int, int]) -> int:
    """Return the peak of the resident set over one training step, above what is resident without the model.

    Args:
        make: returns the model; it is called in the other process, so it must be possible to pickle it.
        precision: "fp32" or "bf16".
        shape: windows of the batch, and tokens of each.

    Raises:
        concurrent.futures.process.BrokenProcessPool: the process was killed, for want of memory for example.

    """
    with patch.dict(os.environ, RETURN_AT_ONCE):
        os.environ.pop(KEEP, None)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(_measure, make, precision, shape).result()


def _measure(make: Callable[[], PreTrainedModel], precision: str, shape: tuple[int, int]) -> int:
    torch.manual_seed(0)
    library = use_fp32_tiles()  # in effect while it is referred to
    _take_steps(TreeDiffForDiffusionLM.from_tree(VocabularyTree.flat(64), **TINY), precision, (2, 16))
    before = _resident_now()
    peak = _take_steps(make(), precision, shape)
    del library
    return peak - before


def _take_steps(model: PreTrainedModel, precision: str, shape: tuple[int, int]) -> int:
    """Take a step on a tiny batch and one on a batch of the shape; return the peak of the second."""
    batch = random_batch(model, 1, 8)
    step = training_step(model, batch, precision)
    step()
    batch.update(random_batch(model, *shape))
    tracker = MemoryTracker("cpu")
    step()
    return tracker.peak().resident


def _resident_now() -> int:
    return MemoryTracker("cpu").peak().resident
