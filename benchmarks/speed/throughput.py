"""Tokens per second of training and generation: what the models that are compared take, against MDLM in the same turns.

python -m benchmarks.speed.throughput   # the CPU's sizes; taskset -c 0 for a core of its own
python -m benchmarks.speed.throughput --device cuda --sizes small

Contenders (`benchmarks/contenders.py`) with the parameter budget and with the depth of MDLM, and GPT-2 with its budget,
are in memory at once and take turns, step by step. A ratio is the median of the ratios of single turns, above 1 where a
model is faster than MDLM. On a CPU it is one thread, and its processor time, with freed memory kept.
- Training is a whole step with clipping and AdamW, bf16 autocast on a GPU, fp32 on a CPU. The peak is that of one large
  matrix product in the same turns and precision; a step's share of it counts all its matrix products, those that it
  repeats too.
- Generation is whole calls of `generate`, their time counted per forward pass: all texts are to get as many.
Tokens are random, and so are their places in the tree.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.contenders import AUTOREGRESSIVE, CONTENDERS, REFERENCE, TRAINED_LONG
from benchmarks.generation.speed import write_texts
from benchmarks.matched_models import COMPARED, Size, gpt2_facts, make_gpt2, matched_models
from benchmarks.places import RESULTS
from benchmarks.timing import keep_freed_memory, quartiles, seconds_in_turns
from benchmarks.training_step import DTYPES, autocast, count_flops, random_batch, training_step
from modeling_treediff.files.records import write_record

RECORDS = {"cpu": RESULTS / "speed.json", "cuda": RESULTS / "speed_cuda.json"}  # by device
WARM_UP = 2  # turns
PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices of the peak
PRECISION = {"cpu": "fp32", "cuda": "bf16"}


@dataclass(frozen=True)
class Workload:
    """Size of the reference, windows of a step and of a call of `generate`, and who takes part."""

    size: Size
    batch_size: int
    contenders: tuple[str, ...] = COMPARED

    @property
    def tokens(self) -> int:
        """Of a step, and of a call."""
        return self.batch_size * self.size.sequence_length


WORKLOADS = {
    "toy": Workload(Size(500, 64, layers=2, heads=2, sequence_length=16), batch_size=2),
    "quality": Workload(
        Size(8192, 128, layers=4, heads=4, sequence_length=64, rope_theta=100.0), 16, (*COMPARED, "tdlm-d3", "tdlm-d4")
    ),
    "long": Workload(
        Size(8192, 128, layers=4, heads=4, sequence_length=128, rope_theta=1000.0), 32, ("mdlm-chunked", *TRAINED_LONG)
    ),
    "gpt2-vocabulary": Workload(
        Size(50_257, 256, layers=6, heads=4, sequence_length=64, rope_theta=100.0), batch_size=8
    ),
    "small": Workload(Size.full(50_257, 768), batch_size=32),
    "medium": Workload(Size.full(50_257, 1024), batch_size=16),
}
DEFAULT = {"cpu": ("quality", "gpt2-vocabulary"), "cuda": ("small", "medium")}


@dataclass(frozen=True)
class Runner:
    """A model that takes turns.

    Attributes:
        facts: what the record says of it.
        model: on the device.
        step: one training step.

    """

    facts: dict[str, Any]
    model: PreTrainedModel
    step: Callable[[], None]


def main() -> None:
    """Measure one workload after the other, and record them."""
    options = parse_arguments()
    facts: dict[str, Any] = {"precision": PRECISION[options.device], "sizes": []}
    if options.device == "cpu":
        torch.set_num_threads(1)  # whose processor time is measured
        facts["freed_memory_kept"] = keep_freed_memory()
    facts["threads"] = torch.get_num_threads()
    partial_record = options.output.with_suffix(".partial.json")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name in options.sizes or DEFAULT[options.device]:
        for vocab_size in options.vocabularies or [WORKLOADS[name].size.vocab_size]:
            workload = changed(WORKLOADS[name], vocab_size, options.batch_size, options.contenders)
            facts["sizes"].append({"name": name} | measure(workload, options))
            write_record(partial_record, facts, seed=0)
    write_record(options.output, facts, seed=0)
    partial_record.unlink()


def changed(workload: Workload, vocab_size: int, batch_size: int | None, contenders: Sequence[str] | None) -> Workload:
    """Return a workload with another vocabulary, and what else is given."""
    size = replace(workload.size, vocab_size=vocab_size)
    return Workload(size, batch_size or workload.batch_size, tuple(contenders or workload.contenders))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default %(default)s)")
    parser.add_argument("--sizes", nargs="+", choices=list(WORKLOADS), help="by default two that suit the device")
    parser.add_argument("--vocabularies", type=int, nargs="+", metavar="TOKENS", help="by default the size's own")
    parser.add_argument("--batch-size", type=int, metavar="WINDOWS", help="by default the size's own")
    parser.add_argument(
        "--contenders", nargs="+", choices=list(CONTENDERS), metavar="NAME", help="by default those of the size"
    )
    parser.add_argument("--turns", type=int, default=15, help="timed training steps of each (default %(default)s)")
    parser.add_argument("--calls", type=int, default=5, help="timed calls of `generate` of each (default %(default)s)")
    parser.add_argument("--passes", type=int, default=16, help="forward passes of a call (default %(default)s)")
    parser.add_argument("--output", type=Path, help="record; by default in benchmarks/results, of each device its own")
    options = parser.parse_args()
    options.output = options.output or RECORDS[options.device]
    if options.contenders and REFERENCE not in options.contenders:
        parser.error(f"--contenders lacks {REFERENCE}, to which all others are compared.")
    return options


def measure(workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Return the sizes of a workload, the device's peak, and how fast every model was, the reference first."""
    size = workload.size
    runners = make_runners(workload, options.device)
    return {
        **{
            field: getattr(size, field) for field in ("vocab_size", "hidden_size", "layers", "heads", "sequence_length")
        },
        **{"batch_size": workload.batch_size, "turns": options.turns, "calls": options.calls, "passes": options.passes},
        **measure_training(runners, workload, options.turns),
        "generation": measure_generation(runners, workload, options.calls, options.passes),
    }


