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
parameters, trained and measured as the candidates; the leaders have both seeds.

The budget of parameters, the text, its order and the noise are those of `benchmarks.quality.perplexity`; steps are
fewer, there is one learning rate, and one seed but for the base. What is measured are the windows that it selects by,
so that its validation windows stay unseen. `--embeddings`, needed by some trees, are (50257, E) vectors of GPT-2's
tokens under the name `embedding`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.contenders import TDLM, Contender, budget_config, reference_parameters, same_depth_config
from benchmarks.places import ARTIFACTS, RESULTS
from benchmarks.quality.ablation_trees import TreeSources
from benchmarks.quality.autoregressive import WEIGHTS_NAME
from benchmarks.quality.packed_data import SELECTION, PackedData
from benchmarks.quality.perplexity import PROTOCOLS
from benchmarks.quality.record import OF_TRAINING, check_same, difference, estimate, read_runs
from benchmarks.quality.run_queue import DONE_NAME, RunQueue, locked
from benchmarks.quality.training import Protocol, begin, load_model, measured_text, model_sizes, plain, train_model
from benchmarks.quality.uniform_share import SHARES, measured_shares, sharing, summarised_shares
from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.diffusion_process import nelbo_terms
from modeling_treediff.files.records import write_record
from modeling_treediff.training import plan_memory

STEPS, LEARNING_RATE, SEEDS = 800, 2e-3, (0, 1)
BASE = "base"  # a variant
TREE, UNSEEN, TIMES, FACTORS = "tree", "unseen tokens", "times", "factorised embedding"  # groups
BINOMIAL_NODE = {"schedule": "binomial", "head": "node"}
NODE = "binomial-node"  # the default
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
}
PARAMETERS, OF_BASE, MEMORY = "of the parameters", "of the base", "of the memory"  # what decides the layers
SIZES = ("", "-deeper")  # of factorised variants: the layers of their base, its parameters


@dataclass(frozen=True)
class Variant:
    """One change.

    Attributes:
        group: the question that it belongs to.
        title: as the table names it.
        fields: of the config.
        source: of the tree's clusters, see SOURCES.
        order: of siblings, see ORDERS.
        depth, branching: of the tree, 1 for MDLM; the fan-out by default the smallest possible.
        level_weights: of the training loss, coarsest level first; the bound has 1 for each.
        weights_from: the time from which on weights are those of the bound; before it, those of that time.
        uniform_share: of every choice in training, see the module `uniform_share`.
        base: the variant that it is compared to; by default that of the part.
        layers: that it has: as many as the budget of parameters pays for, as many as the base, or as many as the
            planned memory of MDLM's training step allows.
        settings: of the training.

    """

    group: str
    title: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    source: str = "class-bigrams"
    order: str = "frequency"
    depth: int = 2
    branching: int | None = None
    level_weights: tuple[float, ...] | None = None
    weights_from: float = 0.0
    uniform_share: float = 0.0
    base: str = ""
    layers: str = PARAMETERS
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def contender(self) -> Contender:
        """Its model: that of the base, TDLM with the child head, where nothing else is said."""
        return Contender(self.title, fields=TDLM | dict(self.fields))


@dataclass(frozen=True)
class Factorised:
    """A kind of factorised input embedding.

    Attributes:
        title: as the table names it, without the rank.
        base: the variant without it.
        fields: of its config.
        ranks: numbers of a token's vector.
        tied: whether these are the head's.

    """

    title: str
    base: str
    fields: Mapping[str, Any]
    ranks: tuple[int, ...] = (64, 32, 16, 128)
    tied: bool = False

    def variants(self, name: str) -> dict[str, Variant]:
        """Return its variants by name: with the layers of its base, and with its parameters."""
        found: dict[str, Variant] = {}
        for rank in self.ranks:
            ranks = {"head_rank": rank, "tie_word_embeddings": True} if self.tied else {"embedding_rank": rank}
            variant = Variant(
                FACTORS,
                f"{self.title}, r = {rank}",
                {**self.fields, "node_embedding": "factorised", **ranks},
                depth=1 if self.base == "mdlm" else 2,
                base=self.base,
            )
            found |= {f"{name}-{rank}": replace(variant, layers=OF_BASE), f"{name}-{rank}-deeper": variant}
        return found


