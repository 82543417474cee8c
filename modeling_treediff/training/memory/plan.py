"""The memory of a training step, known before the run: its peak by purpose, its course, and what fits a device.

`plan_memory` runs one optimizer step on fake tensors (`fake_step.py`) and adds up what lives at each moment, rounded up
to blocks of 512 bytes as the CUDA allocator does. It is what `torch.cuda.max_memory_allocated` counts. A device needs
more, its context and gaps that the allocator cannot fill: `USABLE` is the part of a device's memory that we count on.

Several processes:
- DDP keeps everything in each process, and buckets as large as the gradients to exchange them.
- FSDP2, sharded by block, divides parameters, gradients, optimizer state and the average evenly. Gathered in full, from
  forward to the end of backward, are the parameters outside of the blocks (embedding, norm, head) and of two blocks,
  the one at work and the next, with the gradients of one block.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from modeling_treediff.building.budget import count_parameters
from modeling_treediff.configuration_treediff import LARGEST_COUNT, TreeDiffConfig

from .fake_step import TrainingStep, record_step
from .ledger import BLOCK, CATEGORIES, Ledger
from .tracker import readable, text_table

USABLE = 0.92
SHARDED = ("parameters", "EMA", "optimizer state", "gradients")
EXCHANGE = "exchange"  # the category of what several processes need to exchange gradients and parameters


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one process over an optimizer step.

    Attributes:
        step: what was planned.
        timeline: category -> (events,) bytes alive after each allocation or release, from the first forward on.
        phases: (name, event it begins at) in order.

    """

    step: TrainingStep
    timeline: dict[str, np.ndarray] = field(repr=False)
    phases: list[tuple[str, int]] = field(repr=False)

    @property
    def total(self) -> np.ndarray:
        """(events,) bytes of all categories."""
        return np.sum(list(self.timeline.values()), axis=0)

    @property
    def peak(self) -> int:
        """The most bytes that live at once."""
        return int(self.total.max())

    @property
    def peak_phase(self) -> str:
        """The phase of the step in which that is."""
        event = int(self.total.argmax())
        return [name for name, start in self.phases if start <= event][-1]

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each category at the peak; they sum to it."""
        event = int(self.total.argmax())
        return {name: int(course[event]) for name, course in self.timeline.items()}

    def __str__(self) -> str:
        rows = [("memory", "at the peak", "share", "at most")]
        for name, size in self.parts.items():
            rows.append((name, readable(size), f"{size / self.peak:.0%}", readable(self.timeline[name].max())))
        step, config = self.step, self.step.model_config
        return (
            f"{sum(count_parameters(config).values()) / 1e6:.1f}M parameters in {config.num_hidden_layers} layers, "
            f"{step.batch_size} windows of {step.sequence_length} tokens, {step.precision}; per process, the peak is "
            f"in {self.peak_phase}:\n{text_table([*rows, ('all', readable(self.peak), '100%', readable(self.peak))])}"
        )

    def summary(self) -> dict[str, Any]:
        """Return the figures as JSON has them: bytes."""
        return {"peak_bytes": self.peak, "peak_phase": self.peak_phase, "parts_bytes": self.parts}

    def fits(self, memory: int) -> bool:
        """Tell whether a device with `memory` bytes is enough."""
        return self.peak <= USABLE * memory

    def advice(self, memory: int) -> str:
        """Say what to change so that the step fits a device with `memory` bytes, with the peak after each change."""
        usable = int(USABLE * memory)
        needs = f"This step needs {readable(self.peak)} of the {readable(usable)} that such a device leaves to tensors"
        if self.fits(memory):
            return f"{needs}: it fits."
        ways = [way for way in (_way(saving, options, usable) for options, saving in _savings(self.step)) if way]
        if not ways:
            return f"{needs}, and no batch fits: take a smaller model, shorter windows or FSDP over several devices."
        return f"{needs}. The same step in less: {'; or '.join(ways)}."


def plan_memory(model_config: TreeDiffConfig, batch_size: int, sequence_length: int, **options: Any) -> MemoryPlan:
    """Predict the memory of one training step, per process, without allocating it; takes a second or two.

    Args:
        model_config: sizes of the model.
        batch_size: windows per process and forward pass.
        sequence_length: tokens per window.
        options: the other fields of `TrainingStep`.

    Raises:
        ValueError: an unknown precision, sizes below 1 or above a million, windows longer than the positions.

    """
    step = TrainingStep(model_config, batch_size, sequence_length, **options)
    for name in ("batch_size", "accumulation", "processes"):
        if getattr(step, name) > LARGEST_COUNT:
            raise ValueError(f"{name} must be at most {LARGEST_COUNT:,}, got {getattr(step, name)}.")
    return plan_step(step)


def plan_step(step: TrainingStep) -> MemoryPlan:
    """Predict the memory of a step; see `plan_memory`."""
    ledger = record_step(step)
    start = ledger.phases[0][1]
    phases = [(name, event - start) for name, event in ledger.phases]
    timeline = {name: course[start:] for name, course in _courses(ledger).items()}
    if step.processes > 1:
        timeline = _share(timeline, step, phases)
    return MemoryPlan(step, {name: course for name, course in timeline.items() if course.any()}, phases)


def largest_batch(step: TrainingStep, memory: int) -> int:
    """Return the largest batch with which the step fits a device with `memory` bytes; 0 if none does.

    The peak is convex in the batch: flat where the optimizer makes it, then a line. So the chord between a batch that
    fits and one that does not leads to the answer from below in a few fake steps; every third one halves the rest.

    Args:
        step: everything but the batch size, which is ignored.
        memory: bytes of the device, of which `USABLE` are used.

    """
    peaks: dict[int, int] = {}

    def fits(batch: int) -> bool:
        peaks[batch] = plan_step(replace(step, batch_size=batch)).peak
        return peaks[batch] <= USABLE * memory

    if not fits(1):
        return 0
    low, high = 1, 8
    while fits(high):
        low, high = high, 8 * high
    while high - low > 1:
        share = (USABLE * memory - peaks[low]) / (peaks[high] - peaks[low]) if len(peaks) % 3 else 0.5
        guess = min(max(low + int(share * (high - low)), low + 1), high - 1)
        low, high = (guess, high) if fits(guess) else (low, guess)
    return low


def _courses(ledger: Ledger) -> dict[str, np.ndarray]:
    """Return for each category the bytes alive after each event."""
    change = {name: np.zeros(ledger.clock, dtype=np.int64) for name in CATEGORIES}
    for allocation in ledger.allocations:
        change[allocation.category][allocation.born] += allocation.size
        if allocation.died is not None:
            change[allocation.category][allocation.died] -= allocation.size
    return {name: steps.cumsum() for name, steps in change.items()}


def _share(timeline: dict[str, np.ndarray], step: TrainingStep, phases: list[tuple[str, int]]) -> dict[str, np.ndarray]:
    """Return one process's part, and what it needs to exchange; see the module's text."""
    parts = count_parameters(step.model_config)
    if not step.sharded:
        return timeline | {EXCHANGE: np.full_like(timeline["parameters"], 4 * sum(parts.values()))}
    shared = {
        name: -(-course // (step.processes * BLOCK)) * BLOCK if name in SHARDED else course
        for name, course in timeline.items()
    }
    block = parts["layers"] // step.model_config.num_hidden_layers
    outside = sum(parts.values()) - parts["layers"]
    width = 4 if step.precision == "fp32" else 2
    gathered = np.full_like(timeline["parameters"], width * (2 * block + outside) + width * block)
    gathered[phases[-1][1] :] = 0  # the optimizer works on shards
    return shared | {EXCHANGE: gathered}


def _savings(step: TrainingStep) -> Iterator[tuple[str, TrainingStep]]:
    """Yield the ways to need less, cheapest in time first, each with the options of `treediff train` that choose it."""
    yield "", step
    layers = step.model_config.num_hidden_layers
    if not step.gradient_checkpointing:
        if step.recompute_mlp < layers:
            yield f"--recompute-mlp {layers} ", replace(step, recompute_mlp=layers)
        yield "--gradient-checkpointing ", replace(step, gradient_checkpointing=True)


def _way(step: TrainingStep, options: str, usable: int) -> str | None:
    """Return the options with which as many windows in all take no more than `usable` bytes; None if there are none."""
    windows = step.batch_size * step.accumulation

    def plan(batch: int) -> MemoryPlan:
        return plan_step(replace(step, batch_size=batch, accumulation=windows // batch))

    divisors = [batch for batch in range(1, step.batch_size + 1) if windows % batch == 0]
    fitting = bisect_left(divisors, True, key=lambda batch: plan(batch).peak > usable)
    if not fitting:
        return None
    batch = divisors[fitting - 1]
    passes, peak = windows // batch, readable(plan(batch).peak)
    return f"{options}--batch-size {batch} --gradient-accumulation-steps {passes} ({peak})"
