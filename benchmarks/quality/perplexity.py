"""Perplexity side by side: every contender with the same parameters, text, order, tokens seen and optimizer grid.

python -m benchmarks.quality.perplexity pack --form cpu --zero-shot runs/zero_shot/*.txt.xz  # tokens and trees
python -m benchmarks.quality.perplexity train --form cpu --parallel 2   # all runs that are not done
python -m benchmarks.quality.perplexity collect --form cpu   # benchmarks/results/quality_cpu.json

Forms: `cpu`, on the embedded sample (8,192 tokens); `long`, twelve times as many tokens of texts given to `pack`, with
learning rates that short runs choose; `language`, tree beside flat on a text in another language than English; `gpu`,
on texts given to `pack`, in GPT-2's tokens; `rehearsal`, the same on two cores in minutes; `tiny`, for tests.
Everything goes on from where it stopped: with `--seconds` a call saves and ends after that time.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contenders import AUTOREGRESSIVE, CONTENDERS, GIDD, TRAINED_LONG
from benchmarks.places import RESULTS, SAMPLE
from benchmarks.quality.packed_data import PackedData, pack
from benchmarks.quality.record import Run, best_runs, check_same, leaders, read_runs, write_quality
from benchmarks.quality.run_queue import RunQueue
from benchmarks.quality.training import Protocol, run

NAMES = (*(name for name in CONTENDERS if name != "mdlm-chunked"), GIDD, AUTOREGRESSIVE)  # whose result is MDLM's
# Of `cpu` and `tiny`: without blocks and perturbed nodes.
PLAIN = tuple(name for name in NAMES if name not in ("hdlm-perturbed", "tree-blocks", "bd3lm", GIDD))
IN_GPU = ("mdlm", "tree", AUTOREGRESSIVE, "hdlm", "tdlm-child")  # trained in this order
IN_LANGUAGE = ("mdlm", "tree", AUTOREGRESSIVE)
LEADERS = 2
RATES = "rates"  # folder of the runs that choose learning rates, where these are shorter
DEPTHS = (2, 3, 4)
SMALL = {"hidden_size": 128, "num_attention_heads": 4, "max_position_embeddings": 64, "rope_theta": 100.0}
PROTOCOLS = {
    "cpu": Protocol(
        reference_layers=4,
        sizes=SMALL,
        sequence_length=64,
        batch_size=16,
        steps=2500,
        warmup_steps=100,
        learning_rates=(1e-3, 2e-3, 4e-3),
        seeds=(0, 1),
        contenders=PLAIN,
    ),
    "long": Protocol(
        reference_layers=4,
        sizes=SMALL | {"max_position_embeddings": 128, "rope_theta": 1000.0},
        sequence_length=128,
        batch_size=32,
        steps=8000,
        warmup_steps=200,
        learning_rates=(1e-3, 2e-3, 4e-3),
        seeds=(0, 1),
        contenders=(*TRAINED_LONG, GIDD, AUTOREGRESSIVE),
        rate_steps=400,
        repeated=("mdlm", "tree"),
        precision="bf16",
        save_every=250,
        curve_points=16,
    ),
    "gpu": Protocol(
        reference_layers=8,
        sizes={"hidden_size": 512, "num_attention_heads": 8, "max_position_embeddings": 256, "rope_theta": 1000.0},
        sequence_length=256,
        batch_size=64,
        steps=1200,
        warmup_steps=100,
        learning_rates=(7e-4, 2e-3),
        seeds=(0, 1),
        contenders=IN_GPU,
        precision="bf16",
        repeated=("mdlm", "tree"),
    ),
    "rehearsal": Protocol(
        reference_layers=1,
        # Wide enough that something is left for layers beside the tables of GPT-2's tokens.
        sizes={"hidden_size": 80, "num_attention_heads": 2, "max_position_embeddings": 32},
        sequence_length=32,
        batch_size=2,
        steps=4,
        warmup_steps=1,
        learning_rates=(1e-3,),
        seeds=(0, 1),
        contenders=IN_GPU,
        precision="bf16",
        repeated=("mdlm", "tree"),
        curve_points=1,
        curve_windows=8,
        measured_windows=4,
    ),
    "tiny": Protocol(
        reference_layers=2,
        sizes=SMALL | {"hidden_size": 64, "max_position_embeddings": 16},
        sequence_length=16,
        batch_size=4,
        steps=8,
        warmup_steps=2,
        learning_rates=(1e-3,),
        seeds=(0, 1),
        contenders=PLAIN,
        curve_points=2,
        curve_windows=4,
        measured_windows=8,
    ),
}


PROTOCOLS["language"] = replace(
    PROTOCOLS["cpu"], contenders=IN_LANGUAGE, rate_steps=400, repeated=("mdlm", "tree"), save_every=500
)


def main() -> None:
    """Do what the command line says."""
    options = parse_arguments()
    folder = options.folder or Path("runs", "quality", options.form)
    protocol = PROTOCOLS[options.form]
    if options.what == "pack":
        if options.if_missing and (folder / "data" / "manifest.json").exists():
            return
        validation = None if options.text else SAMPLE / "validation.txt.xz"
        texts = options.text or [SAMPLE / "train.txt.xz"]
        vocab_size = options.train_tokenizer
        pack(folder / "data", options.tokenizer, texts, validation, options.zero_shot, DEPTHS, vocab_size=vocab_size)
    elif options.what == "train":
        PackedData.load(folder / "data")  # says what is missing before any run is begun
        take_all(RunQueue(folder, options.parallel, options.seconds), options.form, protocol)
    elif options.what == "run":
        data = PackedData.load(folder / "data")
        if options.choosing and protocol.rate_steps is None:
            raise ValueError(f"The form {options.form} chooses learning rates by its runs themselves: no --choosing.")
        folder, protocol = (folder / RATES, protocol.choosing) if options.choosing else (folder, protocol)
        target = folder / Run(options.contender, options.learning_rate, options.seed).name
        run(options.contender, data, protocol, target, options.learning_rate, options.seed)
    else:
        output = options.output or RESULTS / f"quality_{options.form}.json"
        manifest, choosing = PackedData.load(folder / "data").manifest, read_runs(folder / RATES)
        write_quality(output, read_runs(folder), manifest, protocol.contenders, choosing, partial=options.partial)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--form", choices=PROTOCOLS, default="cpu", help="(default %(default)s)")
    shared.add_argument("--folder", type=Path, help="of data and runs; default: runs/quality/FORM")
    packing = commands.add_parser("pack", parents=[shared], help="texts to tokens, and trees")
    packing.add_argument("--zero-shot", type=Path, nargs="+", default=[], help="texts that are only measured on")
    packing.add_argument("--text", type=Path, nargs="+", help="texts to train on (default: the embedded sample)")
    packing.add_argument("--if-missing", action="store_true", help="leave a packed folder as it is")
    tokens = packing.add_mutually_exclusive_group()
    tokens.add_argument("--train-tokenizer", type=int, metavar="V", help="learn V tokens from the training part")
    tokens.add_argument("--tokenizer", default=str(SAMPLE), help="folder or Hub id (default: the sample's)")
    training = commands.add_parser("train", parents=[shared], help="all runs that are not done")
    training.add_argument("--parallel", type=int, default=1, help="runs at a time, each with its share of the cores")
    training.add_argument("--seconds", type=float, help="save and stop after this time (seconds)")
    single = commands.add_parser("run", parents=[shared], help="a single run")
    single.add_argument("--contender", choices=NAMES, required=True)
    single.add_argument("--learning-rate", type=float, required=True)
    single.add_argument("--choosing", action="store_true", help="of a learning rate: with as few steps as that takes")
    single.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    collecting = commands.add_parser("collect", parents=[shared], help="all runs into one record")
    collecting.add_argument("--output", type=Path, help="default: benchmarks/results/quality_FORM.json")
    of_missing = "leave out contenders that have no finished run; the record names them"
    collecting.add_argument("--partial", action="store_true", help=of_missing)
    return parser.parse_args()


def take_all(queue: RunQueue, form: str, protocol: Protocol) -> None:
    """Take the grid with the first seed, of short runs where these choose the rates, then some with the other seeds."""
    shared = ["-m", "benchmarks.quality.perplexity", "run", "--form", form, "--folder", str(queue.folder)]

    def take(queue: RunQueue, runs: Iterable[Run], *more: str) -> dict[str, Any]:
        queue.take({run.name: [*shared, *more, *run.arguments] for run in runs})
        check_same(done := read_runs(queue.folder))
        return best_runs(done)

    first, *others = protocol.seeds
    grid = [Run(name, rate, first) for rate in protocol.learning_rates for name in protocol.contenders]
    if protocol.rate_steps is None:
        best = take(queue, grid)
    else:
        best = take(replace(queue, folder=queue.folder / RATES), grid, "--choosing")
        take(queue, [Run(name, one["learning_rate"], first) for name, one in best.items()])
    repeated = protocol.repeated or leaders(read_runs(queue.folder), LEADERS)
    if diverged := [name for name in repeated if name not in best]:
        raise ValueError(f"{', '.join(diverged)} diverged with every learning rate: give the form smaller ones.")
    take(queue, [Run(name, best[name]["learning_rate"], seed) for seed in others for name in repeated])


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.quality.perplexity: error: {error}")
