"""Which choices matter: one thing at a time is changed in the TDLM model of the quality benchmark.

python benchmarks/quality.py pack --form cpu                                       # once: texts to tokens
python benchmarks/ablations.py train --parallel 2 --embeddings runs/embeddings.safetensors
python benchmarks/ablations.py collect                                             # benchmarks/results/ablations.json

The budget of parameters, the text, its order and the noise are those of `quality.py`; steps are fewer, there is one
learning rate, and one seed but for the base. `--embeddings` are (50257, E) vectors of GPT-2's tokens under the name
`embedding`; without them the trees made from them are left out.
"""

import argparse
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from ablation_trees import TreeSources
from contenders import Contender, budget_config, reference_parameters
from quality import PROTOCOLS
from quality_data import VALIDATION, PackedData, spread
from quality_record import check_same, read_runs
from quality_run import Protocol, bound_of_windows, model_facts, train_model, window_figures
from run_queue import DONE_NAME, RunQueue

from modeling_treediff.diffusion_process import nelbo_terms
from modeling_treediff.training import write_record

ROOT = Path(__file__).resolve().parents[1]
STEPS, LEARNING_RATE, SEEDS = 800, 4e-3, (0, 1)
BASE = "base"


@dataclass(frozen=True)
class Variant:
    """One change.

    Attributes:
        group: the question that it belongs to.
        title: as the table names it.
        fields: of the config.
        source: where the tree's clusters come from, see SOURCES.
        order: of siblings, see ORDERS.
        depth, branching: of the tree; the fan-out by default the smallest possible.
        level_weights: of the training loss, coarsest level first; the bound has 1 for each.

    """

    group: str
    title: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    source: str = "class-bigrams"
    order: str = "frequency"
    depth: int = 2
    branching: int | None = None
    level_weights: tuple[float, ...] | None = None


ORDERS = {"frequency": "by frequency", "random": "in random order", "aligned": "aligned between parents"}
SOURCES = {
    "class-bigrams": ("by neighbours in the text", tuple(ORDERS)),
    "corpus": ("k-means of embeddings from the text", tuple(ORDERS)),
    "embeddings": ("k-means of another model's embeddings", ("frequency", "random")),
    "random": ("random", ("frequency", "random")),
    "frequency": ("by frequency", ("frequency",)),
}


def _trees() -> dict[str, Variant]:
    found = {
        f"tree-{source}-{order}": Variant(
            "tree", f"clusters {title}, siblings {ORDERS[order]}", source=source, order=order
        )
        for source, (title, orders) in SOURCES.items()
        for order in orders
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
    "d4": Variant("shape", "D=4, K=10", depth=4),
    "d6": Variant("shape", "D=6, K=5", depth=6),
    **{
        f"{schedule}{'-node' * (head == 'node')}": Variant(
            "schedule", f"{schedule}, {head} head", {"schedule": schedule, "head": head}
        )
        for schedule in ("binomial", "poisson")
        for head in ("child", "node")
    },
    "coarse": Variant("level weights", "coarse level twice the fine one", level_weights=(4 / 3, 2 / 3)),
    "fine": Variant("level weights", "fine level twice the coarse one", level_weights=(2 / 3, 4 / 3)),
}


