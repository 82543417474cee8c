"""Tables of tree_artifacts/README.md: the recorded reports of trees, and the time of building them."""

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.markdown import marks, table
from benchmarks.places import RESULTS
from benchmarks.trees.artifacts import RECIPES

FIGURES = (
    "tree",
    "V",
    "K",
    "D",
    "built in",
    "held-out tokens",
    "vocabulary seen",
    "unigram entropy",
    "entropy at depth 1",
    "bigram information",
    "over random",
    "over matched",
    "similarity (random)",
)
KINDS = ("byte", "digit", "punctuation", "Latin word start", "Latin continuation", "non-Latin")


def sections() -> dict[tuple[str, str], str]:
    """Return what stands between which marks of the page."""
    files = [file for name in RECIPES if (file := RESULTS / "trees" / f"{name}.json").exists()]
    trees, speed = [read(file) for file in files], read(RESULTS / "tree_speed.json")
    return {marks("tables of trees"): tables(trees), marks("tables of speed"): speed_tables(speed)}


def read(file: Path) -> dict[str, Any]:
    """Return a record."""
    return json.loads(file.read_text(encoding="utf-8"))


def speed_tables(record: dict[str, Any]) -> str:
    """Return time and memory of clustering by vocabulary, and of counting by length of the text."""
    trees = [
        [
            f"{run['tokens']:,.0f}",
            f"{run['branching']:.0f}",
            f"{run['wall_seconds']:.1f} s",
            f"{run['peak_gigabytes']:.2f} GB",
            *(f"{run[f'{part}_seconds'] / run['all clustering_seconds']:.0%}" for part in ("auction", "seeding")),
        ]
        for run in record["trees"]
    ]
    whole, clustering = (
        growths([(run["tokens"], run[seconds]) for run in record["trees"]])
        for seconds in ("wall_seconds", "all clustering_seconds")
    )
    texts = [
        [
            f"{run['megabytes']:.0f} MB",
            f"{run['tokens']:,.0f}",
            f"{run['max_pairs']:,.0f}",
            f"{run['distinct_pairs']:,.0f}",
            f"{run['dropped']:,.0f}",
            f"{run['wall_seconds']:.0f} s",
            f"{run['peak_gigabytes']:.2f} GB",
        ]
        for run in record["texts"]
    ]
    return (
        table(("tokens", "K", "time", "peak memory", "in the auction", "in seeding"), trees)
        + f"\nFrom each row to the next the time grows like V to the power {whole}; that of the clustering alone like "
        f"{clustering}.\n\n"
        + table(("text", "tokens", "pairs allowed", "pairs kept", "neighbours dropped", "time", "peak memory"), texts)
        + f"\nMedians of {record['runs']} runs, {record['device']}, commit {record['commit']}.\n"
    )


def growths(points: list[tuple[float, float]]) -> str:
    """Return the exponents between neighbouring points (size, seconds)."""
    steps = zip(points[:-1], points[1:], strict=True)
    exponents = (math.log(after[1] / before[1]) / math.log(after[0] / before[0]) for before, after in steps)
    return ", ".join(f"{exponent:.2f}" for exponent in exponents)


def tables(records: list[dict[str, Any]]) -> str:
    """Return the figures of every tree, and where its kinds of tokens went."""
    commits = ", ".join(sorted({str(record["commit"]) for record in records}))
    return (
        table(FIGURES, [figures(record) for record in records])
        + "\n"
        + table(("tree", *KINDS), [kinds(record) for record in records])
        + f"\nSeed 0, commit {commits}; commands, versions and all levels in `benchmarks/results/trees/`.\n"
    )


def figures(record: dict[str, Any]) -> list[str]:
    """Return one row: what the tree's coarsest level says about held-out text."""
    report = record["report"]
    coarse = report["levels"][1]
    similarity = (
        "–" if coarse["similarity"] is None else f"{coarse['similarity']:.3f} ({coarse['random_similarity']:.3f})"
    )
    return [
        record["name"],
        f"{report['vocab_size']:,}",
        f"{report['max_branching']}",
        f"{report['tree_depth']}",
        f"{record['build_seconds']:.0f} s, {record['build_peak_gigabytes']:.1f} GB",
        f"{report['text_tokens']:,}",
        f"{report['coverage']:.0%}",
        f"{report['unigram_entropy']:.2f}",
        f"{coarse['entropy']:.2f}",
        f"{coarse['bigram_information']:.3f}",
        f"{coarse['bigram_factor']:.2f}x",
        f"{coarse['matched_bigram_factor']:.2f}x",
        similarity,
    ]


def kinds(record: dict[str, Any]) -> list[str]:
    """Return one row: tokens of each kind, and the share in clusters of which the kind is more than half."""
    found = {kind["kind"]: kind for kind in record["report"]["kinds"]}
    cells = [
        f"{found[kind]['tokens']:,}, {found[kind]['purity']:.0%} together" if kind in found else "–" for kind in KINDS
    ]
    return [record["name"], *cells]
