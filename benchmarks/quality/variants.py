"""What `benchmarks.quality.ablations` trains: in each variant one thing of the quality benchmark is changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.contenders import (
    BINOMIAL_NODE,
    CONTENDERS,
    TDLM,
    UNTIED,
    Contender,
    budget_config,
    reference_parameters,
    same_depth_config,
)
from benchmarks.quality.training import Protocol
from benchmarks.quality.uniform_share import SHARES
from modeling_treediff import TreeDiffConfig, VocabularyTree
from modeling_treediff.training import plan_memory
from modeling_treediff.training.data.options import BLOCK_SAMPLING_EPS

BASE, TREE, UNSEEN, TIMES, FACTORS = "base", "tree", "unseen tokens", "times", "factorised embedding"  # groups
BLOCKS, PERTURBED = "blocks", "perturbed nodes"  # two more
RATES = (0.05, 0.1, 0.2)  # of perturbation
NODE = "binomial-node"
MIXED = "blocks-4-and-64"
PARAMETERS, OF_BASE, MEMORY = "of the parameters", "of the base", "of the memory"  # what decides the layers


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
        counts: whether blocks lose in training as many levels as their times mean, instead of each by its own chance.
        begins_as: the variant that it is for the first half of the steps; the other half has a schedule and an order of
            its own.
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
    counts: bool = True
    begins_as: str = ""
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
    "hdlm": Variant(FACTORS, "HDLM (D=2, leaf head), V x d vectors", CONTENDERS["hdlm"].fields),
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
        f"node-{rank}": Variant("head", f"node head, rank {rank}", UNTIED | {"head_rank": rank})
        for rank in (16, 32, 64, 128)
    },
    "leaf": Variant("head", "leaf head", {"head": "leaf"}),
    "free": Variant("embedding", "free input embedding", {"node_embedding": "free"}),
    "free-node": Variant("embedding", "free, node head", UNTIED | {"node_embedding": "free"}),
    "k128": Variant("shape", "D=2, K=128", branching=128),
    "d3": Variant("shape", "D=3, K=21", depth=3),
    "d3-node": Variant("shape", "D=3, K=21, node head", UNTIED, depth=3),
    "d4": Variant("shape", "D=4, K=10", depth=4),
    "d6": Variant("shape", "D=6, K=5", depth=6),
    **{
        f"{schedule}{'-node' * (head == 'node')}": Variant(
            "schedule",
            f"{schedule}, {head} head",
            {**(UNTIED if head == "node" else {}), "head": head, "schedule": schedule},
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
    **{
        f"{name}-{size}{'-early' * (eps < 0.1)}": Variant(
            BLOCKS,
            f"{title}, S = {size}, at least {eps:g} of a block lost",
            {**fields, "block_size": size},
            depth=depth,
            settings={"sampling_eps": eps},
        )
        for name, title, fields, depth in (
            ("blocks", "tree", BINOMIAL_NODE, 2),
            ("mdlm-blocks", "flat (BD3-LM)", {}, 1),
        )
        for size in (1, 4, 8, 16)
        for eps in (BLOCK_SAMPLING_EPS, 1e-3)
    },
    **{
        name: Variant(
            BLOCKS,
            f"tree, S = 4, {title}",
            {**BINOMIAL_NODE, "block_size": 4},
            counts=counts,
            begins_as=begins_as,
            settings={"sampling_eps": BLOCK_SAMPLING_EPS} | ({"mixed_block_sizes": [64]} if name == MIXED else {}),
        )
        for name, title, counts, begins_as in (
            ("blocks-4-uncounted", "losses of a block not by counts", False, ""),
            ("blocks-4-continued", "first half of the training without blocks", True, NODE),
            (MIXED, "windows of S = 4 and of S = 64 in turn", True, ""),
        )
    },
    **{
        f"perturbed-{rate:g}": Variant(
            PERTURBED, f"tree, nodes perturbed at rate {rate:g}", {**BINOMIAL_NODE, "perturbation": rate}
        )
        for rate in RATES
    },
    "coarse": Variant("level weights", "coarse level twice the fine one", level_weights=(4 / 3, 2 / 3)),
    "fine": Variant("level weights", "fine level twice the coarse one", level_weights=(2 / 3, 4 / 3)),
}


def variant_config(variant: Variant, tree: VocabularyTree, protocol: Protocol) -> TreeDiffConfig:
    """Return the config of a variant's model."""
    sizes = dict(protocol.sizes)
    if variant.layers == OF_BASE:
        other = variant_config(VARIANTS[variant.base], tree, protocol)
        sizes |= {name: getattr(other, name) for name in ("num_hidden_layers", "intermediate_size")}
        return TreeDiffConfig.from_tree(tree, **variant.contender.fields, **sizes)
    if variant.layers == MEMORY:
        reference = variant_config(VARIANTS["mdlm"], VocabularyTree.flat(tree.vocab_size), protocol)
        return config_for_memory(variant.contender, tree, planned_memory(reference, protocol), protocol)
    budget = reference_parameters(tree.vocab_size, protocol.reference_layers, **sizes)
    return budget_config(variant.contender, tree, budget, **sizes)


def config_for_memory(contender: Contender, tree: VocabularyTree, memory: int, protocol: Protocol) -> TreeDiffConfig:
    """Return the contender's config with as many layers as a training step of this planned memory (bytes) allows."""
    best = same_depth_config(contender, tree, 1, **protocol.sizes)
    if planned_memory(best, protocol) > memory:
        raise ValueError(f"One layer of {contender.title} does not fit {memory} bytes.")
    while planned_memory(best, protocol) <= memory:
        config, best = best, same_depth_config(contender, tree, best.num_hidden_layers + 1, **protocol.sizes)
    return config


def planned_memory(config: TreeDiffConfig, protocol: Protocol, **settings: Any) -> int:
    """Return the planned peak (bytes) of a training step, lean with these settings of `make_lean`."""
    precision = "fp32" if protocol.precision == "no" else protocol.precision
    return plan_memory(config, protocol.batch_size, protocol.sequence_length, precision=precision, **settings).peak
