"""The record of `quality.py` as tables and as a figure."""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from contenders import AUTOREGRESSIVE, AUTOREGRESSIVE_TITLE, CONTENDERS, REFERENCE
from marked_tables import table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from quality_data import VALIDATION
from record_schema import Schema, read_record

from modeling_treediff.atomic_files import write_atomically

RESULTS = Path(__file__).resolve().parent / "results"
TITLES = {name: contender.title for name, contender in CONTENDERS.items()} | {AUTOREGRESSIVE: AUTOREGRESSIVE_TITLE}
TEXT: Schema = {"nats": float, "standard_error": float}
RUN: Schema = {
    **{"contender": str, "learning_rate": float, "seed": int, "num_hidden_layers": int, "command": str},
    **{"parameters": int, "head_parameters": int, "texts": {VALIDATION: TEXT}},
    "curve": [{"step": int, "nelbo": float}],
}
SCHEMA: Schema = {
    "protocol": {"steps": int, "batch_size": int, "window": int, "samples": int, "measured_windows": int},
    "manifest": {"training": [{"name": str, "sha256": str}], "zero_shot": list, "tokens": dict},
    "tokens_seen": int,
    "tokens_per_epoch": int,
    "trained_on": {"device": str, "commit": str, "versions": dict},
    "runs": [RUN],
    "best": {REFERENCE: {"learning_rate": float, "ratios": dict}},
}
Record = dict[str, Any]


def read_quality(form: str) -> Record:
    """Return the record of a form of the benchmark; ValueError if it is missing or lacks anything."""
    return read_record(RESULTS / f"quality_{form}.json", SCHEMA)


def runs_of(record: Record, name: str) -> list[Record]:
    """Return the runs of a contender with its best learning rate, one for each seed."""
    rate = record["best"][name]["learning_rate"]
    runs = [run for run in record["runs"] if run["contender"] == name and run["learning_rate"] == rate]
    return sorted(runs, key=lambda run: run["seed"])


def main_table(record: Record) -> str:
    """Return the validation perplexity of each contender, and its ratio to MDLM's, a line for each seed."""
    rows = []
    for name in _ordered(record):
        for run in runs_of(record, name):
            figures = run["texts"][VALIDATION]
            head = f"{run['head_parameters'] / 1e6:.2f}M" if run["head_parameters"] else "tied"
            shares = figures.get("level_losses", [])
            cells = [
                f"{TITLES[name]}, {run['num_hidden_layers']} layers",
                f"{run['parameters'] / 1e6:.2f}M ({head})",
                f"{run['learning_rate']:g}",
                f"{run['seed']}",
                f"{figures['nats']:.3f} ± {figures['standard_error']:.3f}",
                " + ".join(f"{share:.2f}" for share in shares) if len(shares) > 1 else "",
                _perplexity(figures),
                _ratio(record, name, run["seed"], VALIDATION),
            ]
            rows.append(cells)
    header = (
        *("model", "parameters (head)", "learning rate", "seed", "nats/token", "by level, coarse first"),
        *("perplexity ≤ (95 %)", "to MDLM's (95 %)"),
    )
    return table(header, rows) + "\n" + _facts(record)


def zero_shot_table(record: Record) -> str:
    """Return the perplexity on texts of other kinds, first seeds, and the ratio to MDLM's."""
    texts = [text for text in record["runs"][0]["texts"] if text != VALIDATION]
    rows = []
    for name in _ordered(record):
        run = runs_of(record, name)[0]
        cells = [f"{_perplexity(run['texts'][text])}; {_ratio(record, name, run['seed'], text)}" for text in texts]
        rows.append([TITLES[name], *cells])
    return table(("model: perplexity ≤ (95 %); to MDLM's", *texts), rows)


def grid_table(record: Record) -> str:
    """Return the validation nats of each contender at each learning rate, first seed."""
    rates = sorted({run["learning_rate"] for run in record["runs"]})
    first = min(run["seed"] for run in record["runs"])
    found = {
        (run["contender"], run["learning_rate"]): run["texts"][VALIDATION]["nats"]
        for run in record["runs"]
        if run["seed"] == first
    }
    rows = [
        [TITLES[name], *(f"{found[name, rate]:.3f}" if (name, rate) in found else "–" for rate in rates)]
        for name in _ordered(record)
    ]
    return table(("nats/token", *(f"learning rate {rate:g}" for rate in rates)), rows)


