"""A model's config from a parameter budget: as many layers as it pays for."""

from typing import Any

from modeling_treediff.configuration_treediff import TreeDiffConfig
from modeling_treediff.vocabulary_tree import VocabularyTree


def budget_config(tree: VocabularyTree, num_parameters: int, **fields: Any) -> TreeDiffConfig:
    """Return the config over a tree that spends a budget of parameters on depth.

    The number of layers is the one that comes nearest to the budget; then, unless intermediate_size is given, the MLPs
    are made as much wider or narrower, in steps of 8, as brings the total closest to it: at usual sizes far within 1 %.

    Args:
        tree: the vocabulary tree.
        num_parameters: the budget, all parts counted; of a reference config, `sum(count_parameters(config).values())`.
        fields: the other fields of the config, without num_hidden_layers.

    Raises:
        ValueError: the budget does not pay for one layer.

    """
    parts = count_parameters(TreeDiffConfig.from_tree(tree, num_hidden_layers=1, **fields))
    for_layers = num_parameters - sum(parts.values()) + parts["layers"]
    layers = round(for_layers / parts["layers"])
    if layers < 1:
        raise ValueError(
            f"{num_parameters} parameters do not pay for one layer: {parts['layers']} on top of {parts['embedding']} "
            f"for the embedding and {parts['head']} for the head. Raise the budget or choose smaller sizes."
        )
    config = TreeDiffConfig.from_tree(tree, num_hidden_layers=layers, **fields)
    if "intermediate_size" in fields:
        return config
    missing = for_layers - layers * parts["layers"]
    wider = 8 * round(missing / (layers * 3 * config.hidden_size * 8))
    sizes = fields | {"intermediate_size": max(8, config.intermediate_size + wider)}
    return TreeDiffConfig.from_tree(tree, num_hidden_layers=layers, **sizes)


def count_parameters(config: TreeDiffConfig) -> dict[str, int]:
    """Return the number of parameters of each part of a model: embedding, layers, norm, head."""
    size = config.hidden_size
    layer = 4 * size * size + 3 * size * config.intermediate_size + 2 * size
    heads = {
        "child": config.tree_depth * config.max_branching * (size + 1),
        "node": config.tree_depth * size * config.head_rank + (config.num_tree_nodes - 1) * (config.head_rank + 1),
        "leaf": config.vocab_size * (size + 1),
    }
    embedding = config.num_tree_nodes * size
    if (rank := config.embedding_rank) is not None:
        internal = config.num_tree_nodes - config.vocab_size
        embedding = (config.num_tree_nodes - 1 + size) * rank + internal * size
    if config.tie_word_embeddings:  # counted there
        heads["node"] -= (config.num_tree_nodes - 1) * config.head_rank
    return {
        "embedding": embedding,
        "layers": config.num_hidden_layers * layer,
        "norm": size,
        "head": heads[config.head],
    }
