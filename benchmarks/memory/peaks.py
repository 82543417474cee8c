"""Peak memory of a training step, split by part, and what the models that are compared save.

python -m benchmarks.memory.peaks                   # planned on fake tensors
python -m benchmarks.memory.peaks --measure cpu --hidden-sizes 768 --vocabularies 50257 --batches 4 8 16 \
    --contenders mdlm mdlm-chunked hdlm tdlm-child tree tree-binomial ar
python -m benchmarks.memory.peaks --measure cuda --hidden-sizes 768 --vocabularies 50257 --batches 4 32

Contenders (`benchmarks/contenders.py`) with the parameter budget and with the depth of MDLM, which has 12 layers of 768
or 24 of 1,024; windows of 512 tokens, AdamW. With `--measure`, the peak of every step whose plan fits the device is
measured beside the plan: on a GPU what the allocator counts, and the time of a step; on a CPU the resident memory
(`resident.py`), of models of the budget alone. GPT-2 (`ar`) is measured too, but not planned. At the reference point,
GPT-2's vocabulary and hidden size 768, MDLM and the tree also come in other variants of what backward keeps, except on
a CPU:
- lean: what the package does, and all other rows: no matrix product is repeated;
- plain: blocks as autograd keeps them, nothing saved;
- recompute: MLPs repeated in five of six layers.
Every row but GPT-2's is written when it is finished, to a partial record beside the output: --resume goes on there.
"""

import argparse
import gc
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.contenders import AUTOREGRESSIVE, CONTENDERS, REFERENCE
from benchmarks.matched_models import (
    BUDGET,
    COMPARED,
    LAYERS_AND_HEADS,
    VOCABULARIES,
    MatchedModel,
    Size,
    gpt2_facts,
    make_gpt2,
    matched_models,
)
from benchmarks.memory.resident import resident_bytes
from benchmarks.places import RESULTS
from benchmarks.timing import seconds_in_turns
from benchmarks.training_step import DTYPES, random_batch, training_step
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.files.records import current_commit, write_record
from modeling_treediff.training import MemoryPlan, make_lean, plan_memory, undo_lean
from modeling_treediff.training.run.out_of_memory import device_memory

# By the device of the measurement, "" for plans alone.
RECORDS = {"": RESULTS / "memory.json", "cpu": RESULTS / "memory_cpu.json", "cuda": RESULTS / "memory_cuda.json"}
PRECISION = "bf16"
BATCHES = (4, 16, 32, 64)
REFERENCE_POINT = Size.full(50_257, 768)
LEAN, PLAIN, RECOMPUTE = "lean", "plain", "recompute"
TREE = "tree"  # comes in variants, beside the reference
RECOMPUTED = 5 / 6  # of the layers
# What tells rows apart.
KEY = ("contender", "matched", "variant", "precision", "batch_size", "vocab_size", "hidden_size")


