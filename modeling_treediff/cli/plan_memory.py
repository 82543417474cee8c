"""`treediff plan-memory`: prints the plan of a step, and the largest batch for a device."""

import json
from pathlib import Path

from modeling_treediff import TreeDiffConfig, VocabularyTree
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.files.sample import FLAT, find_tree
from modeling_treediff.training import MemoryPlan, largest_batch, plan_memory
from modeling_treediff.training.memory.plan import USABLE
from modeling_treediff.training.memory.tracker import GIBIBYTE, readable

from .new_model import model_fields
from .options.model import Process
from .options.plan_memory import PlannedModel, PlannedStep, Result
from .saved_model import load_config


def run(model: PlannedModel, process: Process, step: PlannedStep, result: Result) -> None:
    """Plan, write what was asked for, and print."""
    config = make_config(model, process)
    plan = plan_memory(
        config,
        step.batch_size,
        model.sequence_length or config.max_position_embeddings,
        precision={None: "fp32", "no": "fp32"}.get(step.mixed_precision, step.mixed_precision),
        accumulation=step.gradient_accumulation_steps,
        gradient_checkpointing=step.gradient_checkpointing,
        recompute_mlp=step.recompute_mlp,
        loss_chunk=step.loss_chunk,
        ema=step.ema_decay > 0,
        processes=step.processes,
        sharded=step.fsdp,
    )
    facts, said = plan.summary(), [str(plan)]
    if (device := result.gpu_bytes) is not None:
        facts["largest_batch"] = largest_batch(plan.step, device)
        said.append(f"largest batch for {USABLE:.0%} of {readable(device)}: {facts['largest_batch']}")
        said.append(plan.advice(device))
    if result.json is not None:
        text = json.dumps(facts, indent=2) + "\n"
        write_atomically(result.json, lambda path: path.write_text(text, encoding="utf-8"))
    if result.picture is not None:
        draw(plan, result.picture)
    print("\n".join(said))


def make_config(model: PlannedModel, process: Process) -> TreeDiffConfig:
    """Return the config of the model that `treediff train` would make, or of the saved one."""
    if model.source:
        return load_config(model.source, **process.beside_source)
    if model.tree == FLAT:
        tree = VocabularyTree.flat(model.vocab_size)
    else:
        tree = VocabularyTree.from_pretrained(find_tree(model.tree))
    return TreeDiffConfig.from_tree(tree, **model_fields(tree, model, process))


def draw(plan: MemoryPlan, file: Path) -> None:
    """Write a picture of the memory over the step, stacked by purpose."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    axes.stackplot(
        range(len(plan.total)), [course / GIBIBYTE for course in plan.timeline.values()], labels=list(plan.timeline)
    )
    for name, start in plan.phases:
        axes.axvline(start, color="black", linewidth=0.8)
        axes.annotate(name, (start, 1), xycoords=("data", "axes fraction"), xytext=(3, -12), textcoords="offset points")
    axes.set(
        xlabel="allocations and releases",
        ylabel="GiB",
        title=f"peak {readable(plan.peak)}",
        xlim=(0, len(plan.total)),
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=120))
