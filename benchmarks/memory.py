"""Memory of a training step, flat against tree at equal parameters, and the time that saving it costs.

python benchmarks/memory.py                   # planned on fake tensors; processor time of a step
python benchmarks/memory.py --device cuda     # also measured: peak and step time of every row that fits

The reference point of the project: GPT-2's vocabulary, hidden size 768, windows of 512 tokens, bf16 autocast, AdamW.
The flat model (MDLM) has 12 layers; the tree (fan-out 225, depth 2) has 17, as the same parameters pay for. Variants:
- plain: blocks as autograd keeps them, nothing saved;
- lean: what the package does, no matrix product repeated;
- recompute: MLPs repeated in five of six layers;
- chunked: lean, the cross-entropy 1,024 positions at a time.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree, corrupt
from modeling_treediff.training import plan_memory
from modeling_treediff.training.records import write_record

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "memory.json"
LENGTH = 512
SIZES = {"hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": LENGTH}
BATCHES = (4, 8, 16, 32, 64)
VARIANTS = ("plain", "lean", "recompute", "chunked")
RECOMPUTED = 5 / 6  # of the layers
CHUNK = 1024


def main() -> None:
    """Plan every row, measure what the device allows, and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: measure too (default cpu)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=BATCHES, help="windows per pass (default %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=8, help="timed steps per row (default %(default)s)")
    args = parser.parse_args()
    trees = {"flat": VocabularyTree.flat(50_257), "tree": VocabularyTree.random(50_257, 225, 2)}
    rows = []
    for batch, name, variant in combinations(args.batches):
        fields = model_fields(name, trees, variant)
        row = {"model": name, "variant": variant, "batch_size": batch}
        with blocks_of(variant):
            row |= plan_row(TreeDiffConfig.from_tree(trees[name], **fields), batch)
            if args.device == "cuda":
                row |= measure(trees[name], fields, batch, args.steps)
        print(row, flush=True)
        rows.append(row)
    facts: dict[str, Any] = {"length": LENGTH, "precision": "bf16", **SIZES, "rows": rows}
    if args.device == "cpu":
        facts["cpu_step_seconds"] = cpu_step_seconds(trees["tree"], model_fields("tree", trees, "lean"), args.steps)
    write_record(RESULT, facts, seed=0)


def combinations(batches: list[int]) -> Iterator[tuple[int, str, str]]:
    """Yield batch size, model and variant; the tree's head is too small to be worth chunks."""
    for batch in batches:
        for name in ("flat", "tree"):
            for variant in VARIANTS:
                if (name, variant) != ("tree", "chunked"):
                    yield batch, name, variant


def model_fields(name: str, trees: dict[str, VocabularyTree], variant: str) -> dict[str, Any]:
    """Return the fields of the model's config that its tree does not determine."""
    config = TreeDiffConfig.from_tree(trees["flat"], num_hidden_layers=12, **SIZES)
    if name == "tree":
        config = TreeDiffConfig.for_budget(trees["tree"], sum(config.count_parameters().values()), **SIZES)
    layers = config.num_hidden_layers
    fields = SIZES | {"num_hidden_layers": layers, "intermediate_size": config.intermediate_size}
    if variant == "recompute":
        fields["recompute_mlp_layers"] = round(RECOMPUTED * layers)
    if variant == "chunked":
        fields["loss_chunk_size"] = CHUNK
    return fields


def blocks_of(variant: str) -> AbstractContextManager:
    """Return the context in which a model has the blocks of a variant."""
    if variant == "plain":
        return patch("modeling_treediff.lean_operations_treediff.can_be_lean", return_value=False)
    return nullcontext()


def plan_row(config: TreeDiffConfig, batch: int) -> dict[str, Any]:
    """Return the planned peak with its parts, and the multiplications of one step."""
    layers = {"layers": config.num_hidden_layers, "recomputed_layers": config.recompute_mlp_layers}
    return layers | plan_memory(config, batch, LENGTH).summary() | {"flops": count_flops(config, batch)}


def count_flops(config: TreeDiffConfig, batch: int) -> int:
    """Return the floating-point operations of all matrix products of a forward and backward pass."""
    with torch.device("meta"):
        model = TreeDiffForDiffusionLM(config).train()
        ids, times = torch.zeros(batch, LENGTH, dtype=torch.long), torch.ones(batch)
        with FlopCounterMode(display=False) as counter:
            model(ids, labels=ids, timesteps=times).loss.backward()
    return counter.get_total_flops()


def measure(tree: VocabularyTree, fields: dict[str, Any], batch: int, steps: int) -> dict[str, Any]:
    """Return the peak that CUDA allocates and the median seconds of a step, or that memory does not suffice."""
    gc.collect()
    torch.cuda.empty_cache()
    try:
        _, step = training_step(tree, fields, batch, "cuda")
        for _ in range(3):
            step()
        torch.cuda.reset_peak_memory_stats()
        seconds = [timed(step, time.perf_counter) for _ in range(steps)]
    except torch.OutOfMemoryError:
        return {"measured": "out of memory"}
    return {"measured_peak_bytes": torch.cuda.max_memory_allocated(), "step_seconds": round(median(seconds), 5)}


def cpu_step_seconds(tree: VocabularyTree, fields: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the median seconds of processor time of a step of the tree's model, the variants taking turns."""
    model, step = training_step(tree, fields, 1, "cpu")
    layers: Any = model.model.backbone.layers
    seconds: dict[str, list[float]] = {variant: [] for variant in ("plain", "lean", "recompute")}
    for _ in range(steps + 1):
        for variant, some in seconds.items():
            for index, layer in enumerate(layers):
                layer.mlp.recompute = variant == "recompute" and index < round(RECOMPUTED * len(layers))
            with blocks_of(variant):
                some.append(timed(step, time.process_time))
    return {variant: round(median(some[1:]), 4) for variant, some in seconds.items()}


def timed(step: Callable[[], None], clock: Callable[[], float]) -> float:
    """Return the seconds of one step by a clock."""
    start = clock()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def training_step(
    tree: VocabularyTree, fields: dict[str, Any], batch: int, device: str
) -> tuple[TreeDiffForDiffusionLM, Callable[[], None]]:
    """Return a new model and a function that takes one optimizer step, always on the same batch."""
    torch.manual_seed(0)
    model = TreeDiffForDiffusionLM.from_tree(tree, **fields).train()
    torch.nn.Module.to(model, device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    noisy = corrupt(torch.randint(0, tree.vocab_size, (batch, LENGTH)), tree, model.schedule)
    arguments = {"input_ids": noisy.input_ids, "labels": noisy.labels, "timesteps": noisy.timesteps}
    arguments = {name: value.to(device) for name, value in arguments.items()}

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = model(**arguments).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, step


if __name__ == "__main__":
    main()
