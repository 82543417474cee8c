"""The record of `benchmarks.generation.quality` as a figure and as a table."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from benchmarks.generation.samplers import kind_of
from benchmarks.markdown import table
from benchmarks.places import RESULTS, ROOT
from benchmarks.record_schema import Schema, check_schema
from modeling_treediff.files.atomic_files import write_atomically

RECORD = RESULTS / "generation_quality.json"
FIGURE = ROOT / "docs" / "images" / "generation_quality.png"
SHOWN_STEPS = (8, 32, 128)  # in the table; the figure and the record have all
SHOWN_SAMPLERS = (
    "random",
    "random, temperature 0.8",
    "random, top-p 0.9",
    "random, remasking",
    "remasking rate 1",
    "first hitting",
    "confidence",
    "confidence, threshold 0.1",
    "confidence, remasking",
    "margin",
    "entropy",
)
REAL = "real text"
BESIDE = 0.05  # nats of entropy

MEASURED: dict[str, Schema] = {
    "judge": {name: float for name in ("nats_per_token", "standard_error", "nats_per_byte", "perplexity")},
    "statistics": {"entropy": float, "entropy_standard_error": float, "distinct": [float], "self_repetition": float},
}
POINT: dict[str, Schema] = {
    **{name: str for name in ("model", "sampler", "sampling_dtype", "commit")},
    **{name: float for name in ("num_steps", "forward_passes", "seconds")},
    "chooses_passes": bool,
    "settings": dict,
}
SCHEMA: Schema = {
    "protocol": {"judge": str, "text": str, "texts": int, "length": int, "seed": int},
    "models": dict,
    "references": [{"name": str} | MEASURED],
    "points": [POINT | MEASURED],
}

Point = dict[str, Any]


def check_record(record: dict[str, Any]) -> None:
    """Raise ValueError if the record lacks anything, or has points of unknown models or one point twice."""
    check_schema(record, SCHEMA, "generation_quality")
    if REAL not in (reference["name"] for reference in record["references"]):
        raise ValueError(f"The record has no reference called {REAL}.")
    names = [(point["model"], point["sampler"], point["num_steps"]) for point in record["points"]]
    if unknown := {model for model, *_ in names} - record["models"].keys():
        raise ValueError(f"The record says nothing about {', '.join(sorted(unknown))}, which has points.")
    if len(set(names)) < len(names):
        raise ValueError("The record has a point twice.")


def draw(record: dict[str, Any], file: Path) -> None:
    """Draw what the judge says of the samplers of the table: against forward passes, and against entropy, by model."""
    models = list(record["models"])
    figure = Figure(figsize=(15, 1.5 + 5.2 * len(models)), layout="constrained")
    shown = [point for point in record["points"] if point["sampler"] in SHOWN_SAMPLERS]
    styles = line_styles([point["sampler"] for point in shown])
    real = next(reference for reference in record["references"] if reference["name"] == REAL)
    for model, (by_passes, by_entropy) in zip(models, figure.subplots(len(models), 2, squeeze=False), strict=True):
        curves = by_sampler([point for point in shown if point["model"] == model])
        for sampler, points in curves.items():
            passes = [point["forward_passes"] for point in points]
            _line(by_passes, passes, points, styles[sampler], sampler)
            _line(by_entropy, [point["statistics"]["entropy"] for point in points], points, styles[sampler], sampler)
        by_passes.axhline(real["judge"]["nats_per_token"], color="black", linewidth=1, label=REAL)
        by_entropy.plot(real["statistics"]["entropy"], real["judge"]["nats_per_token"], "k*", markersize=14, label=REAL)
        by_passes.set_xscale("log", base=2)
        by_passes.xaxis.set_major_formatter(ScalarFormatter())
        by_passes.set(title=f"{model}: by forward passes", xlabel="forward passes per text")
        by_entropy.set(title=f"{model}: by entropy, a line from few passes to many", xlabel="entropy, nats per text")
        for axes in (by_passes, by_entropy):
            axes.set_ylabel("judge, nats per token (± standard error)")
            axes.grid(alpha=0.3)
    handles = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=100))


def line_styles(samplers: list[str]) -> dict[str, dict[str, Any]]:
    """Return a colour for what comes before the comma of a sampler's name, a marker and line for what comes after."""
    parts = {name: name.partition(", ")[::2] for name in samplers}
    kinds = list(dict.fromkeys(kind for kind, _ in parts.values()))
    variants = list(dict.fromkeys(_without_number(variant) for _, variant in parts.values()))
    shapes = [("o", "-"), ("v", "--"), ("s", ":"), ("D", "-."), ("P", "--"), ("X", ":"), ("^", "-.")]
    return {
        name: dict(zip(("marker", "linestyle"), shapes[variants.index(_without_number(variant)) % 7], strict=True))
        | {"color": f"C{kinds.index(kind)}", "linewidth": 1, "markersize": 4}
        for name, (kind, variant) in parts.items()
    }


def _without_number(variant: str) -> str:
    words = variant.split()
    return " ".join(words[:-1] if words and words[-1].replace(".", "").isdigit() else words)


