"""Processor time of a training step, by what backward keeps: the tree's model of the reference's budget, batch 1, bf16.

python -m benchmarks.memory.step_times --steps 6
"""

import argparse
import time
from statistics import median

import torch

from benchmarks.matched_models import BUDGET, matched_models
from benchmarks.memory.peaks import LEAN, PLAIN, PRECISION, RECOMPUTE, REFERENCE_POINT, TREE, Case
from benchmarks.places import RESULTS
from benchmarks.training_step import random_batch, training_step
from modeling_treediff.files.records import write_record

RECORD = RESULTS / "memory_step_times.json"


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each variant (default %(default)s)")
    facts = {"sequence_length": REFERENCE_POINT.sequence_length, "precision": PRECISION}
    write_record(RECORD, facts | {"cpu_step_seconds": cpu_step_seconds(parser.parse_args().steps)}, seed=0)


def cpu_step_seconds(steps: int) -> dict[str, float]:
    """Return the median seconds of processor time of a step of the tree's model, the variants taking turns."""
    tree = next(model for model in matched_models([TREE], REFERENCE_POINT) if BUDGET in model.matched)
    torch.manual_seed(0)
    model = tree.make()
    step = training_step(model, random_batch(model, 1, REFERENCE_POINT.sequence_length), PRECISION)
    cases = {variant: Case(tree, 1, variant) for variant in (PLAIN, LEAN, RECOMPUTE)}
    seconds: dict[str, list[float]] = {variant: [] for variant in cases}
    for _ in range(steps + 1):
        for variant, case in cases.items():
            case.adapt(model)
            start = time.process_time()
            step()
            seconds[variant].append(time.process_time() - start)
    return {variant: round(median(some[1:]), 4) for variant, some in seconds.items()}


if __name__ == "__main__":
    main()