def main() -> None:
    """Do what the first argument says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "run", "collect"), help="run: a single run")
    parser.add_argument("--form", choices=PROTOCOLS, default="cpu", help="of quality.py (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="default: runs/ablations/FORM")
    parser.add_argument("--embeddings", help=".safetensors file with vectors of GPT-2's tokens")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all variants")
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.folder or Path("runs", "ablations", options.form)
    if options.what == "collect":
        return collect(read_runs(folder))
    if options.what == "run":
        return run(options, folder / f"{options.variant}-seed{options.seed}")
    shared = [__file__, "run", "--form", options.form, "--folder", str(folder)]
    shared += ["--embeddings", options.embeddings] if options.embeddings else []
    wanted = [name for name in options.only if options.embeddings or VARIANTS[name].source != "embeddings"]
    runs = [(name, seed) for seed in SEEDS for name in wanted if seed == SEEDS[0] or name == BASE]
    RunQueue(folder, options.parallel).take(
        {f"{name}-seed{seed}": [*shared, "--variant", name, "--seed", str(seed)] for name, seed in runs}
    )


def run(options: argparse.Namespace, folder: Path) -> None:
    """Train one variant, measure it on the validation text, and write the record."""
    variant, protocol = VARIANTS[options.variant], shortened(PROTOCOLS[options.form])
    data = PackedData.load(Path("runs", "quality", options.form, "data"))
    sources = TreeSources(data, options.embeddings, str(ROOT / "tree_artifacts" / "gpt2"))
    tree = sources.build(variant.source, variant.order, variant.depth, variant.branching)
    budget = reference_parameters(tree.vocab_size, protocol.reference_layers, **protocol.sizes)
    config = budget_config(Contender(variant.title, fields=variant.fields), tree, budget, **protocol.sizes)
    settings = protocol.training_config(folder / "model", LEARNING_RATE, options.seed)
    with weighted_levels(variant.level_weights):
        model = train_model(config, tree, data, protocol, settings)
    windows = spread(data.windows(VALIDATION, protocol.window), protocol.measured_windows)
    nats, levels = bound_of_windows(model, windows, protocol.samples)
    facts = model_facts(model, settings.output_dir) | window_figures(nats) | {"level_losses": levels}
    shared = {
        "variant": options.variant,
        "group": variant.group,
        "title": variant.title,
        "learning_rate": LEARNING_RATE,
        "tokens_seen": protocol.steps * protocol.batch_size * protocol.window,
        "tokens_per_epoch": data.windows("training", protocol.window).input_ids.size,
        "protocol": {"steps": protocol.steps, "batch_size": protocol.batch_size, "window": protocol.window},
        "manifest": data.manifest,
        "tree_sha256": tree.sha256,
        "branching": tree.max_branching,
    }
    write_record(folder / DONE_NAME, shared | facts, options.seed)


def shortened(protocol: Protocol) -> Protocol:
    """Return the protocol with the steps of an ablation, unless it has fewer."""
    return replace(protocol, steps=min(STEPS, protocol.steps))


def weighted_levels(weights: tuple[float, ...] | None) -> AbstractContextManager:
    """Return the context in which the training loss has these weights for the levels; measuring has none."""
    if weights is None:
        return nullcontext()
    weight_D = torch.tensor(weights)

    def weighted(*arguments: Any) -> torch.Tensor:  # noqa: ANN401 -- those of `nelbo_terms`
        return nelbo_terms(*arguments) * weight_D

    return patch("modeling_treediff.modeling_treediff.nelbo_terms", weighted)


def collect(runs: list[dict[str, Any]]) -> None:
    """Write all runs into one record."""
    check_same(runs)
    first = runs[0]
    shared = ("protocol", "manifest", "tokens_seen", "tokens_per_epoch", "learning_rate")
    own = ("variant", "group", "title", "seed", "num_hidden_layers", "parameters", "head_parameters", "branching")
    figures = ("nats", "standard_error", "level_losses")
    base = {record["seed"]: record for record in runs if record["variant"] == BASE}
    rows = []
    for record in runs:
        difference = torch.tensor(record["windows"]) - torch.tensor(base[record["seed"]]["windows"])
        row = {name: record[name] for name in (*own, *figures)}
        error = float(difference.std() / len(difference) ** 0.5)
        rows.append(row | {"difference": float(difference.mean()), "difference_error": error})
    facts = {name: first[name] for name in shared}
    trained_on = {name: first[name] for name in ("device", "versions", "commit")}
    write_record(
        ROOT / "benchmarks" / "results" / "ablations.json", facts | {"trained_on": trained_on, "runs": rows}, seed=0
    )


if __name__ == "__main__":
    main()