def by_sampler(points: list[Point]) -> dict[str, list[Point]]:
    """Return the points of each sampler, few passes first."""
    ordered = sorted(points, key=lambda point: point["num_steps"])
    return {
        name: [point for point in ordered if point["sampler"] == name]
        for name in dict.fromkeys(point["sampler"] for point in points)
    }


def _line(axes: Axes, places: list[float], points: list[Point], style: dict[str, Any], label: str) -> None:
    nats = [point["judge"]["nats_per_token"] for point in points]
    errors = [point["judge"]["standard_error"] for point in points]
    axes.errorbar(places, nats, errors, elinewidth=0.6, label=label, **style)


def quality_table(record: dict[str, Any], steps: Sequence[int] = SHOWN_STEPS) -> str:
    """Return the table: a row for each reference, model and sampler; nats of the judge / entropy, by steps."""
    check_record(record)
    rows = [["", reference["name"], *[""] * len(steps), _cell(reference)] for reference in record["references"]]
    for model in record["models"]:
        curves = by_sampler([point for point in record["points"] if point["model"] == model])
        rows += [_row(model, sampler, curves[sampler], steps) for sampler in SHOWN_SAMPLERS if sampler in curves]
    header = ("model", "sampler", *(f"{count} steps" for count in steps), "otherwise")
    protocol = record["protocol"]
    largest = max(row["judge"]["standard_error"] for row in record["references"] + record["points"])
    return table(header, rows) + (
        f"\nNats per token of the judge ({protocol['judge']}) / entropy of the tokens of a text in nats; passes where "
        f"they are not the steps. "
        f"{protocol['texts']} texts of {protocol['length']} tokens each; standard errors of the judge's nats up to "
        f"{largest:.2f}; commit {_commits(record)}.\n"
    )


def equal_entropy_table(record: dict[str, Any], steps: int = 64) -> str:
    """Return the judge's nats at the entropy of real text, by model and kind of sampler, at one number of steps.

    Temperatures and truncations of a kind are points of a line, nats over entropy; between two of them it is straight.
    Where none is nearly as varied as real text, or all are much more so, there is no figure: dull texts please a judge.
    """
    check_record(record)
    real = next(one for one in record["references"] if one["name"] == REAL)["statistics"]["entropy"]
    kinds = dict.fromkeys(kind_of(point["sampler"]) for point in record["points"])
    rows = []
    for model in record["models"]:
        cells = []
        for kind in kinds:
            points = [
                point
                for point in record["points"]
                if point["model"] == model
                and kind_of(point["sampler"]) == kind
                and (point["chooses_passes"] or point["num_steps"] == steps)
            ]
            nats = at(real, [(one["statistics"]["entropy"], one["judge"]["nats_per_token"]) for one in points])
            passes = max((one["forward_passes"] for one in points), default=0)
            cells.append("–" if nats is None else f"{nats:.2f}, {passes:.0f} passes")
        rows.append([model, *cells])
    protocol, error = record["protocol"], max(point["judge"]["standard_error"] for point in record["points"])
    gaps = " The middle half of each is written; the judge reads all." if protocol.get("infill") else ""
    return table(("model", *kinds), rows) + (
        f"\nNats per token of the judge ({protocol['judge']}) at {steps} steps, for texts of the entropy of real text, "
        f"{real:.2f} nats: on the line between the nearest temperatures or truncations, – if all are further than "
        f"{BESIDE} nats on one side. {protocol['texts']} texts of {protocol['length']} tokens for each temperature; "
        f"standard errors of the judge's nats up to {error:.2f}.{gaps} Commit {_commits(record)}.\n"
    )


def _commits(record: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(point["commit"] for point in record["points"]))


def at(place: float, points: Sequence[tuple[float, float]]) -> float | None:
    """Return the height at a place of the line through points (place, height), in order; None well beside all of them.

    Up to BESIDE of the first or last point, the line goes on.
    """
    ordered = sorted(points)
    if len(ordered) < 2 or not ordered[0][0] - BESIDE <= place <= ordered[-1][0] + BESIDE:
        return None
    (left, low), (right, high) = next(
        (pair for pair in pairwise(ordered) if place <= pair[1][0]), (ordered[-2], ordered[-1])
    )
    return low if left == right else low + (high - low) * (place - left) / (right - left)


def _row(model: str, sampler: str, points: list[Point], steps: Sequence[int]) -> list[str]:
    shown = {point["num_steps"]: _with_passes(point, False) for point in points if not point["chooses_passes"]}
    own = [_with_passes(point, True) for point in points if point["chooses_passes"]]
    return [model, sampler, *(shown.get(count, "") for count in steps), "; ".join(own)]


def _with_passes(point: Point, always: bool) -> str:
    passes = f", {point['forward_passes']:.0f} passes"
    return _cell(point) + (passes if always or point["forward_passes"] != point["num_steps"] else "")


def _cell(row: Point) -> str:
    return f"{row['judge']['nats_per_token']:.2f} / {row['statistics']['entropy']:.2f}"