FACTORISED = {
    "own": Factorised("tree, own vectors", NODE, BINOMIAL_NODE),
    "tied": Factorised("tree, the head's vectors", NODE, BINOMIAL_NODE, tied=True),
    "mdlm-own": Factorised("flat, own vectors", "mdlm", {}, ranks=(64, 32)),
    "mdlm-tied": Factorised("flat, the head's vectors", "mdlm", {"head": "node"}, ranks=(64,), tied=True),
}
FACTORISED_VARIANTS = {name: one for kind, some in FACTORISED.items() for name, one in some.variants(kind).items()}
FACTORISED_VARIANTS |= {
    "own-64-memory": replace(FACTORISED_VARIANTS["own-64"], layers=MEMORY),
    "d3-binomial-node": Variant(FACTORS, "tree, D=3, V x d vectors", BINOMIAL_NODE, depth=3),
    "d3-own-64": replace(
        FACTORISED_VARIANTS["own-64"], title="tree, D=3, own vectors, r = 64", depth=3, base="d3-binomial-node"
    ),
    "hdlm": Variant(FACTORS, "HDLM (D=2, leaf head), V x d vectors", {"schedule": "poisson", "head": "leaf"}),
}
LONG = {  # variants and seeds of the parts that are trained as long as the contenders
    "candidates": [(name, seed) for seed in SEEDS for name in CANDIDATES],
    "embeddings": [
        *((name, SEEDS[0]) for name in ("mdlm", NODE, *FACTORISED_VARIANTS, BASE)),
        *((name, SEEDS[1]) for name in ("mdlm", NODE)),
    ],
    "unseen": [*((name, seed) for seed in SEEDS for name in ("mdlm", NODE)), ("closed", SEEDS[0])],
}
ORDERS = {"frequency": "by frequency", "random": "in random order", "aligned": "aligned between parents"}
SOURCES = {
    "class-bigrams": "by neighbours in the text",
    "corpus": "k-means of embeddings from the text",
    "embeddings": "k-means of another model's embeddings",
    "random": "random",
    "frequency": "by frequency",
}


def _trees() -> dict[str, Variant]:
    found = {
        f"tree-{source}-{order}": Variant(
            TREE, f"clusters {SOURCES[source]}, siblings {ORDERS[order]}", source=source, order=order
        )
        for source in SOURCES
        for order in ORDERS
    }
    del found["tree-class-bigrams-frequency"]  # the base
    return found


VARIANTS: dict[str, Variant] = {
    BASE: Variant(BASE, "clusters by neighbours in the text, siblings by frequency, D=2, K=91, child head, sequential"),
    **_trees(),
    **{
        f"node-{rank}": Variant("head", f"node head, rank {rank}", {"head": "node", "head_rank": rank})
        for rank in (16, 32, 64, 128)
    },
    "leaf": Variant("head", "leaf head", {"head": "leaf"}),
    "free": Variant("embedding", "free input embedding", {"node_embedding": "free"}),
    "free-node": Variant("embedding", "free, node head", {"node_embedding": "free", "head": "node"}),
    "k128": Variant("shape", "D=2, K=128", branching=128),
    "d3": Variant("shape", "D=3, K=21", depth=3),
    "d3-node": Variant("shape", "D=3, K=21, node head", {"head": "node"}, depth=3),
    "d4": Variant("shape", "D=4, K=10", depth=4),
    "d6": Variant("shape", "D=6, K=5", depth=6),
    **{
        f"{schedule}{'-node' * (head == 'node')}": Variant(
            "schedule", f"{schedule}, {head} head", {"schedule": schedule, "head": head}
        )
        for schedule in ("binomial", "poisson")
        for head in ("child", "node")
    },
    "mdlm": Variant("MDLM", "flat", depth=1),
    "mdlm-free": Variant("MDLM", "flat, free input embedding", {"node_embedding": "free"}, depth=1),
    "mdlm-early": Variant("MDLM", "flat, training times from 0.001", depth=1, settings={"sampling_eps": 1e-3}),
    "mdlm-undecayed": Variant("MDLM", "flat, no weight decay", depth=1, settings={"weight_decay": 0.0}),
    "early": Variant("training times", "from 0.001 of a window", settings={"sampling_eps": 1e-3}),
    "closed": Variant(UNSEEN, "unseen tokens clustered as the others", BINOMIAL_NODE, source="closed"),
    **{f"shared-{e:g}": Variant(UNSEEN, f"tree, {e:g}", BINOMIAL_NODE, uniform_share=e) for e in SHARES if e},
    **{f"mdlm-shared-{e:g}": Variant(UNSEEN, f"flat, {e:g}", depth=1, uniform_share=e) for e in SHARES if e},
    **{
        f"times-{eps:g}": Variant(TIMES, f"from {eps:g} of a window", BINOMIAL_NODE, settings={"sampling_eps": eps})
        for eps in (0.03, 0.01, 0.001)
    },
    "times-capped": Variant(
        TIMES,
        "from 0.001 of a window, weights before 0.1 as at 0.1",
        BINOMIAL_NODE,
        settings={"sampling_eps": 1e-3},
        weights_from=0.1,
    ),
    **FACTORISED_VARIANTS,
    "coarse": Variant("level weights", "coarse level twice the fine one", level_weights=(4 / 3, 2 / 3)),
    "fine": Variant("level weights", "fine level twice the coarse one", level_weights=(2 / 3, 4 / 3)),
}


