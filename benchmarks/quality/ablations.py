"""Which choices matter: one thing at a time is changed in the TDLM model of the quality benchmark.

python -m benchmarks.quality.perplexity pack --form cpu   # once: texts to tokens
python -m benchmarks.quality.ablations train --parallel 2 --embeddings runs/embeddings.safetensors
python -m benchmarks.quality.ablations collect            # benchmarks/results/ablations.json

Both with `--part trees`: where clusters come from, in every order of siblings. With `--part candidates`: what may
become a default, trained as long as the contenders of `benchmarks.quality.perplexity` and with its seeds; when it is
chosen by the same windows as all others, also measured on what that reports, and on windows of which a part is given.
With `--part unseen`: what helps tokens that the training text does not have, trained and measured as the candidates,
and with a uniform share of every choice (p -> (1 - e) p + e / children). With `--part shares`: the same share in
training, too. With `--part times`: how early training times may be, also measured by single open words. With `--part
embeddings`: input embeddings without a matrix of vocabulary size times hidden size, in as many layers or of as many
parameters, also measured on texts of other kinds. With `--part embeddings-long`: a few of them, trained as long as the
contenders, with both seeds. With `--part blocks`: models that write in blocks, trained and measured in the same way;
with `--part blocks-causes` other ways to train them, and a model that has learned two sizes of blocks, measured in
both. With `--part perturbed`: noise that shows wrong nodes, at several rates; `benchmarks.generation.quality` then
judges what these models write.

The budget of parameters, the text, its order and the noise are those of `benchmarks.quality.perplexity`; steps are
fewer, there is one learning rate, and one seed but for the base. What is measured are the windows that it selects by,
so that its validation windows stay unseen. `--embeddings`, needed by some trees, are (50257, E) vectors of GPT-2's
tokens under the name `embedding`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.places import ARTIFACTS, RESULTS
from benchmarks.quality.ablation_trees import TreeSources
from benchmarks.quality.packed_data import SELECTION, PackedData
from benchmarks.quality.perplexity import PROTOCOLS
from benchmarks.quality.plain_training import WEIGHTS_NAME
from benchmarks.quality.record import OF_TRAINING, check_same, difference, estimate, read_runs
from benchmarks.quality.run_queue import DONE_NAME, RunQueue, locked
from benchmarks.quality.training import Protocol, begin, load_model, measured_text, model_sizes, train_model
from benchmarks.quality.uniform_share import SHARES, measured_shares, sharing, summarised_shares
from benchmarks.quality.variants import (
    BASE,
    BLOCKS,
    FACTORISED_VARIANTS,
    FACTORS,
    MIXED,
    NODE,
    PERTURBED,
    TIMES,
    TREE,
    UNSEEN,
    VARIANTS,
    Variant,
    variant_config,
)
from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.diffusion_process import nelbo_terms
from modeling_treediff.files.records import write_record
from modeling_treediff.training.data import collator

STEPS, LEARNING_RATE, SEEDS = 800, 2e-3, (0, 1)
CAUSES = ("blocks-4-uncounted", "blocks-4-continued", MIXED)  # compared to blocks of 4 as well
WORDS = 8  # places of a window at which single words are measured
CANDIDATES = (BASE, "node-64", "binomial", NODE, "poisson-node", "mdlm")
# The variant that differs in nothing but the schedule.
SEQUENTIAL = {"binomial": BASE, "binomial-node": "node-64", "poisson": BASE, "poisson-node": "node-64"}
RECORDS = {  # by part
    "choices": "ablations",
    "trees": "ablations_trees",
    "candidates": "ablations_candidates",
    "unseen": "ablations_unseen",
    "shares": "ablations_shares",
    "times": "ablations_times",
    "embeddings": "ablations_embeddings",
    "embeddings-long": "ablations_embeddings_long",
    "blocks": "ablations_blocks",
    "blocks-causes": "ablations_blocks_causes",
    "perturbed": "ablations_perturbed",
}
LONG = {  # variants and seeds of the parts that are trained as long as the contenders
    "candidates": [(name, seed) for seed in SEEDS for name in CANDIDATES],
    "embeddings-long": [
        (name, seed)
        for seed in SEEDS
        for name in ("mdlm", NODE, "own-64", "own-64-deeper", "tied-64", "mdlm-own-64-deeper")
    ],
    "blocks": [
        *((name, seed) for seed in SEEDS for name in ("mdlm", NODE, "blocks-4", "mdlm-blocks-4")),
        *((name, SEEDS[0]) for name in ("blocks-8", "blocks-16", "blocks-1", "blocks-4-early", "mdlm-blocks-16")),
    ],
    "blocks-causes": [(name, SEEDS[0]) for name in (NODE, "blocks-4", *CAUSES)],
    "perturbed": [
        *((name, seed) for seed in SEEDS for name in (NODE, "perturbed-0.05")),
        *((name, SEEDS[0]) for name in ("perturbed-0.1", "perturbed-0.2")),
    ],
    "unseen": [*((name, seed) for seed in SEEDS for name in ("mdlm", NODE)), ("closed", SEEDS[0])],
}


def main() -> None:
    """Do what the command line says."""
    options = parse_arguments()
    stem, wanted = RECORDS[options.part], wanted_runs(options.part)
    folder = options.folder or Path("runs", stem, options.form)
    if options.what == "collect":
        collect(options.output or RESULTS / f"{stem}.json", read_runs(folder), wanted)
    elif options.what == "run":
        run(options.variant, options, folder / f"{options.variant}-seed{options.seed}")
    else:
        shared = ["-m", "benchmarks.quality.ablations", "run", "--form", options.form, "--folder", str(folder)]
        shared += ["--embeddings", options.embeddings, "--part", options.part]
        RunQueue(folder, options.parallel).take(
            {f"{name}-seed{seed}": [*shared, "--variant", name, "--seed", str(seed)] for name, seed in wanted}
        )


def wanted_runs(part: str) -> list[tuple[str, int]]:
    """Return variants and seeds of a part."""
    if part in LONG:
        return LONG[part]
    if part == "embeddings":
        return [(name, SEEDS[0]) for name in ("mdlm", NODE, *FACTORISED_VARIANTS, BASE)]
    if part == "shares":
        return [
            (name, SEEDS[0]) for name, variant in VARIANTS.items() if name in ("mdlm", NODE) or variant.uniform_share
        ]
    if part == "times":
        return [(name, SEEDS[0]) for name in VARIANTS if name == NODE or VARIANTS[name].group == TIMES]
    short = [name for name in VARIANTS if VARIANTS[name].group not in (UNSEEN, TIMES, FACTORS, BLOCKS, PERTURBED)]
    names = [name for name in short if name == BASE or (VARIANTS[name].group == TREE) == (part == "trees")]
    return [(name, SEEDS[0]) for name in names] + [(BASE, seed) for seed in SEEDS[1:]]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--form", choices=PROTOCOLS, default="cpu", help="of benchmarks.quality.perplexity (default %(default)s)"
    )
    shared.add_argument("--part", choices=RECORDS, default="choices", help="(default %(default)s)")
    shared.add_argument("--folder", type=Path, help="of the runs; default: runs/NAME OF THE RECORD/FORM")
    training = commands.add_parser("train", parents=[shared], help="all runs that are not done")
    training.add_argument("--parallel", type=int, default=1, help="runs at a time, each with its share of the cores")
    single = commands.add_parser("run", parents=[shared], help="a single run")
    single.add_argument("--variant", choices=VARIANTS, required=True)
    single.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    for command in (training, single):
        command.add_argument("--embeddings", default="", help=".safetensors file with vectors of GPT-2's tokens")
    collecting = commands.add_parser("collect", parents=[shared], help="all runs into one record")
    collecting.add_argument("--output", type=Path, help="default: in benchmarks/results, by the part")
    return parser.parse_args()


def run(name: str, options: argparse.Namespace, folder: Path) -> None:
    """Train one variant, measure it, and write the record."""
    variant, protocol = VARIANTS[name], PROTOCOLS[options.form]
    if options.part not in LONG:
        protocol = shortened(protocol)
    data = PackedData.load(Path("runs", "quality", options.form, "data"))
    settings = protocol.training_config(folder / "model", LEARNING_RATE, options.seed, **variant.settings)
    identity = {"variant": name, "learning_rate": LEARNING_RATE, "protocol": protocol.identity}
    with locked(folder):
        trained = begin(folder, identity, data, options.seed)
        if not (settings.output_dir / WEIGHTS_NAME).exists():
            tree = make_tree(variant, data, options.embeddings)
            config = variant_config(variant, tree, protocol)
            start = None
            if variant.begins_as:
                start, protocol = folder / "start", replace(protocol, steps=protocol.steps // 2)
                train_first_half(variant, tree, data, protocol, start, options.seed)
                settings = protocol.training_config(
                    settings.output_dir, LEARNING_RATE, options.seed + len(SEEDS), **variant.settings
                )
            weighted = changed_weights(variant.level_weights, variant.weights_from)
            with weighted, sharing(variant.uniform_share), noise_by(variant.counts):
                train_model(config, tree, data, protocol, settings, start)
        model = load_model(settings.output_dir)
        facts = model_sizes(model) | measured(options.part, variant, model, data, protocol)
        facts |= {"branching": model.config.max_branching, "tree_sha256": model.config.tree_sha256}
        shown = {"group": variant.group, "title": variant.title, "settings": dict(variant.settings)}
        write_record(folder / DONE_NAME, {**identity, **shown, "trained": trained, **facts}, options.seed)


def measured(
    part: str, variant: Variant, model: TreeDiffForDiffusionLM, data: PackedData, protocol: Protocol
) -> dict[str, Any]:
    """Return what a part measures of a trained model: the windows to select by, or all texts, and more beside them."""
    samples = protocol.samples
    windows = {
        text: data.measured_windows(text, protocol.sequence_length, protocol.measured_windows) for text in data.measured
    }
    if part in ("unseen", "shares"):
        shares = SHARES if part == "unseen" else (variant.uniform_share,)
        return {"shares": measured_shares(model, windows, samples, shares)}
    selection = windows.pop(SELECTION)
    facts = measured_text(model, selection, samples)
    if part in ("candidates", "embeddings", "embeddings-long", "blocks", "blocks-causes", "perturbed"):
        facts["further"] = {text: measured_text(model, some, samples) for text, some in windows.items()}
    for size in variant.settings.get("mixed_block_sizes", ()):
        model.config.block_size = size
        own = {text: measured_text(model, some, samples) for text, some in windows.items()}
        facts.setdefault("at_sizes", {})[size] = measured_text(model, selection, samples) | {"further": own}
    if part == "candidates":
        for title, given_T in given_places(protocol.sequence_length).items():
            facts["further"][title] = measured_text(model, selection, samples, given_T)
    if part == "times":
        facts["further"] = {"one word, given all others": measured_words(model, selection, samples)}
    return facts


def given_places(length: int) -> dict[str, torch.Tensor]:
    """Return which places of a window (T,) are given where not all of it is to be written, as a prompt or around a gap.

    In both, the open half has the same length.
    """
    place_T = torch.arange(length)
    after, within = length // 2, length // 4
    return {
        "the second half, given the first": place_T < after,
        "the middle half, given what is around it": (place_T < within) | (place_T >= within + length - after),
    }


def measured_words(model: TreeDiffForDiffusionLM, windows: torch.Tensor, samples: int) -> dict[str, Any]:
    """Return nats per token of every window where a single token is open: the mean over places of the window."""
    place_T = torch.arange(windows.shape[1])
    places = place_T[len(place_T) // (2 * WORDS) :: len(place_T) // WORDS]
    texts = [measured_text(model, windows, samples, place_T != place) for place in places]
    return {name: np.mean([text[name] for text in texts], axis=0).tolist() for name in texts[0]}


def make_tree(variant: Variant, data: PackedData, embeddings: str) -> VocabularyTree:
    """Return the tree of a variant."""
    sources = TreeSources(data, embeddings, str(ARTIFACTS / "gpt2"))
    if variant.depth == 1:
        return VocabularyTree.flat(sources.vocab_size)
    return sources.build(variant.source, variant.order, variant.depth, variant.branching)


def shortened(protocol: Protocol) -> Protocol:
    """Return the protocol with the steps of an ablation, unless it has fewer."""
    return replace(protocol, steps=min(STEPS, protocol.steps))


def changed_weights(levels: tuple[float, ...] | None, weights_from: float = 0.0) -> AbstractContextManager[object]:
    """Return the context in which the training loss has other weights; measuring has none of them.

    Args:
        levels: of each level, coarsest first.
        weights_from: the time before which weights are those of this time.

    """
    if levels is None and not weights_from:
        return nullcontext()

    def weighted(nats: torch.Tensor, nodes: torch.Tensor, times: torch.Tensor, *arguments: Any) -> torch.Tensor:
        terms_BTD = nelbo_terms(nats, nodes, times.clamp(min=weights_from), *arguments)
        return terms_BTD if levels is None else terms_BTD * torch.tensor(levels, device=terms_BTD.device)

    return patch("modeling_treediff.modeling_treediff.nelbo_terms", weighted)


def train_first_half(
    variant: Variant, tree: VocabularyTree, data: PackedData, protocol: Protocol, folder: Path, seed: int
) -> None:
    """Train the model that a variant begins as, with its own settings, unless that is done."""
    first = VARIANTS[variant.begins_as]
    settings = protocol.training_config(folder, LEARNING_RATE, seed, **first.settings)
    if not (folder / WEIGHTS_NAME).exists():
        train_model(variant_config(first, tree, protocol), tree, data, protocol, settings)


def noise_by(counts: bool) -> AbstractContextManager[object]:
    """Return the context in which blocks lose as many levels as their times mean, or each level by its own chance."""
    return nullcontext() if counts else patch.object(collator, "levels_per_interval", lambda _: None)


def collect(path: Path, runs: list[dict[str, Any]], wanted: Sequence[tuple[str, int]]) -> None:
    """Write all wanted runs into one record, with differences to the base, or to MDLM among its variants, and to MDLM.

    Raises:
        ValueError: runs are missing, or do not compare.

    """
    check_same(runs)
    found = {(record["variant"], record["seed"]): record for record in runs}
    if missing := [f"{name}, seed {seed}" for name, seed in wanted if (name, seed) not in found]:
        raise ValueError(
            f"These runs are missing: {'; '.join(missing)}. benchmarks.quality.ablations train makes them."
        )
    rows, tree_base = [], next((name for name, _ in wanted if name in (BASE, NODE)), BASE)
    for name, seed in wanted:
        base = VARIANTS[name].base or ("mdlm" if name.startswith("mdlm") else tree_base)
        flat = f"mdlm-shared-{share:g}" if (share := VARIANTS[name].uniform_share) else "mdlm"
        others = {"difference": base, "to_mdlm": flat, "to_sequential": SEQUENTIAL.get(name, "")}
        others["to_blocks"] = "blocks-4" if name in CAUSES else ""
        rows.append(summarised(found[name, seed], {key: found.get((other, seed)) for key, other in others.items()}))
        for size, facts in found[name, seed].get("at_sizes", {}).items():
            asked = found[name, seed] | facts | {"title": f"{VARIANTS[name].title}, asked for S = {size}"}
            rows.append(summarised(asked, {"difference": found.get((tree_base, seed))}))
    order = list(VARIANTS)
    rows.sort(key=lambda row: (order.index(row["variant"]), row["seed"]))
    facts = {
        "protocol": runs[0]["protocol"],
        "learning_rate": LEARNING_RATE,
        "trained_with": {name: runs[0]["trained"][name] for name in (*OF_TRAINING, "device")},
        "runs": rows,
    }
    write_record(path, facts, seed=SEEDS[0])


def summarised(record: dict[str, Any], others: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Return a run as the record keeps it: figures in place of windows, with differences to others that there are."""
    own = ("variant", "group", "title", "seed", "num_hidden_layers", "parameters", "head_parameters", "branching")
    row = {name: record[name] for name in (*own, "tree_sha256")}
    if "shares" in record:
        return row | {"shares": summarised_shares(record, others["to_mdlm"] or record)}
    row |= {"level_losses": record["level_losses"]} | estimate(record["windows"])
    row |= {name: difference(record, other) for name, other in others.items() if other is not None}
    if "further" in record:
        row["further"] = {
            title: estimate(text["windows"])
            | {
                name: difference(text, other["further"][title])
                for name, other in others.items()
                if other is not None and name != "to_sequential"
            }
            for title, text in record["further"].items()
        }
    return row


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.quality.ablations: error: {error}")
