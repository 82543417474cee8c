"""Tables and a figure of planned and measured peaks; the memory of MDLM is what all others are compared to."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contenders import COLOURS, REFERENCE
from benchmarks.markdown import table
from benchmarks.matched_models import BUDGET, DEPTH, by_title
from benchmarks.places import FIGURES, RESULTS
from benchmarks.record_schema import Schema, read_record
from benchmarks.training_step import DTYPES
from modeling_treediff.files.atomic_files import write_atomically

RECORD = RESULTS / "memory.json"
FIGURE = FIGURES / "memory.png"
GIBIBYTE = 2**30
VOCABULARY, HIDDEN_SIZE, BATCH = 50_257, 768, 32  # the reference point
ROW: Schema = {
    **dict.fromkeys(("contender", "variant", "precision", "peak_phase"), str),
    **dict.fromkeys(("layers", "parameters", "batch_size", "vocab_size", "hidden_size", "peak_bytes"), int),
    "matched": [str],
    "parts_bytes": dict,
}
SCHEMA: Schema = {
    "commit": str,
    "device": str,
    "sequence_length": int,
    "measured": bool,
    "rows": [ROW],
}

Record = dict[str, Any]
Row = Mapping[str, Any]


def read_memory(file: Path = RECORD) -> Record:
    """Return the record; ValueError if it is missing, lacks anything, or the parts of a row are not its peak."""
    record = read_record(file, SCHEMA)
    for row in record["rows"]:
        if sum(row["parts_bytes"].values()) != row["peak_bytes"]:
            raise ValueError(f"{file.stem}: the parts of a row of {row['contender']} do not sum to its peak.")
    return record


def select(record: Record, **fields: Any) -> list[Row]:
    """Return the rows with these values; with variant "lean", the default, unless that is given."""
    fields = {"variant": "lean"} | fields
    return [row for row in record["rows"] if all(row[name] == value for name, value in fields.items())]


def peaks_table(record: Record) -> str:
    """Return the planned peaks at the reference point, by batch, with their ratio to that of MDLM."""
    rows = select(record, vocab_size=VOCABULARY, hidden_size=HIDDEN_SIZE)
    batches = sorted({row["batch_size"] for row in rows})
    lines = []
    for title, models in by_title(rows).items():
        cells = {
            row["batch_size"]: f"{row['peak_bytes'] / GIBIBYTE:.2f} GiB ({ratio(record, row):.2f})" for row in models
        }
        lines.append([title, str(models[0]["layers"]), *(cells[batch] for batch in batches)])
    return table(("model", "layers", *(f"batch {batch}" for batch in batches)), lines) + (
        f"\nPlanned peak of a training step, and its ratio to that of MDLM; V = {VOCABULARY:,}, d = {HIDDEN_SIZE}, "
        f"{_protocol(record)}.\n"
    )


def ratios_table(record: Record) -> str:
    """Return the ratio of the planned peak to that of MDLM by vocabulary and hidden size, at one batch."""
    rows = select(record, batch_size=BATCH)
    columns = sorted({(row["hidden_size"], row["vocab_size"]) for row in rows})
    lines = []
    for title, models in by_title(rows).items():
        cells = {(row["hidden_size"], row["vocab_size"]): f"{ratio(record, row):.2f}" for row in models}
        lines.append([title, *(cells[column] for column in columns)])
    header = (f"d = {hidden_size}, V = {vocab_size:,}" for hidden_size, vocab_size in columns)
    return table(("model", *header), lines) + (
        f"\nPlanned peak of a training step, as a ratio to that of MDLM; batch {BATCH}, {_protocol(record)}.\n"
    )


def measured_table(record: Record) -> str:
    """Return what a GPU allocated beside what was planned, row by row; ValueError if the record has plans alone."""
    if not record["measured"]:
        raise ValueError("The record has plans alone, no measurement: run peaks --measure cuda.")
    lines = []
    for title, models in by_title([*record["rows"], *record.get("autoregressive", [])]).items():
        for row in models:
            sizes = (f"{row[name]:,}" for name in ("vocab_size", "hidden_size", "batch_size"))
            lines.append([title, row.get("variant", ""), row["precision"], *sizes, *_measured_cells(row)])
    header = (
        "model",
        "variant",
        "precision",
        "V",
        "d",
        "batch",
        "planned",
        "allocated",
        "reserved",
        "planned / allocated",
        "a step",
    )
    return table(header, lines) + f"\n{record['device']}; {_protocol(record)}.\n"


def resident_table(record: Record) -> str:
    """Return what a CPU needed beside what was planned, by batch; ValueError if a row was not measured."""
    batches = sorted({row["batch_size"] for row in record["rows"]})
    lines = []
    for (title, models), precision in itertools.product(by_title(record["rows"]).items(), DTYPES):
        cells = {}
        for row in models:
            if row["precision"] == precision:
                if "resident_bytes" not in row:
                    raise ValueError(f"{title}, {precision}, batch {row['batch_size']} was not measured.")
                measured, planned = (row[name] / GIBIBYTE for name in ("resident_bytes", "peak_bytes"))
                cells[row["batch_size"]] = f"{measured:.2f} ({planned:.2f})"
        if cells:
            lines.append([title, str(models[0]["layers"]), precision, *(cells.get(batch, "") for batch in batches)])
    for title, models in by_title(record.get("autoregressive", [])).items():
        for precision in DTYPES:
            cells = {
                row["batch_size"]: f"{row['resident_bytes'] / GIBIBYTE:.2f}"
                for row in models
                if row["precision"] == precision
            }
            if cells:
                lines.append([title, str(models[0]["layers"]), precision, *(cells.get(batch, "") for batch in batches)])
    header = ("model", "layers", "precision", *(f"batch {batch}" for batch in batches))
    return table(header, lines) + (
        f"\nGiB of a training step, measured (planned); they differ by at most {largest_deviation(record):.1%}. "
        "Products in bf16 are computed by tiles of fp32, so that they need the same memory on every CPU. "
        f"Equal parameters, V = {VOCABULARY:,}, d = {HIDDEN_SIZE}, {_protocol(record)}.\n"
    )


def largest_deviation(record: Record) -> float:
    """Return by which part of the plan the resident memory of a CPU differs from it at most."""
    return max(abs(row["resident_bytes"] / row["peak_bytes"] - 1) for row in record["rows"])


def ratio(record: Record, row: Row) -> float:
    """Return the ratio of a row's peak to that of MDLM in a step of the same batch, vocabulary, size and variant."""
    names = ("variant", "precision", "batch_size", "vocab_size", "hidden_size")
    (reference,) = select(record, contender=REFERENCE, **{name: row[name] for name in names})
    return row["peak_bytes"] / reference["peak_bytes"]


