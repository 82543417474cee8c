"""Error analysis: the bound by kind of token and level of the tree, beside another model's on the same text.

Errors and 95 % intervals are over windows, to first order: they hold the noise of the corruptions and how much windows
differ. Differences are paired, window by window. Single levels do not compare, since the two models predict in
different contexts: a flat model sees some words and no clusters; a tree model, with the sequential schedule, chooses
clusters before it knows any word, and words when it knows all clusters. So even of two perfect models, the tree model
has more nats at level 1 and as many fewer below. Only sums over levels compare.

Shape legend: W windows, N counted tokens, D depth of the tree, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.text import leading_tokens, token_names
from modeling_treediff.text.tree_tokenizer import check_tokenizer

from .intervals import NORMAL_QUANTILE, ratio_and_error
from .level_terms import LevelTerms, Looks, check_readable, measure_levels
from .token_groups import Grouping, group_tokens
from .windows import WindowProtocol, cut_windows, tokenize_texts

FEWEST_WINDOWS = 20  # of which an error over windows means something
SHOWN = 10  # confusions and clusters of each level
NAMING_TOKENS = 5  # that a cluster is shown by

Facts = dict[str, Any]


@dataclass(frozen=True)
class ComparedText:
    """A text measured under one model or two.

    Attributes:
        tree: whose levels the terms are split by.
        token_ids: (N,) the text.
        windows: (N,) the window that each token is counted in, 0..W-1.
        model: terms of the tree model.
        reference: terms of what it is compared with, if anything.

    """

    tree: VocabularyTree
    token_ids: np.ndarray
    windows: np.ndarray
    model: LevelTerms
    reference: LevelTerms | None


def analyze_errors(
    model: TreeDiffForDiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    protocol: WindowProtocol | None = None,
    *,
    reference: TreeDiffForDiffusionLM | None = None,
    token_counts: np.ndarray | None = None,
    num_samples: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Facts:
    """Split the bound on texts by level and kind of token, and compare with another model's.

    Args:
        model: a tree model, or a flat one alone.
        tokenizer: of both models.
        texts: documents, none of them empty.
        protocol: how they become windows; by default the longest that both models take, without overlap.
        reference: a flat model, or another model of the same tree.
        token_counts: (V,) occurrences that order tokens by frequency; by default those in these texts.
        num_samples: corruptions per window; by default two for each level of the tree, for both models.
        batch_size: windows per forward pass.
        seed: of all corruptions.
        progress: show bars.

    Returns:
        Facts ready for JSON, which `error_tables` and `summary` of this package read: `num_tokens`, `num_windows`,
            `tree_depth`; `rows`, the bound by group of tokens; `right`, how often the true child is the likeliest;
            `confusions` and `clusters`, by level.

    Raises:
        ValueError: as of `evaluate_texts` and `measure_levels`; fewer than two windows, or fewer corruptions of a
            window than the tree has levels.

    """
    depth, vocab_size = model.config.tree_depth, model.config.vocab_size
    num_samples = 2 * depth if num_samples is None else num_samples
    if num_samples < depth:
        raise ValueError(
            f"{num_samples} corruptions of a window cannot visit the tree's {depth} levels: give at least {depth}."
        )
    models = [one for one in (model, reference) if one is not None]
    protocol = _common_protocol(models, tokenizer, protocol)
    token_ids = tokenize_texts(texts, tokenizer, protocol.eos)
    windows = cut_windows(token_ids, protocol)
    if len(windows) < 2:
        raise ValueError(f"{len(token_ids)} tokens make a single window: a longer text is needed to tell the errors.")
    settings: Facts = {"num_samples": num_samples, "batch_size": batch_size, "seed": seed, "progress": progress}
    terms = [measure_levels(one, model.tree, windows, **settings) for one in models]
    window_N = windows.counted.nonzero()[:, 0].numpy()
    text = ComparedText(model.tree, token_ids, window_N, terms[0], terms[1] if reference is not None else None)
    occurrences = np.bincount(token_ids, minlength=vocab_size)
    groupings = group_tokens(token_ids, tokenizer, vocab_size, occurrences if token_counts is None else token_counts)
    names = token_names(tokenizer, vocab_size)
    return {
        "protocol": str(protocol),
        "num_windows": len(windows),
        "num_tokens": len(token_ids),
        "num_samples": num_samples,
        "tree_depth": depth,
        "rows": compare_groups(text, [Grouping("all", ("all tokens",), np.zeros_like(token_ids)), *groupings]),
        "right": [right_choices(text, level) for level in range(1, depth + 1)],
        "confusions": name_nodes(confusions(text), model.tree, names, occurrences),
        "clusters": name_nodes(costly_clusters(text), model.tree, names, occurrences),
    }


def _common_protocol(
    models: list[TreeDiffForDiffusionLM], tokenizer: PreTrainedTokenizerBase, protocol: WindowProtocol | None
) -> WindowProtocol:
    """Return the protocol, or that of the longest windows that all models take; ValueError if they do not compare."""
    longest = min(one.config.max_position_embeddings for one in models)
    protocol = protocol or WindowProtocol.for_model(models[0], tokenizer, longest)
    if protocol.sequence_length > longest:
        raise ValueError(
            f"Windows of {protocol.sequence_length} tokens are longer than the {longest} positions of a model."
        )
    if any(one.schedule.perturbation for one in models):
        raise ValueError("The errors of a model of perturbed nodes are of two choices, which this does not tell apart.")
    for one in models:
        check_tokenizer(one.tree, tokenizer)
        check_readable(one, models[0].tree)
    return protocol


def compare_groups(text: ComparedText, groupings: list[Grouping]) -> list[Facts]:
    """Return a row for each group that occurs."""
    return [
        {"grouping": grouping.name, "group": name} | compare_tokens(text, member_N)
        for grouping in groupings
        for index, name in enumerate(grouping.groups)
        if (member_N := grouping.index == index).any()
    ]


def compare_tokens(text: ComparedText, member_N: np.ndarray) -> Facts:
    """Return the bounds of both models on some of the tokens, and their difference: in total and by level.

    `relative` is that difference less the one on all tokens: models that differ in more than the tree have a difference
    everywhere, and what only some tokens suffer from shows beyond it.
    """
    window_n = text.windows[member_N]
    model_nD = text.model.nats[member_N]
    facts = {
        "tokens": int(member_N.sum()),
        "windows": len(np.unique(window_n)),
        "model": _estimates(model_nD, window_n, text.windows),
        "reference": None,
        "difference": None,
        "relative": None,
    }
    if text.reference is not None:
        reference_nD = text.reference.nats[member_N]
        facts["reference"] = _estimates(reference_nD, window_n, text.windows)
        facts["difference"] = _estimates(model_nD - reference_nD, window_n, text.windows)
        facts["relative"] = _relative((text.model.nats - text.reference.nats).sum(axis=1), member_N, text.windows)
    return facts


def enough(row: Facts) -> bool:
    """Tell whether a group of tokens occurs in enough windows for its intervals to mean something."""
    return row["windows"] >= FEWEST_WINDOWS


def right_choices(text: ComparedText, level: int) -> Facts:
    """Return how often the true child of a level is the most probable one, weighed as in the bound."""
    length_W = np.bincount(text.windows).astype(float)

    def right_W(looks: Looks) -> np.ndarray:
        right = (looks.level == level) & (looks.best == looks.child)
        return np.bincount(looks.window[right], looks.weight[right], minlength=len(length_W))

    facts: Facts = {"level": level, "model": _estimate(right_W(text.model.looks), length_W), "reference": None}
    facts["difference"] = None
    if text.reference is not None:
        facts["reference"] = _estimate(right_W(text.reference.looks), length_W)
        facts["difference"] = _estimate(right_W(text.model.looks) - right_W(text.reference.looks), length_W)
    return facts


def confusions(text: ComparedText) -> list[Facts]:
    """Return, for each level above the tokens, the pairs of clusters of which the wrong one is oftenest the likeliest.

    Looks count with their weights in the bound. A pair's share is of all looks at its cluster, so that the shares of a
    cluster add up to 1 at most; times the cluster's tokens in the text it is a number of tokens.
    """
    rows = []
    for level in range(1, text.tree.tree_depth):
        found = _mistakes(text.model.looks, level)
        beside = {} if text.reference is None else _mistakes(text.reference.looks, level)
        nodes_N = text.tree.ancestors[text.token_ids, level].numpy(force=True)
        size = np.bincount(nodes_N, minlength=text.tree.num_nodes)
        largest = sorted(found.items(), key=lambda item: -item[1][0] * size[item[0][0]])[:SHOWN]
        for (child, best), (share, probability) in largest:
            rows.append(
                {
                    "level": level,
                    "node": child,
                    "taken_for": best,
                    "tokens": share * int(size[child]),
                    "share": share,
                    "probability": probability,
                    "reference_share": beside.get((child, best), (0.0, 0.0))[0] if text.reference else None,
                }
            )
    return rows


def costly_clusters(text: ComparedText) -> list[Facts]:
    """Return, for each level above the tokens, the clusters whose tokens lose most nats in total to the reference.

    Without a reference, those that have most nats. They are picked for it, so their intervals are too favourable.
    """
    nats_N = (text.model.nats - (text.reference.nats if text.reference else 0)).sum(axis=1)
    rows = []
    for level in range(1, text.tree.tree_depth):
        nodes_N = text.tree.ancestors[text.token_ids, level].numpy(force=True)
        total = np.bincount(nodes_N, nats_N)
        for node in np.argsort(-total, kind="stable")[:SHOWN].tolist():
            if total[node] > 0:
                rows.append({"level": level, "node": node, "nats": total[node]} | compare_tokens(text, nodes_N == node))
    return rows


def name_nodes(rows: list[Facts], tree: VocabularyTree, names: list[str], counts: np.ndarray) -> list[Facts]:
    """Return the rows with the most frequent tokens below their nodes."""

    def name(node: int) -> list[str]:
        return [names[token] for token in leading_tokens(tree, node, counts)[:NAMING_TOKENS]]

    return [row | {f"{key}_tokens": name(row[key]) for key in ("node", "taken_for") if key in row} for row in rows]


def _mistakes(looks: Looks, level: int) -> dict[tuple[int, int], tuple[float, float]]:
    """Return {(true node, likeliest node): (share of the looks at it, mean probability of the true one)}, if other."""
    here = looks.level == level
    looked = np.bincount(looks.child[here], looks.weight[here])
    wrong = here & (looks.best != looks.child)
    pairs, where = np.unique(np.stack([looks.child[wrong], looks.best[wrong]]), axis=1, return_inverse=True)
    where, weight = where.reshape(-1), looks.weight[wrong]
    count = np.bincount(where, weight, minlength=pairs.shape[1])
    probability = np.bincount(where, weight * looks.probability[wrong], minlength=pairs.shape[1]) / count
    keys = [(int(child), int(best)) for child, best in pairs.T]
    return dict(zip(keys, zip((count / looked[pairs[0]]).tolist(), probability.tolist(), strict=True), strict=True))


def _estimates(nats_nD: np.ndarray, window_n: np.ndarray, windows: np.ndarray) -> Facts:
    """Return nats per token with their errors, in total and by level."""
    count = int(windows.max()) + 1
    length_W = np.bincount(window_n, minlength=count).astype(float)
    by_level = [np.bincount(window_n, nats_n, minlength=count) for nats_n in nats_nD.T]
    return {
        "total": _estimate(np.sum(by_level, axis=0), length_W),
        "levels": [_estimate(nats_W, length_W) for nats_W in by_level],
    }


def _relative(nats_N: np.ndarray, member_N: np.ndarray, windows: np.ndarray) -> Facts:
    """Return the mean over some tokens less that over all, with its error over windows."""
    value, residual_W = 0.0, 0.0
    for chosen_N, sign in ((member_N, 1), (np.ones_like(member_N), -1)):
        length_W = np.bincount(windows[chosen_N], minlength=windows.max() + 1)
        sums_W = np.bincount(windows[chosen_N], nats_N[chosen_N], minlength=windows.max() + 1)
        mean = sums_W.sum() / length_W.sum()
        value += sign * float(mean)
        residual_W += sign * (sums_W - mean * length_W) / length_W.sum()
    count = windows.max() + 1
    return _with_interval(value, float(np.linalg.norm(residual_W) * np.sqrt(count / (count - 1))))


def _estimate(sums_W: np.ndarray, length_W: np.ndarray) -> Facts:
    return _with_interval(*ratio_and_error(sums_W, length_W))


def _with_interval(value: float, error: float) -> Facts:
    half = NORMAL_QUANTILE * error
    return {"value": value, "standard_error": error, "interval": [value - half, value + half]}