def draw(record: Record, tokens_per_second: Mapping[str, float], file: Path) -> None:
    """Draw the validation bound of the first seeds by tokens seen, and by time where the speed is known."""
    protocol = record["protocol"]
    step_tokens = protocol["batch_size"] * protocol["window"]
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    by_tokens, by_time = figure.subplots(1, 2, sharey=True)
    for index, name in enumerate(_ordered(record)):
        curve = runs_of(record, name)[0]["curve"]
        tokens = [point["step"] * step_tokens for point in curve]
        style = {"color": f"C{index}", "marker": ".", "linestyle": "--" if name == AUTOREGRESSIVE else "-"}
        nats = [point["nelbo"] for point in curve]
        _line(by_tokens, [number / 1e6 for number in tokens], nats, TITLES[name], style)
        if name in tokens_per_second:
            _line(by_time, [number / tokens_per_second[name] / 60 for number in tokens], nats, TITLES[name], style)
    by_tokens.set(xlabel="million tokens seen", ylabel="validation, nats per token (bound)", title="by tokens")
    by_time.set(xlabel="minutes at the speed measured apart", title="by time")
    for axes in (by_tokens, by_time):
        axes.grid(alpha=0.3)
    by_tokens.legend(fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=90))


def headline(record: Record) -> str:
    """Return in a sentence what the best tree is against MDLM."""
    trees = [name for name in record["best"] if name.startswith("tdlm")]
    best = min(trees, key=lambda name: _mean_nats(runs_of(record, name)))
    ratios = record["best"][best]["ratios"]
    parts = [
        f"{one[VALIDATION]['ratio']:.3f} ({_interval(one[VALIDATION]['interval'], '.3f')}) with seed {seed}"
        for seed, one in ratios.items()
    ]
    millions = sum(run["parameters"] for run in runs_of(record, best)) / len(ratios) / 1e6
    return (
        f"**Perplexity** of held-out text, a bound, of the best tree ({TITLES[best]}) to MDLM's: "
        f"{' and '.join(parts)}; the same {millions:.1f}M parameters and {record['tokens_seen'] / 1e6:.1f}M tokens, a "
        "small trial."
    )


def _line(axes: Axes, places: list[float], nats: list[float], label: str, style: dict[str, Any]) -> None:
    axes.plot(places, nats, label=label, linewidth=1.2, **style)


def _ordered(record: Record) -> list[str]:
    return [name for name in TITLES if name in record["best"]]


def _mean_nats(runs: list[Record]) -> float:
    return mean(run["texts"][VALIDATION]["nats"] for run in runs)


def _perplexity(figures: Record) -> str:
    ends = [figures["nats"] + sign * 1.96 * figures["standard_error"] for sign in (-1, 1)]
    return f"{math.exp(figures['nats']):.0f} ({_interval([math.exp(end) for end in ends], '.0f')})"


def _ratio(record: Record, name: str, seed: int, text: str) -> str:
    figures = record["best"][name]["ratios"].get(str(seed))
    if figures is None or name == REFERENCE:
        return "1" if name == REFERENCE else "–"
    return f"{figures[text]['ratio']:.3f} ({_interval(figures[text]['interval'], '.3f')})"


def _interval(ends: list[float], form: str) -> str:
    return f"{ends[0]:{form}} to {ends[1]:{form}}"


def _facts(record: Record) -> str:
    protocol, manifest, made = record["protocol"], record["manifest"], record["trained_on"]
    texts = ", ".join(file["name"] for file in manifest["training"])
    return (
        f"{record['tokens_seen'] / 1e6:.2f}M tokens of {texts} ({record['tokens_per_epoch'] / 1e6:.2f}M tokens), "
        f"{protocol['steps']} steps of {protocol['batch_size']} windows of {protocol['window']} tokens; measured on "
        f"{protocol['measured_windows']} windows of each text, {protocol['samples']} corruptions each; ± and intervals "
        f"are over windows, those of ratios over paired windows. {made['device']}, torch {made['versions']['torch']}, "
        f"commit {made['commit']}.\n"
    )
