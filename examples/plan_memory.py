"""Predict the memory of training before the run, without a GPU and without allocating it.

python examples/plan_memory.py --tree my_tree --parameters 162e6 --hidden-size 768 --heads 12 --window 512 \
    --batch-size 32 --precision bf16 --gpu 24GB --picture step.png
python examples/plan_memory.py --tree flat --vocab-size 50257 --layers 12 --hidden-size 768 --heads 12 --window 512
python examples/plan_memory.py --from my_model --batch-size 32    # a saved model's folder or Hub repository
"""

import argparse
import json
import re
import sys
from pathlib import Path

from transformers import AutoConfig

from modeling_treediff import TreeDiffConfig, VocabularyTree
from modeling_treediff.cli.model_options import (
    BATCH_SIZE,
    WINDOW,
    add_family_options,
    add_memory_options,
    add_size_options,
    beside_checkpoint,
    memory_settings,
    model_fields,
)
from modeling_treediff.cli.option_files import OptionParser
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.training import MemoryPlan, largest_batch, plan_memory
from modeling_treediff.training.memory.fake_step import PRECISIONS
from modeling_treediff.training.memory.plan import USABLE
from modeling_treediff.training.memory.tracker import GIBIBYTE, readable

SAMPLE = Path(__file__).parents[1] / "tree_artifacts" / "sotu-8k"
UNITS = {"M": 2**20, "G": 2**30}  # what makers of GPUs call 24GB is 24 GiB


def make_parser() -> OptionParser:
    """Return the parser; what train.py also has means the same there."""
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_argument_group("model")
    size.add_argument("--from", dest="source", metavar="CHECKPOINT", help="a saved model; only its config.json is read")
    add_size_options(size, tree=SAMPLE)
    size.add_argument("--vocab-size", type=int, default=8192, help="of the flat tree (default %(default)s)")
    size.add_argument(
        "--window", type=int, help=f"tokens per sequence (default {WINDOW}; with --from the model's longest)"
    )
    add_family_options(parser.add_argument_group("process and head"))
    run = parser.add_argument_group("run")
    run.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, help="windows per process and pass (default %(default)s)"
    )
    run.add_argument("--accumulation", type=int, default=1, help="passes per optimizer step (default %(default)s)")
    run.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(default %(default)s)")
    run.add_argument("--gradient-checkpointing", action="store_true", help="recompute whole blocks")
    add_memory_options(run)
    run.add_argument("--ema", action="store_true", help="keep an average of the parameters")
    run.add_argument("--processes", type=int, default=1, help="GPUs in all (default %(default)s)")
    run.add_argument("--fsdp", action="store_true", help="shard over the processes (FSDP2); default: DDP")
    result = parser.add_argument_group("result")
    result.add_argument(
        "--gpu", type=parse_bytes, help="memory of the device, such as 24GB: find the largest batch for it"
    )
    result.add_argument("--picture", type=Path, help="PNG of the memory over the step")
    result.add_argument("--json", type=Path, help="file for the figures, in bytes")
    return parser


def parse_bytes(text: str) -> int:
    """Return a size such as 24GB or 16GiB in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([MG])I?B", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 24GB")
    return int(float(match[1]) * UNITS[match[2]])


def make_config(parser: OptionParser, options: argparse.Namespace) -> TreeDiffConfig:
    """Return the config of the model that train.py would make, or of the saved one."""
    if options.source:
        beside_checkpoint(parser, options)
        config = AutoConfig.from_pretrained(options.source)
        if config.model_type != TreeDiffConfig.model_type:
            raise ValueError(
                f"{options.source} is a {config.model_type} model, not one of {TreeDiffConfig.model_type}."
            )
        return config
    if options.tree == "flat":
        tree = VocabularyTree.flat(options.vocab_size)
    else:
        tree = VocabularyTree.from_pretrained(options.tree)
    return TreeDiffConfig.from_tree(tree, **model_fields(tree, options, options.window or WINDOW))


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


def main() -> None:
    """Plan, print, and write what was asked for."""
    parser = make_parser()
    options = parser.parse_args()
    config = make_config(parser, options)
    step = ("precision", "accumulation", "gradient_checkpointing", "ema", "processes")
    settings = {name: getattr(options, name) for name in step} | {"sharded": options.fsdp}
    settings |= memory_settings(options)
    plan = plan_memory(config, options.batch_size, options.window or config.max_position_embeddings, **settings)
    print(plan)
    facts = plan.summary()
    if options.gpu is not None:
        facts["largest_batch"] = largest_batch(plan.step, options.gpu)
        print(f"largest batch for {USABLE:.0%} of {readable(options.gpu)}: {facts['largest_batch']}")
        print(plan.advice(options.gpu))
    if options.json is not None:
        text = json.dumps(facts, indent=2) + "\n"
        write_atomically(options.json, lambda path: path.write_text(text, encoding="utf-8"))
    if options.picture is not None:
        draw(plan, options.picture)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"plan_memory.py: {' '.join(str(error).split())}")
