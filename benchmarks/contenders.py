"""The models that are compared: each is the reference, MDLM, but for what its row says.

All get the parameter budget of the flat model, spent on depth (`building.budget_config`), some on width, too, or, for
what a head alone costs, the flat model's own number of layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import GPT2Config

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building.balanced import random_tree, smallest_branching
from modeling_treediff.building.budget import budget_config as config_for_budget
from modeling_treediff.building.budget import count_parameters

CHUNK = 1024  # positions whose logits the flat model keeps at a time, where its loss is chunked
TDLM = {"schedule": "sequential", "head": "child"}  # as published
POISSON_LEAF = {"schedule": "poisson", "head": "leaf"}
TIED = {"head": "node", "node_embedding": "factorised", "tie_word_embeddings": True}
DEFAULT = TIED | {"schedule": "binomial", "lookahead": 1.0}  # of a tree of depth 2
UNTIED = {"head": "node", "node_embedding": "path", "tie_word_embeddings": False, "lookahead": 0.0}  # and vectors apart
BINOMIAL_NODE = UNTIED | {"schedule": "binomial"}
WIDER = 1.5  # times the reference's width, where embedding and head share one table


@dataclass(frozen=True)
class Contender:
    """One member of the family.

    Attributes:
        title: as tables and figures name it.
        depth: of its tree, of the smallest fan-out possible; 1 is the flat tree.
        fields: of its config, beside those of its tree and size.
        random_tree: tokens in random places of the tree, instead of clustered.
        width: of its network by budget, over the reference's.
        loss_chunk: positions whose logits training keeps at a time; None for all.

    """

    title: str
    depth: int = 2
    fields: Mapping[str, Any] = field(default_factory=dict)
    random_tree: bool = False
    width: float = 1
    loss_chunk: int | None = None


CONTENDERS: dict[str, Contender] = {
    "mdlm": Contender("MDLM (flat)", depth=1),
    "mdlm-chunked": Contender("MDLM, chunked loss", depth=1, loss_chunk=CHUNK),
    "hdlm": Contender("HDLM (D=2, leaf head, xi=1)", fields=POISSON_LEAF),
    "tdlm-child": Contender("TDLM, child head", fields=TDLM),
    "tdlm-node": Contender("TDLM, node head", fields=TDLM | UNTIED),
    "tree": Contender("tree (ours)", fields=DEFAULT, width=WIDER),
    "tree-binomial": Contender("tree, untied, no lookahead", fields=BINOMIAL_NODE),
    "tree-myopic": Contender("tree, no lookahead", fields=DEFAULT | {"lookahead": 0.0}, width=WIDER),
    "mdlm-tied": Contender("MDLM, tied", depth=1, fields=TIED | {"lookahead": 0.0}, width=WIDER),
    "tdlm-d3": Contender("TDLM, child head, D=3", depth=3, fields=TDLM),
    "tdlm-d4": Contender("TDLM, child head, D=4", depth=4, fields=TDLM),
    "tdlm-random": Contender("TDLM, child head, random tree", fields=TDLM, random_tree=True),
    "hdlm-perturbed": Contender("HDLM's process (D=2, leaf head, xi=0.9)", fields=POISSON_LEAF | {"perturbation": 0.1}),
    "tree-blocks": Contender("tree (ours), S=4", fields=DEFAULT | {"block_size": 4}, width=WIDER),
    "bd3lm": Contender("BD3-LM (flat, S=4)", depth=1, fields={"block_size": 4}),
}
TRAINED_LONG = tuple("mdlm tree hdlm tdlm-child mdlm-tied tree-blocks bd3lm hdlm-perturbed tree-myopic".split())
# Fields of a config.
OF_TREE = ("vocab_size", "tree_depth", "max_branching", "num_tree_nodes", "tree_sha256", "tokenizer_sha256")
REFERENCE = "mdlm"
AUTOREGRESSIVE, AUTOREGRESSIVE_TITLE = "ar", "autoregressive (GPT-2)"
GIDD, GIDD_SHARE = "gidd", 0.1  # its largest share of wrong tokens
GIDD_TITLE = f"GIDD (flat, p_u={GIDD_SHARE:g})"
COLOURS = {  # in figures; the variants with perturbed nodes or blocks are lighter than the models without
    **{"mdlm": "C0", "mdlm-chunked": "C1", "hdlm": "C2", "tdlm-child": "C3", "tdlm-node": "C4", "tree": "C5"},
    **{"tree-binomial": "C6", "tdlm-d3": "C7", "tdlm-d4": "C8", "tdlm-random": "C9", "hdlm-perturbed": "#98df8a"},
    **{"tree-myopic": "#f7b6d2", "mdlm-tied": "#ffbb78"},
    **{"tree-blocks": "#c49c94", "bd3lm": "#aec7e8", GIDD: "#9edae5", AUTOREGRESSIVE: "black"},
}


def unclustered_tree(contender: Contender, vocab_size: int, seed: int = 0) -> VocabularyTree:
    """Return the contender's tree with tokens in random places: right for all that does not depend on the text."""
    if contender.depth == 1:
        return VocabularyTree.flat(vocab_size)
    branching = smallest_branching(vocab_size, contender.depth)
    return random_tree(vocab_size, branching, contender.depth, seed)