def measure_training(runners: list[Runner], workload: Workload, turns: int) -> dict[str, Any]:
    """Return the device's peak, and facts, speed and share of the peak in the same turn of every model."""
    device = runners[0].model.device.type
    product, product_flops = large_product(device)
    actions = [runner.step for runner in runners]
    flops = [count_flops(step) for step in actions]
    *seconds, of_product = seconds_in_turns([*actions, product], turns, WARM_UP, device)
    rows = []
    for runner, count, own in zip(runners, flops, seconds, strict=True):
        shares = [count / product_flops * other / some for some, other in zip(own, of_product, strict=True)]
        facts = runner.facts | rates(own, seconds[0], workload.tokens)
        rows.append(facts | {"flops": count, "peak_share": median(shares)})
    return {"peak_flops_per_second": product_flops / median(of_product), "training": rows}


def large_product(device: str) -> tuple[Callable[[], object], int]:
    """Return a function that takes one large matrix product in the steps' precision, and its operations."""
    size, dtype = PRODUCT[device], DTYPES[PRECISION[device]]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return partial(torch.mm, left, right), 2 * size**3


def measure_generation(runners: list[Runner], workload: Workload, calls: int, passes: int) -> list[dict[str, Any]]:
    """Return facts and speed, at this number of forward passes per text, of every model with a sampler of its own."""
    writers = [runner for runner in runners if writes(runner.facts["contender"])]
    actions = [partial(write, runner.model, workload, passes) for runner in writers]
    taken = [action() for action in actions]  # always the same; by HDLM's schedule more than there are steps
    turns = seconds_in_turns(actions, calls, 0, runners[0].model.device.type)
    seconds = [[passes / count * some for some in own] for own, count in zip(turns, taken, strict=True)]
    return [
        runner.facts | rates(own, seconds[0], workload.tokens) for runner, own in zip(writers, seconds, strict=True)
    ]


def make_runners(workload: Workload, device: str) -> list[Runner]:
    """Return the models that take turns, the reference first and GPT-2 last."""
    torch.manual_seed(0)
    names = [REFERENCE, *(name for name in workload.contenders if name != REFERENCE)]
    runners = []
    for matched in matched_models(names, workload.size):
        model = matched.make()
        torch.nn.Module.to(model, device)
        batch = random_batch(model, workload.batch_size, workload.size.sequence_length)
        runners.append(Runner(matched.facts, model, training_step(model, batch, PRECISION[device])))
    gpt2 = make_gpt2(workload.size)
    torch.nn.Module.to(gpt2, device)
    batch = random_batch(gpt2, workload.batch_size, workload.size.sequence_length)
    return [*runners, Runner(gpt2_facts(gpt2), gpt2, training_step(gpt2, batch, PRECISION[device]))]


def writes(contender: str) -> bool:
    """Tell whether a contender writes in a way of its own: not so a loss in chunks, nor GPT-2, token by token."""
    return contender != AUTOREGRESSIVE and CONTENDERS[contender].loss_chunk is None


def write(model: PreTrainedModel, workload: Workload, steps: int) -> int:
    """Write as many texts as a training step has windows, as long as those; return the forward passes it took."""
    device = model.device.type
    with autocast(device, PRECISION[device]):
        return write_texts(model.eval(), workload.batch_size, workload.size.sequence_length, steps)


def rates(seconds: Sequence[float], reference: Sequence[float], tokens: int) -> dict[str, float]:
    """Return tokens per second, and their ratio to the reference's in the same turn: medians and quartiles."""
    ratios = [other / own for own, other in zip(seconds, reference, strict=True)]
    return quartiles("tokens_per_second", [tokens / own for own in seconds]) | quartiles("ratio", ratios)


if __name__ == "__main__":
    main()
