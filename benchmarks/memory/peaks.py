"""Peak memory of a training step, split by part, and what the models that are compared save.

python -m benchmarks.memory.peaks                   # planned on fake tensors; processor time of a step
python -m benchmarks.memory.peaks --device cuda --batches 4 32 --vocabularies 50257

Contenders (`benchmarks/contenders.py`) with the parameter budget and with the depth of MDLM, which has 12 layers of 768
or 24 of 1,024; windows of 512 tokens, bf16 autocast, AdamW. On a GPU the peak and the time of every step whose plan
fits are measured beside the plan. At the reference point, GPT-2's vocabulary and hidden size 768, MDLM and the tree
also come in other variants of what backward keeps:
- lean: what the package does, and all other rows: no matrix product is repeated;
- plain: blocks as autograd keeps them, nothing saved;
- recompute: MLPs repeated in five of six layers.
Every row is written when it is finished, to a partial record beside the output; --resume goes on from there.
"""

import argparse
import gc
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.contenders import CONTENDERS, REFERENCE
from benchmarks.matched_models import (
    BUDGET,
    COMPARED,
    LAYERS_AND_HEADS,
    VOCABULARIES,
    MatchedModel,
    Size,
    matched_models,
)
from benchmarks.places import RESULTS
from benchmarks.timing import seconds_in_turns
from benchmarks.training_step import diffusion_batch, training_step
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.files.records import current_commit, write_record
from modeling_treediff.training import MemoryPlan, make_lean, plan_memory, undo_lean
from modeling_treediff.training.run.out_of_memory import device_memory

RECORDS = {"cpu": RESULTS / "memory.json", "cuda": RESULTS / "memory_cuda.json"}  # by device
PRECISION = "bf16"
BATCHES = (4, 16, 32, 64)
REFERENCE_POINT = Size.full(50_257, 768)
LEAN, PLAIN, RECOMPUTE = "lean", "plain", "recompute"
TREE = "tdlm-child"  # comes in variants, beside the reference
RECOMPUTED = 5 / 6  # of the layers
KEY = ("contender", "matched", "variant", "batch_size", "vocab_size", "hidden_size")  # what tells rows apart


@dataclass(frozen=True)
class Case:
    """One row: a model in a variant, and the batch of its step."""

    model: MatchedModel
    batch_size: int
    variant: str = LEAN

    @property
    def facts(self) -> dict[str, Any]:
        """What the row says before anything is planned."""
        sizes = {"vocab_size": self.model.size.vocab_size, "hidden_size": self.model.size.hidden_size}
        return self.model.facts | {"variant": self.variant, "batch_size": self.batch_size} | sizes

    @property
    def recomputed_layers(self) -> int:
        """Layers whose MLPs backward computes again."""
        return round(RECOMPUTED * self.model.config.num_hidden_layers) if self.variant == RECOMPUTE else 0

    @property
    def settings(self) -> dict[str, Any]:
        """What training keeps in this variant, as `plan_memory` takes it."""
        if self.variant == PLAIN:
            return {"lean": False}
        chunk = CONTENDERS[self.model.contender].loss_chunk
        return {"recompute_mlp": self.recomputed_layers, "loss_chunk": chunk}

    def adapt(self, model: TreeDiffForDiffusionLM) -> None:
        """Let a model keep for backward what it keeps in this variant."""
        if self.variant == PLAIN:
            undo_lean(model)
        else:
            make_lean(model, self.settings["recompute_mlp"], self.settings["loss_chunk"])