def main() -> None:
    """Do what the command line says."""
    options = parse_arguments()
    stem, wanted = RECORDS[options.part], wanted_runs(options.part)
    folder = options.folder or Path("runs", stem, options.form)
    if options.what == "collect":
        path, runs = options.output or RESULTS / f"{stem}.json", read_runs(folder)
        collect(path, runs, wanted + leaders(runs) if options.part == "embeddings" else wanted)
    elif options.what == "run":
        run(options.variant, options, folder / f"{options.variant}-seed{options.seed}")
    else:
        shared = ["-m", "benchmarks.quality.ablations", "run", "--form", options.form, "--folder", str(folder)]
        shared += ["--embeddings", options.embeddings, "--part", options.part]

        def take(runs: Sequence[tuple[str, int]]) -> None:
            RunQueue(folder, options.parallel).take(
                {f"{name}-seed{seed}": [*shared, "--variant", name, "--seed", str(seed)] for name, seed in runs}
            )

        take(wanted)
        if options.part == "embeddings":
            take(leaders(read_runs(folder)))


def leaders(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Return which factorised embeddings have the second seed, too: the best by the windows to select by.

    One among the trees with the layers of their base, one among those with its parameters, and one flat model.
    """
    nats = {record["variant"]: float(np.mean(record["windows"])) for record in runs if record["seed"] == SEEDS[0]}
    found = []
    for base, layers in ((NODE, (OF_BASE,)), (NODE, (PARAMETERS,)), ("mdlm", (OF_BASE, PARAMETERS))):
        some = [name for name in nats if VARIANTS[name].base == base and VARIANTS[name].layers in layers]
        found += [(name, SEEDS[1]) for name in sorted(some, key=nats.__getitem__)[:1]]
    return found


def wanted_runs(part: str) -> list[tuple[str, int]]:
    """Return variants and seeds of a part."""
    if part in LONG:
        return LONG[part]
    if part == "shares":
        return [
            (name, SEEDS[0]) for name, variant in VARIANTS.items() if name in ("mdlm", NODE) or variant.uniform_share
        ]
    if part == "times":
        return [(name, SEEDS[0]) for name in VARIANTS if name == NODE or VARIANTS[name].group == TIMES]
    short = [name for name in VARIANTS if VARIANTS[name].group not in (UNSEEN, TIMES, FACTORS)]
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
    identity = {"variant": name, "learning_rate": LEARNING_RATE, "protocol": plain(asdict(protocol))}
    with locked(folder):
        trained = begin(folder, identity, data, options.seed)
        if not (settings.output_dir / WEIGHTS_NAME).exists():
            tree = make_tree(variant, data, options.embeddings)
            config = variant_config(variant, tree, protocol)
            weighted = changed_weights(variant.level_weights, variant.weights_from)
            with weighted, sharing(variant.uniform_share):
                train_model(config, tree, data, protocol, settings)
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
    if part in ("candidates", "embeddings"):
        facts["further"] = {text: measured_text(model, some, samples) for text, some in windows.items()}
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


def variant_config(variant: Variant, tree: VocabularyTree, protocol: Protocol) -> TreeDiffConfig:
    """Return the config of a variant's model."""
    sizes = dict(protocol.sizes)
    if variant.layers == OF_BASE:
        other = variant_config(VARIANTS[variant.base], tree, protocol)
        sizes |= {name: getattr(other, name) for name in ("num_hidden_layers", "intermediate_size")}
        return TreeDiffConfig.from_tree(tree, **variant.contender.fields, **sizes)
    flat = VocabularyTree.flat(tree.vocab_size)
    if variant.layers == MEMORY:
        reference = variant_config(VARIANTS["mdlm"], flat, protocol)
        return config_for_memory(variant.contender, tree, planned_memory(reference, protocol), protocol)
    budget = reference_parameters(tree.vocab_size, protocol.reference_layers, **sizes)
    return budget_config(variant.contender, tree, budget, **sizes)


def config_for_memory(contender: Contender, tree: VocabularyTree, memory: int, protocol: Protocol) -> TreeDiffConfig:
    """Return the contender's config with as many layers as a training step of this planned memory (bytes) allows."""
    best = same_depth_config(contender, tree, 1, **protocol.sizes)
    while planned_memory(best, protocol) <= memory:
        config, best = best, same_depth_config(contender, tree, best.num_hidden_layers + 1, **protocol.sizes)
    return config


def planned_memory(config: TreeDiffConfig, protocol: Protocol) -> int:
    """Return the planned peak (bytes) of a training step."""
    precision = "fp32" if protocol.precision == "no" else protocol.precision
    return plan_memory(config, protocol.batch_size, protocol.sequence_length, precision=precision).peak


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
        rows.append(summarised(found[name, seed], {key: found.get((other, seed)) for key, other in others.items()}))
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
