"""Time of a forward pass of generation, trees against the flat model (MDLM) with the same backbone.

python -m benchmarks.generation.speed                                     # OMP_NUM_THREADS=2 for two cores
python -m benchmarks.generation.speed --device cuda --batch 32 --length 512

Whole calls of `generate` with the same number of passes: the tree moves every position D times, the flat model once.
Models take turns, so that what else the machine does hits all of them; a ratio is the median of the ratios of single
turns. Time is split into the backbone, the head, and all the rest: choosing positions and drawing children. The head
scores all open positions where their order depends on it (`confidence`), else those that move (`random`). Weights and
tree are random.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.places import RESULTS
from benchmarks.timing import quartiles, synchronized_clock
from modeling_treediff import TreeDiffForDiffusionLM, TreeDiffGenerationOutput, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.files.records import write_record

RECORD = RESULTS / "generation_speed.json"
REFERENCE = "flat"
ORDERS = ("random", "confidence")  # of unmasking
PARTS = ("backbone", "head", "rest")

Seconds = dict[str, float]


def main() -> None:
    """Time all models in turns and record medians, quartiles and ratios."""
    options = parse_arguments()
    models = make_models(options)
    turns: dict[str, dict[str, list[Seconds]]] = {order: {name: [] for name in models} for order in ORDERS}
    for turn in tqdm(range(-1, options.turns)):
        for order, of_model in turns.items():
            for name, model in models.items():
                seconds = timed(model, order, options)
                if turn >= 0:  # the first one warms up
                    of_model[name].append(seconds)
    facts = {
        field: getattr(options, field) for field in ("batch", "length", "passes", "vocabulary", "branching", "turns")
    }
    facts |= {"hidden_size": options.hidden_size, "layers": options.layers, "threads": torch.get_num_threads()}
    facts["measured_on"] = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    facts["orders"] = {
        order: {name: summary(some, of_model[REFERENCE], options.passes) for name, some in of_model.items()}
        for order, of_model in turns.items()
    }
    write_record(options.record, facts, seed=0)
    for order, models_of in facts["orders"].items():
        for name, figures in models_of.items():
            print(order, name, figures)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="texts (default %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="tokens per text (default %(default)s)")
    parser.add_argument("--passes", type=int, default=16, help="forward passes of a call (default %(default)s)")
    parser.add_argument("--turns", type=int, default=9, help="timed calls of each model (default %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=50_257, help="tokens (default %(default)s)")
    parser.add_argument("--branching", type=int, default=225, help="of the tree of depth 2 (default %(default)s)")
    parser.add_argument("--hidden-size", type=int, default=256, help="(default %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="(default %(default)s)")
    parser.add_argument("--record", type=Path, default=RECORD, help="(default %(default)s)")
    return parser.parse_args()


def make_models(options: argparse.Namespace) -> dict[str, TreeDiffForDiffusionLM]:
    """Return the flat model and those with trees, on the device."""
    tree = random_tree(options.vocabulary, options.branching, 2)
    sizes = {
        "hidden_size": options.hidden_size,
        "num_hidden_layers": options.layers,
        "num_attention_heads": max(1, options.hidden_size // 64),
        "max_position_embeddings": options.length,
    }
    torch.manual_seed(0)
    models = {REFERENCE: TreeDiffForDiffusionLM.from_tree(VocabularyTree.flat(options.vocabulary), **sizes)}
    models |= {
        f"tree, {head} head": TreeDiffForDiffusionLM.from_tree(tree, schedule="sequential", head=head, **sizes)
        for head in ("child", "node")
    }
    for model in models.values():
        torch.nn.Module.to(model.eval(), options.device)
    return models


def timed(model: TreeDiffForDiffusionLM, unmasking: str, options: argparse.Namespace) -> Seconds:
    """Return the seconds of one call of `generate` in an order of unmasking: all of it, and its parts."""
    clock = synchronized_clock(options.device)
    spent: Seconds = defaultdict(float)
    hooks = [
        hook
        for name, module in (("backbone", model.model), ("head", model.head))
        for hook in time_module(module, name, spent, clock)
    ]
    start = clock()
    passes = write_texts(model, options.batch, options.length, options.passes, unmasking)
    spent["all"] = clock() - start
    for hook in hooks:
        hook.remove()
    if passes != options.passes:
        raise ValueError(f"{options.passes} passes became {passes}: choose a longer --length.")
    spent["rest"] = spent["all"] - spent["backbone"] - spent["head"]
    return spent


def write_texts(model: TreeDiffForDiffusionLM, batch: int, length: int, steps: int, unmasking: str = "random") -> int:
    """Generate `batch` texts of `length` tokens, the same each time, and return the number of forward passes."""
    result = model.generate(
        num_return_sequences=batch,
        max_new_tokens=length,
        num_steps=steps,
        unmasking=unmasking,
        generator=torch.Generator(model.device).manual_seed(0),
        return_dict_in_generate=True,
    )
    assert isinstance(result, TreeDiffGenerationOutput) and result.num_forward_passes is not None
    return result.num_forward_passes


def time_module(module: torch.nn.Module, name: str, spent: Seconds, clock: Callable[[], float]) -> list[Any]:
    """Add the seconds of every call of a module to spent[name]; return the hooks to remove."""
    started: list[float] = []

    def before(*_: object) -> None:
        started.append(clock())

    def after(*_: object) -> None:
        spent[name] += clock() - started.pop()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def summary(turns: list[Seconds], reference: list[Seconds], passes: int) -> dict[str, float]:
    """Return milliseconds per pass, its parts, and the ratio to the reference in the same turn."""
    ratios = [turn["all"] / other["all"] for turn, other in zip(turns, reference, strict=True)]
    facts = {"milliseconds": [1000 * turn["all"] / passes for turn in turns], "ratio": ratios}
    figures: dict[str, float] = {}
    for name, values in facts.items():
        figures |= quartiles(name, values)
    return figures | {f"{part}_milliseconds": median(1000 * turn[part] / passes for turn in turns) for part in PARTS}


if __name__ == "__main__":
    main()