def reference_parameters(vocab_size: int, layers: int, **sizes: Any) -> int:
    """Return the parameters of MDLM with this number of layers, the budget of all contenders."""
    config = TreeDiffConfig.from_tree(VocabularyTree.flat(vocab_size), num_hidden_layers=layers, **sizes)
    return sum(count_parameters(config).values())


def budget_config(contender: Contender, tree: VocabularyTree, parameters: int, **sizes: Any) -> TreeDiffConfig:
    """Return the contender's config over its tree, of its width, with as many layers as the parameters pay for."""
    sizes["hidden_size"] = round(contender.width * sizes["hidden_size"])
    return config_for_budget(tree, parameters, **contender.fields, **sizes)


def same_depth_config(contender: Contender, tree: VocabularyTree, layers: int, **sizes: Any) -> TreeDiffConfig:
    """Return the contender's config over its tree with the reference's number of layers."""
    return TreeDiffConfig.from_tree(tree, num_hidden_layers=layers, **contender.fields, **sizes)


def make_model(config: TreeDiffConfig, tree: VocabularyTree, **fields: Any) -> TreeDiffForDiffusionLM:
    """Return a new model of a config, but for some fields, over its tree."""
    own = {name: getattr(config, name) for name in TreeDiffConfig.__annotations__ if name not in OF_TREE}
    return TreeDiffForDiffusionLM.from_tree(tree, **own | fields)


def gpt2_parameters(config: GPT2Config) -> int:
    """Return the number of parameters of `GPT2LMHeadModel`: its head is its token embedding."""
    size, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    layer = 4 * size * size + 4 * size + 2 * size * inner + inner + size + 4 * size
    return (config.vocab_size + config.n_positions) * size + config.n_layer * layer + 2 * size


def gpt2_for_budget(
    vocab_size: int, sequence_length: int, parameters: int, hidden_size: int, heads: int, eos_token_id: int
) -> GPT2Config:
    """Return the GPT-2 that spends the parameters on depth, then evens out by the width of its MLPs."""

    def config(layers: int, inner: int) -> GPT2Config:
        return GPT2Config(
            vocab_size=vocab_size,
            n_positions=sequence_length,
            n_embd=hidden_size,
            n_head=heads,
            n_layer=layers,
            n_inner=inner,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=eos_token_id,
            eos_token_id=eos_token_id,
        )

    inner = 4 * hidden_size
    without, one = (gpt2_parameters(config(layers, inner)) for layers in (0, 1))
    layers = max(1, round((parameters - without) / (one - without)))
    missing = parameters - gpt2_parameters(config(layers, inner))
    inner += 8 * round(missing / (layers * (2 * hidden_size + 1) * 8))
    return config(layers, inner)
