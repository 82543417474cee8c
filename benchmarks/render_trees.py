"""Tables of the recorded tree reports, between the marks in tree_artifacts/README.md."""

import json
from pathlib import Path
from typing import Any

START, END = "<!-- tables of trees -->\n", "<!-- end of tables of trees -->"
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


def render(readme: Path, results: Path, names: list[str], check: bool) -> str | None:
    """Write the tables of the trees recorded, or compare; return what is wrong, None if all is well."""
    records = [
        json.loads(file.read_text(encoding="utf-8")) for name in names if (file := results / f"{name}.json").exists()
    ]
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    rendered = before + START + tables(records) + END + rest.split(END)[1]
    if check:
        return None if rendered == text else f"{readme.name} does not show the recorded reports: run trees.py --render."
    readme.write_text(rendered, encoding="utf-8")
    return None


def tables(records: list[dict[str, Any]]) -> str:
    """Return the figures of every tree, and where its kinds of tokens went."""
    commits = ", ".join(sorted({str(record["commit"]) for record in records}))
    return (
        table(FIGURES, [figures(record) for record in records])
        + "\n"
        + table(("tree", *KINDS), [kinds(record) for record in records])
        + f"\nSeed 0, commit {commits}; commands, versions and all levels in `benchmarks/results/trees/`.\n"
    )


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


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
        f"{record['build_seconds']:.0f} s",
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
