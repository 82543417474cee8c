"""The record of `benchmarks.quality.perplexity` as tables and as a figure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.contenders import (
    AUTOREGRESSIVE,
    AUTOREGRESSIVE_TITLE,
    COLOURS,
    CONTENDERS,
    GIDD,
    GIDD_TITLE,
    REFERENCE,
)
from benchmarks.markdown import table
from benchmarks.places import RESULTS
from benchmarks.quality.packed_data import SELECTION, SHARED_TOKENS, VALIDATION
from benchmarks.record_schema import Schema, check_schema, read_record
from modeling_treediff.files.atomic_files import write_atomically

TITLES = {name: contender.title for name, contender in CONTENDERS.items()}
TITLES |= {GIDD: GIDD_TITLE, AUTOREGRESSIVE: AUTOREGRESSIVE_TITLE}
TEXT: Schema = {"nats": float, "standard_error": float, "interval": [float], "level_losses": list}
RUN: Schema = {
    **{"num_hidden_layers": int, "parameters": int, "head_parameters": object, "texts": {VALIDATION: TEXT}},
    **{"training_seconds": float, "measuring_seconds": float, "curve": [{"step": int, "nelbo": float}]},
}
SCHEMA: Schema = {
    "protocol": {
        **dict.fromkeys(("steps", "batch_size", "sequence_length", "samples", "measured_windows"), int),
        "precision": str,
    },
    "manifest": {"training": [{"name": str, "sha256": str}], "zero_shot": list, "tokens": dict},
    "trained_with": {"commit": str, "versions": {"torch": str}},
    "measured_with": {"commit": str},
    "runs": [{"contender": str, "learning_rate": float, "seed": int, "trained": {"command": str, "device": str}}],
    "best": {REFERENCE: {"learning_rate": float, "ratios": dict}},
}
MARKERS = "os^Dv<>Phd"  # in turn: some curves lie upon one another

STOPPED_SCHEMA: Schema = {
    **dict.fromkeys(("contender", "commit", "training_sha256"), str),
    **{"seed": int, "stopped_at": int, "learning_rate": float, "trees": dict, "protocol": dict},
    "curve": [{"step": int, "nelbo": float}],
}
Record = dict[str, Any]


def read_quality(form: str, folder: Path | None = None) -> Record:
    """Return the record of a form, by default of those of the page; ValueError if it is missing or lacks anything."""
    record = read_record((folder or RESULTS) / f"quality_{form}.json", SCHEMA)
    for index, run in enumerate(record["runs"]):
        if not run["diverged"]:
            check_schema(run, RUN, f"quality_{form}.runs[{index}]")
            for text, figures in run["texts"].items():
                check_schema(figures, TEXT, f"quality_{form}.runs[{index}].texts.{text}")
    return record


def runs_of(record: Record, name: str) -> list[Record]:
    """Return the runs of a contender with its best learning rate, one for each seed."""
    rate = record["best"][name]["learning_rate"]
    runs = [run for run in record["runs"] if run["contender"] == name and run["learning_rate"] == rate]
    return sorted((run for run in runs if not run["diverged"]), key=lambda run: run["seed"])


def tokens_seen(record: Record) -> int:
    """Return the tokens that each model was trained on."""
    protocol = record["protocol"]
    return protocol["steps"] * protocol["batch_size"] * protocol["sequence_length"]


def main_table(record: Record) -> str:
    """Return the validation perplexity of each contender, and its ratio to that of MDLM, a line for each seed.

    The last column is the ratio on the windows of the same text that choose learning rates.
    """
    rows = []
    for name in _ordered(record):
        for run in runs_of(record, name):
            figures = run["texts"][VALIDATION]
            head = "tied" if run["head_parameters"] is None else f"{run['head_parameters'] / 1e6:.2f}M"
            shares = figures["level_losses"]
            cells = [
                f"{TITLES[name]}, {run['num_hidden_layers']} layers",
                f"{run['parameters'] / 1e6:.2f}M ({head})",
                f"{run['learning_rate']:g}",
                f"{run['seed']}",
                f"{figures['nats']:.3f} ± {(figures['interval'][1] - figures['interval'][0]) / 2:.3f}",
                " + ".join(f"{share:.2f}" for share in shares) if len(shares) > 1 else "",
                f"{'' if name == AUTOREGRESSIVE else '≤ '}{math.exp(figures['nats']):.0f}",
                _ratio(record, name, run["seed"], VALIDATION),
                _ratio(record, name, run["seed"], SELECTION),
            ]
            rows.append(cells)
    header = (
        *("model", "parameters (head)", "learning rate", "seed", "nats/token", "by level, coarse first"),
        *("perplexity", "perplexity / MDLM", "/ MDLM on other windows"),
    )
    return table(header, rows) + "\n" + _facts(record)


def zero_shot_table(record: Record) -> str:
    """Return the perplexity on texts of other kinds, and its ratio to that of MDLM, a line for each seed."""
    texts = zero_shot_texts(record)
    rows = []
    for name in _ordered(record):
        bound = "" if name == AUTOREGRESSIVE else "≤ "
        for run in runs_of(record, name):
            cells = [
                f"{bound}{math.exp(run['texts'][text]['nats']):.0f}; {_ratio(record, name, run['seed'], text)}"
                for text in texts
            ]
            rows.append([TITLES[name], f"{run['seed']}", *cells])
    shared = record["manifest"]["shared_with_training"]
    overlap = ", ".join(f"{text} {shared[text]:.2%}" for text in (VALIDATION, *texts))
    return table(("perplexity; perplexity / MDLM", "seed", *texts), rows) + (
        f"\nShare of the runs of {SHARED_TOKENS} tokens in these texts that also stand in the training text: "
        f"{overlap}.\n"
    )


def zero_shot_texts(record: Record) -> list[str]:
    """Return the names of the texts that are neither trained on nor held out of the training texts."""
    return [file["name"].split(".")[0] for file in record["manifest"]["zero_shot"]]


def grid_table(record: Record) -> str:
    """Return the nats of each contender at each learning rate, first seed, on the windows for selection.

    Below it stands whose best rate is the largest or smallest tried, so that a better one may lie beyond.
    """
    runs = record.get("choosing") or record["runs"]
    rates = sorted({run["learning_rate"] for run in runs})
    first = min(run["seed"] for run in runs)
    found = {
        (run["contender"], run["learning_rate"]): "diverged"
        if run["diverged"]
        else f"{run['texts'][SELECTION]['nats']:.3f}"
        for run in runs
        if run["seed"] == first
    }
    names = [name for name in TITLES if any(name == contender for contender, _ in found)]
    rows = [[TITLES[name], *(found[name, rate] for rate in rates)] for name in names]
    written = table(("nats/token", *(f"learning rate {rate:g}" for rate in rates)), rows)
    if steps := record["protocol"].get("rate_steps"):
        written += f"\nRuns of {steps} steps; the rate that is best so early need not be the best in the end.\n"
    at_edge = [name for name in _ordered(record) if record["best"][name]["learning_rate"] in (rates[0], rates[-1])]
    if not at_edge:
        return written
    return f"{written}\nAt the edge of the grid, with a better rate perhaps beyond: {_titles(at_edge)}.\n"


def lasting_table(record: Record, stopped: Sequence[Record] = (), points: int = 5) -> str:
    """Return the validation perplexity over that of MDLM and over that of GPT-2 after more and more tokens seen.

    Args:
        record: of a form; MDLM of the same seed is what its runs are compared to.
        stopped: runs of the same protocol that were not trained to their end.
        points: columns; each has twice the tokens of the one before it.

    Raises:
        ValueError: a curve of the form lacks a point, or a stopped run had another protocol, text or trees.

    """
    steps = [record["protocol"]["steps"] // 2**halving for halving in reversed(range(points))]
    step_tokens = record["protocol"]["batch_size"] * record["protocol"]["sequence_length"]
    curves = {
        (name, run["seed"]): {point["step"]: point["nelbo"] for point in run["curve"]}
        for name in _ordered(record)
        for run in runs_of(record, name)
    }
    (gpt2,) = (curve for (name, _), curve in curves.items() if name == AUTOREGRESSIVE)
    first = min(seed for _, seed in curves)
    if missing := [step for step in steps if step not in curves[REFERENCE, first]]:
        raise ValueError(f"The curves lack step {missing[0]}: {record['protocol']['curve_points']} points are too few.")

    def row(title: str, seed: int, curve: Mapping[int, float]) -> list[str]:
        known = [step for step in steps if step in curve]
        gaps = [[curve[step] - other[step] for other in (curves[REFERENCE, seed], gpt2)] for step in known]
        cells = [f"{math.exp(to_mdlm):.3f}; {math.exp(to_gpt2):.2f}" for to_mdlm, to_gpt2 in gaps]
        return [title, f"{seed}", *cells, *[""] * (len(steps) - len(known))]

    rows, said = [row(TITLES[name], seed, curve) for (name, seed), curve in curves.items()], ""
    for run in stopped:
        title, trained = TITLES[run["contender"]], record["trained_with"]
        same = {name: trained[name] for name in ("training_sha256", "trees")} | {"protocol": record["protocol"]}
        if differing := [name for name, value in same.items() if run[name] != value]:
            raise ValueError(f"The stopped run of {title} had another {', '.join(differing)}: it does not compare.")
        curve = {point["step"]: point["nelbo"] for point in run["curve"]}
        rows.append(row(f"{title}, stopped", run["seed"], curve))
        last = max(curve)
        said += (
            f"\n{title}: stopped after {run['stopped_at'] * step_tokens / 1e6:.1f}M tokens; "
            f"{math.exp(curve[last] - curves[REFERENCE, run['seed']][last]):.3f} times MDLM's after "
            f"{last * step_tokens / 1e6:.1f}M; learning rate {run['learning_rate']:g}, commit {run['commit']}.\n"
        )
    header = ("perplexity / MDLM; / GPT-2", "seed", *(f"{step * step_tokens / 1e6:.1f}M tokens" for step in steps))
    windows = record["protocol"]["curve_windows"]
    return f"{table(header, rows)}\nOn {windows:,} windows of the held-out text, one corruption each.\n{said}"


def over_mdlm(record: Record, step: int, name: str) -> list[float]:
    """Return the validation perplexity of a contender over that of MDLM after some steps, of each seed."""
    nats = {
        one: [next(point["nelbo"] for point in run["curve"] if point["step"] == step) for run in runs_of(record, one)]
        for one in (name, REFERENCE)
    }
    return [math.exp(own - other) for own, other in zip(nats[name], nats[REFERENCE], strict=False)]


def languages_table(records: Mapping[str, Record]) -> str:
    """Return the bound of held-out text in bits per byte of each language's models, and its ratio to that of MDLM.

    Args:
        records: by the name of the language.

    """
    rows = []
    for language, record in records.items():
        tokens, length = (record["manifest"][what][VALIDATION] for what in ("tokens", "bytes"))
        for name in _ordered(record):
            for run in runs_of(record, name):
                bits = run["texts"][VALIDATION]["nats"] * tokens / length / math.log(2)
                bound = "" if name == AUTOREGRESSIVE else "≤ "
                ratio = _ratio(record, name, run["seed"], VALIDATION)
                rows.append([language, TITLES[name], f"{run['seed']}", f"{bound}{bits:.3f}", ratio])
    header = ("language", "model", "seed", "bits per byte", "perplexity / MDLM")
    facts = "".join(f"\n{language}: {_facts(record)}" for language, record in records.items())
    return table(header, rows) + facts


def draw(record: Record, tokens_per_second: Mapping[str, float], file: Path) -> None:
    """Draw the validation bound of the first seeds by tokens seen, and by time where a speed was measured apart."""
    step_tokens = record["protocol"]["batch_size"] * record["protocol"]["sequence_length"]
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    by_tokens, by_time = figure.subplots(1, 2, sharey=True)
    for name, marker in zip(_ordered(record), cycle(MARKERS), strict=False):
        curve = runs_of(record, name)[0]["curve"]
        tokens = [point["step"] * step_tokens for point in curve]
        style: Record = {"color": COLOURS[name], "marker": marker, "linestyle": "--" if name == AUTOREGRESSIVE else "-"}
        style |= {
            "label": TITLES[name],
            "linewidth": 1.2,
            "elinewidth": 0.5,
            "markersize": 5,
            "markerfacecolor": "none",
        }
        nats = [point["nelbo"] for point in curve]
        errors = [point.get("nelbo_standard_error", 0.0) for point in curve]  # GPT-2's have no noise of corruptions
        by_tokens.errorbar([number / 1e6 for number in tokens], nats, errors, **style)
        if (speed := tokens_per_second.get(name)) is not None:
            by_time.errorbar([number / speed / 60 for number in tokens], nats, errors, **style)
    by_tokens.set(xlabel="million tokens seen", ylabel="validation, nats per token (bound)", title="by tokens")
    by_time.set(xlabel="minutes at the speed measured apart, in fp32", title="by time")
    for axes in (by_tokens, by_time):
        axes.grid(alpha=0.3)
    figure.legend(*by_tokens.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=90))


def _titles(names: Iterable[str]) -> str:
    return "; ".join(TITLES[name] for name in names)


def _ordered(record: Record) -> list[str]:
    return [name for name in TITLES if name in record["best"]]


def _ratio(record: Record, name: str, seed: int, text: str) -> str:
    figures = record["best"][name]["ratios"].get(str(seed))
    if figures is None or name == REFERENCE:
        return "1" if name == REFERENCE else "–"
    return f"{figures[text]['ratio']:.3f} ({_interval(figures[text]['interval'])})"


def _interval(ends: list[float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def _facts(record: Record) -> str:
    protocol, manifest, made = record["protocol"], record["manifest"], record["trained_with"]
    texts = ", ".join(file["name"] for file in manifest["training"])
    seen, epoch = tokens_seen(record), manifest["tokens"]["training"]
    precision = {"no": "fp32"}.get(protocol["precision"], protocol["precision"])
    finished = [run for run in (*record["runs"], *record.get("choosing", [])) if not run["diverged"]]
    hours = sum(run["training_seconds"] + run["measuring_seconds"] for run in finished) / 3600
    devices = ", ".join(sorted({run["trained"]["device"] for run in finished}))
    return (
        f"{seen / 1e6:.2f}M tokens of {texts} ({epoch / 1e6:.2f}M tokens, so {seen / epoch:.1f} passes), "
        f"{protocol['steps']} steps of {protocol['batch_size']} windows of {protocol['sequence_length']} tokens, "
        f"in {precision}. "
        f"Measured on {protocol['measured_windows']} windows of each text, {protocol['samples']} corruptions each; ± "
        f"and intervals are 95 %, over blocks of neighbouring windows, those of ratios paired. "
        f"{len(finished)} runs, {hours:.1f} hours in all, each on: {devices}. "
        f"torch {made['versions']['torch']}, trained at commit {made['commit']}, measured at "
        f"{record['measured_with']['commit']}.{_missing(record)}\n"
    )


def _missing(record: Record) -> str:
    names = record.get("missing")  # older records do not say
    return f" Not trained yet: {_titles(names)}." if names else ""
