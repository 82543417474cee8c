"""Places for tokens that a text does not have: beside seen tokens that are like them, so that no cluster is unseen.

A cluster of tokens that training never shows is closed off: the network learns to give it probability zero, and with it
all tokens below. Likeness is by spelling, as character n-grams, by the classes of the characters, and by embeddings.

Shape legend: V tokens, N tokens of a group, U of them unseen, F features, K clusters, E dimensions of an embedding.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

from .balanced_kmeans import membership
from .tree_measures import unit_rows

LONGEST_GRAM = 3
SCORE_UNIT = 2**20  # scores are rounded to integers, so that sums in another order do not decide


def spelling_features(names: Sequence[str]) -> sparse.csr_array:
    """Return (V, F) rows of length one: the n-grams of each token's name, and those of its characters' classes.

    Rare n-grams weigh more, by the logarithm of how many names have them.
    """
    grams = [sorted(set(_grams(name))) for name in names]
    number = {gram: index for index, gram in enumerate(sorted({gram for some in grams for gram in some}))}
    columns = np.array([number[gram] for some in grams for gram in some], dtype=np.int64)
    starts = np.cumsum([0, *map(len, grams)])
    weight_F = np.log1p(len(names) / np.bincount(columns, minlength=len(number)))
    length_V = np.sqrt(np.add.reduceat(weight_F[columns] ** 2, starts[:-1]))
    cells = (weight_F[columns] / np.repeat(length_V, np.diff(starts)), columns, starts)
    return sparse.csr_array(cells, shape=(len(names), len(number)))


def _grams(name: str) -> Iterator[str]:
    kinds = "".join(map(_kind, name))
    for kind, text in (("text", f"^{name}$"), ("kind", f"^{kinds}$")):
        for size in range(1, LONGEST_GRAM + 1):
            yield from (f"{kind} {text[start : start + size]}" for start in range(len(text) - size + 1))


def _kind(character: str) -> str:
    if character.isalpha():
        return ("A" if character.isupper() else "a") if character.isascii() else "é"
    return "0" if character.isdigit() else "_" if character == "▁" or character.isspace() else "."


def place_unseen(
    cluster_N: np.ndarray,
    seen_N: np.ndarray,
    room_K: np.ndarray,
    spelling_NF: sparse.csr_array | None,
    point_NE: np.ndarray,
) -> np.ndarray:
    """Put each unseen token into the cluster whose seen tokens are most like it and that has room; likest first.

    Args:
        cluster_N: (N,) clusters 0..K-1 of the seen tokens; of the others anything.
        seen_N: (N,) bool.
        room_K: (K,) how many more tokens each cluster takes; together at least as many as are unseen.
        spelling_NF: (N, F) from `spelling_features`; None where tokens have no names.
        point_NE: (N, E) embeddings, zeros for tokens without one.

    Returns:
        (N,) clusters of all tokens.

    """
    unseen_U, num_clusters = np.flatnonzero(~seen_N), len(room_K)
    member_KN = membership(np.where(seen_N, cluster_N, num_clusters), num_clusters + 1)[:num_clusters]
    share_KN = sparse.diags_array(1 / np.maximum(member_KN.sum(axis=1), 1)) @ member_KN
    score_UK = np.zeros((len(unseen_U), num_clusters), dtype=np.float32)
    for feature_N in (spelling_NF, sparse.csr_array(unit_rows(point_NE))):
        if feature_N is not None:
            score_UK += (feature_N[unseen_U] @ (share_KN @ feature_N).T).toarray()
    placed_N = cluster_N.copy()
    placed_N[unseen_U] = best_match(np.rint(SCORE_UNIT * score_UK).astype(np.int32), room_K)
    return placed_N


def best_match(score_UK: np.ndarray, room_K: np.ndarray) -> np.ndarray:
    """Match each row to a column with room, the pairs of the highest scores first (of equal ones, the first pair).

    That is the one stable match (Gale and Shapley 1962), found by rounds of proposals: each free row asks the best
    column that has not refused it; each column keeps the best of those that asked and frees the others.

    Args:
        score_UK: (U, K) int32, above -2**31.
        room_K: (K,) places, U or more in all.

    Returns:
        (U,) columns.

    """
    refused, score_UK = np.iinfo(np.int32).min, score_UK.copy()
    column_U = np.full(len(score_UK), -1)
    while (free := np.flatnonzero(column_U < 0)).size:
        column_U[free] = score_UK[free].argmax(axis=1)
        for column in np.unique(column_U[free]):
            rows = np.flatnonzero(column_U == column)
            worst = rows[np.argsort(-score_UK[rows, column], kind="stable")][room_K[column] :]
            score_UK[worst, column], column_U[worst] = refused, -1
    return column_U
