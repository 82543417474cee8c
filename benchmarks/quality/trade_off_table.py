"""What a training step costs and how well the model that it trains predicts: a table of budgets and a figure."""

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.markdown import table
from benchmarks.places import FIGURES
from benchmarks.quality.ablation_table import embedding_title, seen_tokens
from benchmarks.quality.ablations import SEEDS
from benchmarks.quality.packed_data import VALIDATION
from benchmarks.quality.trade_offs import LEAN, MODELS, RECORD
from benchmarks.record_schema import Schema, read_record
from modeling_treediff.files.atomic_files import write_atomically

FIGURE = FIGURES / "trade_offs.png"
ROW: Schema = {
    **{"variant": str, "way": str, "layers": int, "parameters": int, "peak_bytes": int},
    **dict.fromkeys(("tokens_per_second", "ratio", "ratio_lower_quartile", "ratio_upper_quartile"), float),
}
SCHEMA: Schema = {"commit": str, "device": str, "batch_size": int, "sequence_length": int, "rows": [ROW]}
MARKERS = "osD^"  # of ways to train
BENEATH = "own-64"  # nearly on the points of "tied-64": drawn open and larger

Record = dict[str, Any]


def read_trade_offs(file: Path = RECORD) -> Record:
    """Return the record; ValueError if it is missing or lacks anything."""
    return read_record(file, SCHEMA)


def budgets_table(record: Record, embeddings: Record) -> str:
    """Return what each model costs as a ratio to MDLM, and its perplexity: who has the same budget of what.

    Args:
        record: of `benchmarks.quality.trade_offs`.
        embeddings: of `benchmarks.quality.ablations --part embeddings`, which has the bounds.

    """
    runs, rows = _runs(embeddings), [row for row in record["rows"] if row["way"] == LEAN]
    first, reference = rows[0], _nats(runs[rows[0]["variant"]])
    lines = []
    for row in rows:
        run = runs[row["variant"]]
        costs = [row[name] / first[name] for name in ("parameters", "peak_bytes")]
        cells = [f"{cost:.2f}" for cost in (*costs, 1 / row["ratio"])]
        lines.append([embedding_title(run), str(row["layers"]), *cells, f"{math.exp(_nats(run) - reference):.3f}"])
    header = ("model", "layers", "parameters", "planned memory", "time of a step", "perplexity")
    return table(header, lines) + (
        f"\nAs ratios to MDLM; perplexity of the held-out text after {seen_tokens(embeddings)}, seed "
        f"{SEEDS[0]}. Steps of {record['batch_size']} "
        f"windows of {record['sequence_length']} tokens in fp32, median of the ratios of turns; {record['device']}; "
        f"commits {record['commit']} (costs), {embeddings['trained_with']['commit']} (perplexity).\n"
    )


def draw(record: Record, embeddings: Record, file: Path = FIGURE) -> None:
    """Draw perplexity and training speed over the planned memory of a training step, for every way to train."""
    runs = _runs(embeddings)
    figure = Figure(figsize=(13, 6), layout="constrained")
    quality, speed = figure.subplots(1, 2, sharex=True)
    _draw(quality, record, runs, {name: math.exp(_nats(run)) for name, run in runs.items()})
    _draw(speed, record, runs, {})
    quality.set(ylabel="perplexity of the held-out text (a bound)", yscale="log")
    quality.yaxis.set_minor_formatter("{x:.0f}")
    speed.set(ylabel="tokens per second in training, divided by those of MDLM")
    for axes in (quality, speed):
        axes.set(xlabel="planned peak of a training step, MiB")
        axes.grid(alpha=0.3, which="both")
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=90))


def _draw(axes: Axes, record: Record, runs: dict[str, Record], heights: dict[str, float]) -> None:
    """Draw a line for each model, with a point for each of its ways; without heights, those of their speed."""
    ways = list(dict.fromkeys(row["way"] for row in record["rows"]))
    for number, name in enumerate(MODELS):
        rows = sorted((row for row in record["rows"] if row["variant"] == name), key=lambda row: row["peak_bytes"])
        places = [row["peak_bytes"] / 2**20 for row in rows]
        tops = [heights.get(name, row["ratio"]) for row in rows]
        colour = f"C{number}" if number < 10 else "black"
        axes.plot(places, tops, color=colour, linewidth=0.8)
        larger: Record = {"markersize": 10, "markerfacecolor": "none"} if name == BENEATH else {}
        for row, place, top in zip(rows, places, tops, strict=True):
            label = f"{embedding_title(runs[name])}, {row['layers']} layers" if row["way"] == LEAN else None
            marker = MARKERS[ways.index(row["way"])]
            axes.plot([place], [top], color=colour, marker=marker, linestyle="", label=label, **larger)
    for way, marker in zip(ways, MARKERS, strict=False):
        axes.plot([], [], color="black", markerfacecolor="none", marker=marker, linestyle="", label=way)


def _runs(embeddings: Record) -> dict[str, Record]:
    return {run["variant"]: run for run in embeddings["runs"] if run["seed"] == SEEDS[0]}


def _nats(run: Record) -> float:
    return float(run["further"][VALIDATION]["nats"])