def main() -> None:
    """Plan every row, measure what the device allows, and record it."""
    options = parse_arguments()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial_record = options.output.with_suffix(".partial.json")
    facts = {
        "sequence_length": REFERENCE_POINT.sequence_length,
        "precision": PRECISION,
        "measured": options.device == "cuda",
    }
    rows = read_rows(partial_record, facts) if options.resume else []
    done = [[row[name] for name in KEY] for row in rows]
    for case in cases(options.contenders, options.hidden_sizes, options.vocabularies, options.batches):
        if [case.facts[name] for name in KEY] in done:
            continue
        plan = plan_case(case)
        rows.append(case.facts | plan.summary() | (measure(case, plan, options.steps) if facts["measured"] else {}))
        write_record(partial_record, facts | {"rows": rows}, seed=0)
        print(rows[-1], flush=True)
    facts["rows"] = rows
    if not facts["measured"] and options.steps:
        facts["cpu_step_seconds"] = cpu_step_seconds(options.steps)
    write_record(options.output, facts, seed=0)
    partial_record.unlink(missing_ok=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: measure too (default cpu)")
    grid = parser.add_argument_group("the grid; by default all of it")
    grid.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=COMPARED, metavar="NAME")
    grid.add_argument("--hidden-sizes", type=int, nargs="+", choices=list(LAYERS_AND_HEADS), default=LAYERS_AND_HEADS)
    grid.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES, metavar="TOKENS")
    grid.add_argument("--batches", type=int, nargs="+", default=BATCHES, metavar="WINDOWS")
    parser.add_argument("--steps", type=int, default=8, help="timed steps; on a CPU, 0 for none (default %(default)s)")
    parser.add_argument("--output", type=Path, help="record; by default in benchmarks/results, of each device its own")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the partial record of a run cut off")
    options = parser.parse_args()
    options.output = options.output or RECORDS[options.device]
    if REFERENCE not in options.contenders:
        parser.error(f"--contenders lacks {REFERENCE}, to which all others are compared.")
    return options


def cases(
    contenders: list[str], hidden_sizes: list[int], vocabularies: list[int], batches: list[int]
) -> Iterator[Case]:
    """Yield every row: the grid and, at the reference point, the variants of MDLM and the tree of its budget."""
    for hidden_size in hidden_sizes:
        for vocab_size in vocabularies:
            size = Size.full(vocab_size, hidden_size)
            models = matched_models(contenders, size)
            for batch in batches:
                yield from (Case(model, batch) for model in models)
                if size == REFERENCE_POINT:
                    in_variants = [model for model in models if model.contender in (REFERENCE, TREE)]
                    in_variants = [model for model in in_variants if BUDGET in model.matched]
                    yield from (Case(model, batch, name) for model in in_variants for name in (PLAIN, RECOMPUTE))


def read_rows(file: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a partial record; none if there is none. ValueError if it was made otherwise than now."""
    if not file.exists():
        return []
    record = json.loads(file.read_text(encoding="utf-8"))
    expected = facts | {"commit": current_commit()}
    if differing := [name for name, value in expected.items() if record[name] != value]:
        raise ValueError(f"{file} was made with another {', '.join(differing)}: delete it to begin anew.")
    return record["rows"]


def plan_case(case: Case) -> MemoryPlan:
    """Return the plan of a row's training step."""
    size, length = case.batch_size, case.model.size.sequence_length
    return plan_memory(case.model.config, size, length, precision=PRECISION, **case.settings)


def measure(case: Case, plan: MemoryPlan, steps: int) -> dict[str, Any]:
    """Return the peaks that CUDA allocates and reserves and the median seconds of a step, or why there are none."""
    if not plan.fits(device_memory(torch.device("cuda"))):
        return {"not_measured": "by plan it does not fit"}
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    try:
        model = case.model.make()
        case.adapt(model)
        torch.nn.Module.to(model, "cuda")
        step = training_step(model, diffusion_batch(model, case.batch_size, case.model.size.sequence_length), PRECISION)
        for _ in range(3):
            step()
        torch.cuda.reset_peak_memory_stats()
        seconds = seconds_in_turns([step], steps, 0, "cuda")[0]
    except torch.OutOfMemoryError:
        return {"not_measured": "out of memory"}
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "step_seconds": round(median(seconds), 5),
    }


def cpu_step_seconds(steps: int) -> dict[str, float]:
    """Return the median seconds of processor time of a step of the tree's model, the variants taking turns."""
    tree = next(model for model in matched_models([TREE], REFERENCE_POINT) if BUDGET in model.matched)
    torch.manual_seed(0)
    model = tree.make()
    step = training_step(model, diffusion_batch(model, 1, REFERENCE_POINT.sequence_length), PRECISION)
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
