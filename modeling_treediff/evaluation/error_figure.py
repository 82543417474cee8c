"""An error analysis as a picture: bars for every group of tokens, stacked by level of the tree."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_treediff.files.atomic_files import write_atomically

from .error_analysis import enough

Facts = dict[str, Any]


def draw_errors(record: Facts, file: Path) -> None:
    """Draw the bound of every group of tokens that occurs often enough, and of two models their difference; as PNG."""
    rows = [record["rows"][0], *filter(enough, record["rows"][1:])]
    compared = rows[0]["difference"] is not None
    heights = _heights(rows)
    figure = Figure(figsize=(15 if compared else 9, 1.6 + 0.27 * heights[-1]), layout="constrained")
    axes = figure.subplots(1, 2 if compared else 1, sharey=True, squeeze=False)[0]
    titles = {role: facts["title"] for role, facts in record["models"].items()}
    if compared:
        _bars(axes[0], rows, heights - 0.2, "model", 0.38, {})
        _bars(axes[0], rows, heights + 0.2, "reference", 0.38, {"alpha": 0.45})
        axes[0].set_title(f"bound: {titles['model']} (above), {titles['reference']} (below, pale)")
        _bars(axes[1], rows, heights, "difference", 0.7, {})
        axes[1].set_title(f"difference: left of 0, {titles['model']} is better")
        axes[1].axvline(0, color="black", linewidth=0.8)
    else:
        _bars(axes[0], rows, heights, "model", 0.7, {})
        axes[0].set_title(f"bound: {titles['model']}")
    axes[0].set_yticks(heights, [f"{row['group']}  ({row['tokens'] / record['num_tokens']:.1%})" for row in rows])
    axes[0].invert_yaxis()
    for one in axes:
        one.set_xlabel("nats per token (lines: 95 % intervals of the sum over levels)")
        one.grid(axis="x", alpha=0.3)
        one.margins(y=0.01)
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=100))


def _heights(rows: list[Facts]) -> np.ndarray:
    """Return where each row's bar lies: one below the other, with a gap between groupings."""
    new = [0, *(before["grouping"] != after["grouping"] for before, after in zip(rows, rows[1:], strict=False))]
    return np.arange(len(rows)) + 0.8 * np.cumsum(new)


def _bars(axes: Axes, rows: list[Facts], heights: np.ndarray, role: str, thickness: float, style: Facts) -> None:
    """Stack the levels of each row, what is above 0 to the right and what is below to the left; mark the sum."""
    ends = {True: np.zeros(len(rows)), False: np.zeros(len(rows))}
    for level in range(len(rows[0]["model"]["levels"])):
        value = np.array([row[role]["levels"][level]["value"] for row in rows])
        start = np.where(value >= 0, ends[True], ends[False])
        axes.barh(heights, value, thickness, start, color=f"C{level}", label=f"level {level + 1}", **style)
        for sign, end in ends.items():
            end += np.where((value >= 0) == sign, value, 0)
    totals = [row[role]["total"] for row in rows]
    half = [(total["interval"][1] - total["interval"][0]) / 2 for total in totals]
    marks = "ko" if role == "difference" else "k"
    axes.errorbar(
        [total["value"] for total in totals], heights, xerr=half, fmt=marks, linestyle="", elinewidth=1.2, markersize=4
    )