def draw(record: Record, file: Path = FIGURE) -> None:
    """Draw the peak over the batch, what it is made of, and its ratio to that of MDLM over the vocabulary."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    over_batch, by_part, over_vocabulary = figure.subplots(1, 3)
    rows = select(record, vocab_size=VOCABULARY, hidden_size=HIDDEN_SIZE)
    _draw_peaks(over_batch, rows)
    _draw_parts(by_part, [row for row in rows if row["batch_size"] == BATCH])
    _draw_ratios(over_vocabulary, select(record, batch_size=BATCH), record)
    figure.suptitle(f"Planned memory of a training step; {_protocol(record)}", fontsize="medium")
    handles, labels = over_batch.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=80))


def _measured_cells(row: Row) -> list[str]:
    planned = row.get("peak_bytes")
    plan = "" if planned is None else f"{planned / GIBIBYTE:.2f} GiB"
    if "not_measured" in row:
        return [plan, row["not_measured"], "", "", ""]
    measured = (f"{row[name] / GIBIBYTE:.2f} GiB" for name in ("allocated_bytes", "reserved_bytes"))
    share = "" if planned is None else f"{planned / row['allocated_bytes']:.2f}"
    return [plan, *measured, share, f"{1000 * row['step_seconds']:.0f} ms"]


def _draw_peaks(axes: Axes, rows: list[Row]) -> None:
    layers = {row["contender"]: row["layers"] for row in rows if BUDGET in row["matched"]}
    shallower = [row for row in rows if row["layers"] != layers[row["contender"]]]
    for kind, some, line in ((BUDGET, rows, "-"), (DEPTH, shallower, "--")):
        for title, models in by_title(some, [kind]).items():
            places = [row["batch_size"] for row in models]
            peaks = [row["peak_bytes"] / GIBIBYTE for row in models]
            label = title if kind == BUDGET else None
            axes.plot(places, peaks, linestyle=line, label=label, **_marks(models[0]))
    axes.set(xlabel="windows per batch", ylabel="peak, GiB", ylim=(0, None))
    axes.set_title(f"V = {VOCABULARY:,}, d = {HIDDEN_SIZE}; dashed: same depth", fontsize="medium")
    axes.grid(alpha=0.3)


def _marks(row: Row) -> Record:
    """Return colour and marker: the child head's is open and large, for the untied tree's lies upon it."""
    larger = {"markersize": 11, "markerfacecolor": "none"} if row["contender"] == "tdlm-child" else {}
    return {"marker": "o", "color": COLOURS[row["contender"]], **larger}


def _draw_parts(axes: Axes, rows: list[Row]) -> None:
    models = {title: row for title, (row,) in by_title(rows, [BUDGET]).items()}
    titles = [f"{title}\n{row['layers']} layers" for title, row in models.items()]
    axes.set_prop_cycle(color=list(colormaps["Dark2"](range(8))))  # not those of the models
    base = [0.0] * len(models)
    for name in dict.fromkeys(name for row in models.values() for name in row["parts_bytes"]):
        sizes = [row["parts_bytes"].get(name, 0) / GIBIBYTE for row in models.values()]
        if max(sizes) < 0.01:  # too little to be seen, such as of gradients, of which there are few before the peak
            continue
        axes.barh(titles, sizes, left=base, label=name)
        base = [start + size for start, size in zip(base, sizes, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="GiB at the peak", xlim=(0, 1.05 * max(base)))
    axes.set_title(f"equal parameters, batch {BATCH}, V = {VOCABULARY:,}, d = {HIDDEN_SIZE}", fontsize="medium")
    axes.legend(fontsize="small", loc="lower right")


def _draw_ratios(axes: Axes, rows: list[Row], record: Record) -> None:
    widths = sorted({row["hidden_size"] for row in rows})
    for hidden_size, line in zip(widths, ("-", "--"), strict=False):
        of_width = [row for row in rows if row["hidden_size"] == hidden_size]
        for models in by_title(of_width, [BUDGET]).values():
            places, ratios = [row["vocab_size"] / 1000 for row in models], [ratio(record, row) for row in models]
            if models[0]["contender"] != REFERENCE or hidden_size == widths[0]:  # it is 1 at every width
                axes.plot(places, ratios, linestyle=line, **_marks(models[0]))
    axes.set(xlabel="thousand tokens in the vocabulary", ylabel="peak / peak of MDLM", ylim=(0, None))
    axes.set_title(f"equal parameters, batch {BATCH}; d = {', dashed '.join(map(str, widths))}", fontsize="medium")
    axes.grid(alpha=0.3)


def _protocol(record: Record) -> str:
    precisions = " and ".join(sorted({row["precision"] for row in record["rows"]}))
    return f"windows of {record['sequence_length']} tokens, {precisions}, AdamW; commit {record['commit']}"
