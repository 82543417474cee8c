"""A report's figures as tables of text, for a terminal or a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from modeling_treediff.text import printable

from .tree_report import Spread, TreeReport

ABSENT = "–"


@dataclass(frozen=True)
class ReportTable:
    """One table: a title, a line that says how to read it, column heads, rows of as many cells.

    The first column is text, the others hold numbers unless `numeric` is False.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numeric: bool = True


def report_tables(report: TreeReport) -> list[ReportTable]:
    """Return the tables of a report; one whose input is missing is left out."""
    tables = [_overview(report), _shape(report)]
    if any(figure is not None for level in report.levels for figure in (level.entropy, level.similarity)):
        tables.append(_meaning(report))
    if report.kinds is not None:
        tables.append(_kinds(report))
    return tables


def _overview(report: TreeReport) -> ReportTable:
    facts = {
        "tokens": f"{report.vocab_size:,}",
        "internal nodes": f"{report.internal_nodes:,}",
        "depth": f"{report.tree_depth}",
        "largest fan-out allowed": f"{report.max_branching:,}",
        **{printable(str(name)): printable(str(value)) for name, value in sorted(report.metadata.items())},
        "sha256": report.sha256,
    }
    if report.text_tokens is not None:
        facts["text"] = f"{report.text_tokens:,} tokens, {_number(report.coverage, '.1%')} of the vocabulary occur"
        facts["unigram entropy"] = f"{_number(report.unigram_entropy)} nats"
    return ReportTable("Tree", "", ("property", "value"), list(facts.items()), numeric=False)


def _shape(report: TreeReport) -> ReportTable:
    rows = [
        (
            _depth_name(level.depth, report.tree_depth),
            f"{level.nodes:,}",
            _range(level.fan_out),
            _number(level.single_child_nodes, ",d"),
            _number(level.filled_slots, ".1%"),
            _range(level.leaves),
            f"{level.balance:.4f}",
        )
        for level in report.levels
    ]
    note = (
        "Fan-out and tokens per node: smallest / mean / largest. Balance: 1 if all nodes of a depth are equally large."
    )
    header = ("depth", "nodes", "fan-out", "only children", "slots filled", "tokens per node", "balance")
    return ReportTable("Shape by level", note, header, rows)


def _meaning(report: TreeReport) -> ReportTable:
    rows = [
        (
            _depth_name(level.depth, report.tree_depth),
            _number(level.entropy),
            _number(level.bigram_information, ".4f"),
            _number(level.random_bigram_information, ".4f"),
            _number(level.bigram_factor, ".2f"),
            _number(level.matched_bigram_information, ".4f"),
            _number(level.matched_bigram_factor, ".2f"),
            _number(level.similarity),
            _number(level.random_similarity),
        )
        for level in report.levels
    ]
    note = (
        "In nats. Entropy: of a token's node, its parent being known. Bigram information: mutual information of two "
        "neighbouring tokens' nodes. Random: tokens in random places of this tree; matched: in the places of others "
        f"about as frequent (means of {report.random_trees}). "
        "Similarity: mean cosine of the embeddings of two tokens below the same node."
    )
    header = ("depth", "entropy", "bigram information", "random", "factor", "matched", "factor", "similarity", "random")
    return ReportTable("Text and embeddings by level", note, header, rows)


def _kinds(report: TreeReport) -> ReportTable:
    rows = [
        (
            place.kind,
            f"{place.tokens:,}",
            f"{place.clusters:,}",
            f"{place.effective_clusters:.1f}",
            f"{place.purity:.1%}",
        )
        for place in report.kinds or []
    ]
    note = (
        f"Among the {report.levels[1].nodes:,} nodes of depth 1. Effective clusters: exp of the entropy of the spread. "
        "In own clusters: share in clusters of which the kind is more than half."
    )
    return ReportTable("Kinds of tokens", note, ("kind", "tokens", "clusters", "effective", "in own clusters"), rows)


def _depth_name(depth: int, tree_depth: int) -> str:
    return f"{depth} (root)" if depth == 0 else f"{depth} (tokens)" if depth == tree_depth else str(depth)


def _range(spread: Spread | None) -> str:
    return ABSENT if spread is None else f"{spread.min:,} / {spread.mean:,.1f} / {spread.max:,}"


def _number(value: float | None, form: str = ".3f") -> str:
    return ABSENT if value is None else format(value, form)
