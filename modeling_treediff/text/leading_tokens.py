"""The tokens that stand for a node of a vocabulary tree."""

import numpy as np
import torch

from modeling_treediff.vocabulary_tree import VocabularyTree


def leading_tokens(tree: VocabularyTree, node: int, token_counts: np.ndarray | None = None) -> np.ndarray:
    """Return the tokens below a node, most frequent first; what names it to a person.

    Without counts its representative comes first and the others in the order of their paths: `build_tree` gives a
    node's most frequent child slot 0.

    Args:
        tree: any tree.
        node: a node id.
        token_counts: (V,) occurrences in a text; equals in the order above.

    """
    depth, shown = int(tree.depth[node]), int(tree.representative[node])
    tokens = np.flatnonzero(tree.ancestors[:, depth].cpu().numpy() == node)
    path_ND = tree.paths[torch.from_numpy(tokens)].cpu().numpy()
    rarity = np.zeros(len(tokens)) if token_counts is None else -np.asarray(token_counts)[tokens]
    return tokens[np.lexsort((*path_ND.T[::-1], tokens != shown, rarity))]
