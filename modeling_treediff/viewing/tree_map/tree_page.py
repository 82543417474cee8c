"""One self-contained HTML page that shows a vocabulary tree: a zoomable picture, a search, the report's figures.

The picture is a treemap (Bruls, Huizing and van Wijk, "Squarified treemaps", 2000): a node's area is its number of
tokens. Everything it needs is in the file, and its content security policy forbids it to load anything.
"""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from modeling_treediff.building.report_tables import ReportTable, report_tables
from modeling_treediff.building.tree_report import TreeReport
from modeling_treediff.text import KINDS
from modeling_treediff.viewing.web_page import fill, render_web_page
from modeling_treediff.vocabulary_tree import VocabularyTree

SCRIPTS = ("tree_layout.js", "tree_view.js", "tree_page.js", "tree_search.js")


def render_page(
    tree: VocabularyTree,
    names: Sequence[str],
    report: TreeReport,
    title: str,
    kinds: np.ndarray | None = None,
    token_counts: np.ndarray | None = None,
) -> str:
    """Return the page as HTML; write it as UTF-8.

    Args:
        tree: the tree.
        names: how each of the V tokens is shown; any strings, they cannot become markup.
        report: figures for the tables.
        title: the page's title.
        kinds: (V,) index in KINDS of every token: the colours. Without them clusters have colours.
        token_counts: (V,) occurrences in a text; the most frequent tokens name a cluster.

    Raises:
        ValueError: names, kinds or token_counts are not as many as the tree's tokens.

    """
    for name, values in (("names", names), ("kinds", kinds), ("token_counts", token_counts)):
        if values is not None and len(values) != tree.vocab_size:
            raise ValueError(f"{name} has {len(values)} entries, the tree {tree.vocab_size} tokens.")
    body = {"title": escape(title), "tables": "\n".join(map(_as_html, report_tables(report)))}
    return render_web_page(
        title,
        style=_asset("tree_page.css"),
        body=fill(_asset("tree_page.html"), body),
        data=page_data(tree, names, kinds, token_counts),
        script="\n".join(map(_asset, SCRIPTS)),
    )


def page_data(
    tree: VocabularyTree,
    names: Sequence[str],
    kinds: np.ndarray | None = None,
    token_counts: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return what the page's script needs, JSON-ready; all lists of tokens are in the tree's own order, by path.

    `children[k]` holds the number of children of every node of depth k, `slots[k]` the slots that the nodes of depth
    k + 1 take below their parents, `representative[k]` a node's representative as a position in the order.
    """
    path_VD = tree.paths.cpu().numpy()
    order = np.lexsort(path_VD.T[::-1])
    position = np.argsort(order)
    ancestor_VD = tree.ancestors.cpu().numpy()[order]
    children, slots, representative = [], [], []
    for depth in range(tree.tree_depth):
        nodes, edges = np.unique(ancestor_VD[:, depth]), ancestor_VD[:, depth : depth + 2]
        # In order of the paths the nodes of each depth stand together, and so do their children.
        edges = edges[np.append(True, (np.diff(edges, axis=0) != 0).any(axis=1))]
        children.append(np.bincount(edges[:, 0] - nodes[0]).tolist())
        slots.append(tree.child_slot[edges[:, 1]].tolist())
        representative.append(position[tree.representative[nodes].cpu().numpy()].tolist())
    return {
        "ids": order.tolist(),
        "names": [names[token] for token in order.tolist()],
        "children": children,
        "slots": slots,
        "representative": representative,
        "kind_names": list(KINDS),
        "kinds": None if kinds is None else np.asarray(kinds)[order].tolist(),
        "counts": None if token_counts is None else np.asarray(token_counts)[order].tolist(),
    }


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _as_html(table: ReportTable) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in table.rows
    )
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    style = "numbers" if table.numeric else "facts"
    return (
        f'<section><h2>{escape(table.title)}</h2>{note}<div class="scroll"><table class="{style}">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )
