"""The records of `benchmarks.speed.throughput` as a table and as a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.markdown import table
from benchmarks.matched_models import BUDGET, by_title
from benchmarks.places import FIGURES, RESULTS
from benchmarks.record_schema import Schema, read_record
from modeling_treediff.files.atomic_files import write_atomically

RECORD = RESULTS / "speed.json"
FIGURE = FIGURES / "speed.png"
RATES = tuple(
    f"{name}{quartile}"
    for name in ("tokens_per_second", "ratio")
    for quartile in ("", "_lower_quartile", "_upper_quartile")
)
WRITING: dict[str, Schema] = {
    "contender": str,
    "matched": [str],
    **dict.fromkeys(("layers", "parameters"), int),
    **dict.fromkeys(RATES, float),
}
TRAINING: dict[str, Schema] = WRITING | {"flops": int, "peak_share": float}
COUNTS = ("vocab_size", "hidden_size", "layers", "heads", "sequence_length", "batch_size", "turns", "calls", "passes")
SIZE: Schema = {
    "name": str,
    **dict.fromkeys(COUNTS, int),
    "peak_flops_per_second": float,
    "training": [TRAINING],
    "generation": [WRITING],
}
SCHEMA: Schema = {"commit": str, "device": str, "precision": str, "sizes": [SIZE]}  # on a CPU also freed_memory_kept
PARTS = ("training", "generation")
SAME_DEPTH_ALPHA = 0.35  # of the bars of models with as many layers as the reference, and fewer parameters

Record = dict[str, Any]


def read_speed(file: Path = RECORD) -> Record:
    """Return the record; ValueError if it is missing or lacks anything."""
    return read_record(file, SCHEMA)


def speed_tables(record: Record) -> str:
    """Return for every size a table of tokens per second, and what was measured."""
    return "\n".join(_size_table(size) for size in record["sizes"]) + (
        "\nMedians over turns (and quartiles of the ratios to MDLM in the same turn); generation with equal numbers of "
        f"forward passes; {record['device']}{', freed memory kept' if record.get('freed_memory_kept') else ''}, "
        f"{record['precision']}; commit {record['commit']}.\n"
    )


def draw(record: Record, file: Path = FIGURE) -> None:
    """Draw the ratios to the speed of MDLM, with their quartiles, for every size; in proportion, from MDLM's on."""
    sizes = record["sizes"]
    figure = Figure(figsize=(6.5 * len(sizes), 5), layout="constrained")
    for size, axes in zip(sizes, figure.subplots(1, len(sizes), squeeze=False)[0], strict=True):
        _draw_size(axes, size)
    figure.legend(
        [Patch(color=f"C{number}", alpha=alpha) for alpha in (1, SAME_DEPTH_ALPHA) for number in range(len(PARTS))],
        [f"{part}, {kind}" for kind in ("same parameters", "same depth") for part in PARTS],
        loc="outside lower center",
        ncols=4,
        fontsize="small",
    )
    figure.suptitle(f"{record['device']}, {record['precision']}; commit {record['commit']}", fontsize="medium")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=80))


def _size_table(size: dict[str, Any]) -> str:
    generation = by_title(size["generation"])
    lines = []
    for title, (row,) in by_title(size["training"]).items():
        cells = [*_cells(row), f"{row['peak_share']:.0%}"]
        lines.append(
            [title, str(row["layers"]), *cells, *(_cells(generation[title][0]) if title in generation else ("", ""))]
        )
    header = ("model", "layers", "training, tokens/s", "/ MDLM", "peak FLOP/s used", "generation, tokens/s", "/ MDLM")
    return table(header, lines) + (
        f"\nV = {size['vocab_size']:,}, d = {size['hidden_size']}, MDLM with {size['layers']} layers, "
        f"{size['batch_size']} windows of {size['sequence_length']} tokens; {size['turns']} steps, {size['calls']} "
        f"calls of {size['passes']} passes; the peak is {size['peak_flops_per_second'] / 1e9:,.0f} GFLOP/s.\n"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, str]:
    low, high = row["ratio_lower_quartile"], row["ratio_upper_quartile"]
    return f"{row['tokens_per_second']:,.0f}", f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _draw_size(axes: Axes, size: dict[str, Any]) -> None:
    places = {title: place for place, title in enumerate(by_title(size["training"]))}
    for number, part in enumerate(PARTS):
        rows = {title: models[0] for title, models in by_title(size[part]).items()}
        full = f"C{number}"
        colours = [full if BUDGET in row["matched"] else (full, SAME_DEPTH_ALPHA) for row in rows.values()]
        ratios = [row["ratio"] for row in rows.values()]
        errors = [
            [row["ratio"] - row["ratio_lower_quartile"] for row in rows.values()],
            [row["ratio_upper_quartile"] - row["ratio"] for row in rows.values()],
        ]
        heights = [places[title] + 0.4 * number - 0.2 for title in rows]
        axes.barh(heights, [ratio - 1 for ratio in ratios], 0.38, left=1, xerr=errors, color=colours)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(2, subs=(1, 1.5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    axes.set_yticks(list(places.values()), list(places))
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    title = f"V = {size['vocab_size']:,}, d = {size['hidden_size']}, windows of {size['sequence_length']}"
    axes.tick_params(axis="x", labelsize="small")
    axes.set_title(title, fontsize="medium")
    axes.set(xlabel="tokens per second, MDLM = 1")