@dataclass(frozen=True)
class Case:
    """One row: a model in a variant, and the batch of its step."""

    model: MatchedModel
    batch_size: int
    variant: str = LEAN
    precision: str = PRECISION

    @property
    def facts(self) -> dict[str, Any]:
        """What the row says before anything is planned."""
        sizes = {"vocab_size": self.model.size.vocab_size, "hidden_size": self.model.size.hidden_size}
        step = {name: getattr(self, name) for name in ("variant", "precision", "batch_size")}
        return self.model.facts | step | sizes

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

    def make(self) -> TreeDiffForDiffusionLM:
        """Return a new model in this variant."""
        model = self.model.make()
        self.adapt(model)
        return model

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
    facts: dict[str, Any] = {"sequence_length": REFERENCE_POINT.sequence_length, "measured": bool(options.measure)}
    rows = read_rows(partial_record, facts) if options.resume else []
    done = [[row[name] for name in KEY] for row in rows]
    names = [name for name in options.contenders if name != AUTOREGRESSIVE]
    grid = cases(names, options.hidden_sizes, options.vocabularies, options.batches)
    for case in (replace(case, precision=precision) for precision in options.precisions for case in grid):
        if options.measure == "cpu" and not (case.variant == LEAN and BUDGET in case.model.matched):
            continue
        if [case.facts[name] for name in KEY] in done:
            continue
        plan = plan_case(case)
        measured = measure(case, plan, options.measure, options.steps) if options.measure else {}
        rows.append(case.facts | plan.summary() | measured)
        write_record(partial_record, facts | {"rows": rows}, seed=0)
        print(rows[-1], flush=True)
    facts["rows"] = rows
    facts["autoregressive"] = measure_gpt2(options) if AUTOREGRESSIVE in options.contenders else []
    write_record(options.output, facts, seed=0)
    partial_record.unlink(missing_ok=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=("cpu", "cuda"), default="", help="on this device, beside the plans")
    grid = parser.add_argument_group("the grid; by default all of it")
    grid.add_argument(
        "--contenders", nargs="+", choices=[*CONTENDERS, AUTOREGRESSIVE], default=COMPARED, metavar="NAME"
    )
    grid.add_argument("--hidden-sizes", type=int, nargs="+", choices=list(LAYERS_AND_HEADS), default=LAYERS_AND_HEADS)
    grid.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES, metavar="TOKENS")
    grid.add_argument("--batches", type=int, nargs="+", default=BATCHES, metavar="WINDOWS")
    grid.add_argument("--precisions", nargs="+", choices=DTYPES, default=[PRECISION], help="(default bf16)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps on a GPU (default %(default)s)")
    parser.add_argument("--output", type=Path, help="record; by default in benchmarks/results, of each device its own")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the partial record of a run cut off")
    options = parser.parse_args()
    options.output = options.output or RECORDS[options.measure]
    if REFERENCE not in options.contenders:
        parser.error(f"--contenders lacks {REFERENCE}, to which all others are compared.")
    if AUTOREGRESSIVE in options.contenders and not options.measure:
        parser.error(f"--contenders {AUTOREGRESSIVE} needs --measure: there are no plans of GPT-2.")
    return options


def cases(contenders: list[str], hidden_sizes: list[int], vocabularies: list[int], batches: list[int]) -> list[Case]:
    """Return every row: the grid and, at the reference point, the variants of MDLM and the tree of its budget."""
    found: list[Case] = []
    for hidden_size in hidden_sizes:
        for vocab_size in vocabularies:
            size = Size.full(vocab_size, hidden_size)
            models = matched_models(contenders, size)
            for batch in batches:
                found += (Case(model, batch) for model in models)
                if size == REFERENCE_POINT:
                    in_variants = [model for model in models if model.contender in (REFERENCE, TREE)]
                    in_variants = [model for model in in_variants if BUDGET in model.matched]
                    found += (Case(model, batch, name) for model in in_variants for name in (PLAIN, RECOMPUTE))
    return found


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
    return plan_memory(case.model.config, size, length, precision=case.precision, **case.settings)


def measure(case: Case, plan: MemoryPlan, device: str, steps: int) -> dict[str, Any]:
    """Return what a step takes on the device, or why it is not known."""
    if not plan.fits(device_memory(torch.device(device))):
        return {"not_measured": "by plan it does not fit"}
    return measure_step(case.make, case.precision, (case.batch_size, case.model.size.sequence_length), device, steps)


def measure_step(
    make: Callable[[], PreTrainedModel], precision: str, shape: tuple[int, int], device: str, steps: int
) -> dict[str, Any]:
    """Return what a training step of the model that `make` returns takes, on windows of a shape (B, T)."""
    if device == "cuda":
        return measure_on_gpu(make, precision, shape, steps)
    return {"resident_bytes": resident_bytes(make, precision, shape)}


def measure_gpt2(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what a step of GPT-2, as transformers has it, takes on the device, a row for each point of the grid."""
    rows = []
    for hidden_size, vocab_size in itertools.product(options.hidden_sizes, options.vocabularies):
        size = Size.full(vocab_size, hidden_size)
        facts = gpt2_facts(make_gpt2(size)) | {"vocab_size": vocab_size, "hidden_size": hidden_size}
        for precision, batch_size in itertools.product(options.precisions, options.batches):
            shape = batch_size, size.sequence_length
            measured = measure_step(partial(make_gpt2, size), precision, shape, options.measure, options.steps)
            rows.append(facts | {"precision": precision, "batch_size": batch_size} | measured)
            print(rows[-1], flush=True)
    return rows


def measure_on_gpu(
    make: Callable[[], PreTrainedModel], precision: str, shape: tuple[int, int], steps: int
) -> dict[str, Any]:
    """Return the peaks that CUDA allocates and reserves and the median seconds of a step, or why there are none."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    try:
        model = make()
        torch.nn.Module.to(model, "cuda")
        step = training_step(model, random_batch(model, *shape), precision)
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


if __name__ == "__main__":
    main()
