"""The record of the quality benchmark: all runs under one protocol, and what each contender is against MDLM.

All 95 % intervals are over blocks of neighbouring windows, by Student's t: windows of one document are alike. They say
how far the text decides, not what another training would give.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks.contenders import AUTOREGRESSIVE, REFERENCE
from benchmarks.quality.packed_data import SELECTION
from benchmarks.quality.run_queue import DONE_NAME
from modeling_treediff.files.records import write_record

BLOCKS = 20  # of neighbouring windows
TOLERANCE = 0.01  # of the budget
OF_TRAINING = ("commit", "versions", "training_sha256", "trees")
SHARED = ("protocol", "commit", "versions")
# Of a protocol, what is other in the runs that choose its learning rates.
SHORTER = {"steps", "warmup_steps", "rate_steps", "curve_points", "measured_texts"}
Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What tells the runs of a protocol apart."""

    contender: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.contender}-lr{self.learning_rate:g}-seed{self.seed}"

    @property
    def arguments(self) -> list[str]:
        """What `benchmarks.quality.perplexity run` is told."""
        rate = f"{self.learning_rate:g}"
        return ["--contender", self.contender, "--learning-rate", rate, "--seed", str(self.seed)]


def read_runs(folder: Path) -> list[Record]:
    """Return the records of all finished runs of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*/{DONE_NAME}"))]


def best_runs(runs: list[Record]) -> dict[str, Record]:
    """Return of each contender the run of the first seed whose learning rate did best on the windows for selection."""
    first = min(record["seed"] for record in runs)
    best: dict[str, Record] = {}
    for record in (record for record in runs if record["seed"] == first and not record["diverged"]):
        known = best.get(record["contender"])
        if known is None or selection_nats(record) < selection_nats(known):
            best[record["contender"]] = record
    return best


def leaders(runs: list[Record], count: int) -> list[str]:
    """Return the diffusion models that did best on the windows for selection, and MDLM."""
    best = {name: record for name, record in best_runs(runs).items() if name != AUTOREGRESSIVE}
    ranked = sorted(best, key=lambda name: selection_nats(best[name]))
    return list(dict.fromkeys([*ranked[:count], REFERENCE]))


def selection_nats(record: Record) -> float:
    """Return nats per token of the windows for selection."""
    return float(np.mean(record["texts"][SELECTION]["windows"]))


def write_quality(
    path: Path,
    runs: list[Record],
    manifest: Record,
    contenders: Sequence[str],
    choosing: Sequence[Record] = (),
    partial: bool = False,
) -> None:
    """Write all runs of a packed folder into one record, with the ratios to the perplexity of MDLM.

    Args:
        path: file to write.
        runs: of `read_runs`.
        manifest: of the packed folder.
        contenders: that must be there.
        choosing: the runs that have chosen the learning rates, where they are others.
        partial: leave out contenders that have no finished run yet; the record names them.

    Raises:
        ValueError: see `check_comparable`.

    """
    trained = {record["contender"] for record in runs}
    missing = [name for name in contenders if name not in trained] if partial else []
    contenders = [name for name in contenders if name not in missing]
    choosing = [record for record in choosing if record["contender"] not in missing]
    check_comparable(runs, contenders, choosing)
    best = best_runs(runs)
    training = runs[0]["trained"]
    facts = {
        "protocol": runs[0]["protocol"],
        "manifest": manifest,
        "trained_with": {name: training[name] for name in OF_TRAINING},
        "measured_with": {name: runs[0][name] for name in ("commit", "versions")},
        "runs": [summarised(record) for record in runs],
        "choosing": [summarised(record) for record in choosing],
        "best": {
            name: {
                "learning_rate": record["learning_rate"],
                "ratios": {str(one["seed"]): ratios(one, runs) for one in _all_seeds(record, runs)},
            }
            for name, record in best.items()
        },
        "missing": missing,
    }
    write_record(path, facts, min(record["seed"] for record in runs))


def summarised(record: Record) -> Record:
    """Return a run as the record keeps it: figures of texts in place of windows, of its training what is its own."""
    texts = {} if record["diverged"] else record["texts"]
    figures = {
        text: estimate(found["windows"]) | {"level_losses": found.get("level_losses", [])}
        for text, found in texts.items()
    }
    trained = {name: record["trained"][name] for name in ("command", "device")}
    own = {name: value for name, value in record.items() if name not in (*SHARED, "manifest", "processes")}
    return own | {"trained": trained, "texts": figures}


def estimate(windows: Sequence[float]) -> Record:
    """Return the mean of nats per token over windows in the order of the text, with its 95 % interval over blocks."""
    blocks = np.array([block.mean() for block in np.array_split(np.asarray(windows), min(BLOCKS, len(windows)))])
    mean, error = float(np.mean(windows)), float(blocks.std(ddof=1) / math.sqrt(len(blocks)))
    half = float(student.ppf(0.975, len(blocks) - 1)) * error
    return {"nats": mean, "standard_error": error, "interval": [mean - half, mean + half]}


def difference(text: Record, other: Record) -> Record:
    """Return by how many nats per token two measurements of the same windows differ, paired."""
    return estimate(np.subtract(text["windows"], other["windows"]))


def ratios(record: Record, runs: list[Record]) -> dict[str, Any]:
    """Return the perplexity of each text over that of MDLM with the same seed, with its 95 % interval.

    The windows are the same, so the difference of their nats, paired, is what varies.
    """
    best = best_runs(runs)[REFERENCE]
    reference = next(one for one in _all_seeds(best, runs) if one["seed"] == record["seed"])
    found = {}
    for text, figures in record["texts"].items():
        gap = difference(figures, reference["texts"][text])
        found[text] = {"ratio": math.exp(gap["nats"]), "interval": [math.exp(end) for end in gap["interval"]]}
    return found


def check_comparable(runs: list[Record], contenders: Iterable[str], choosing: list[Record]) -> None:
    """Raise ValueError unless the runs compare.

    All have one protocol, text and commit; each contender has the whole grid with the first seed, or the learning rate
    that the runs for it have chosen, and nothing beside it, MDLM has all seeds that others have, and their parameters
    are MDLM's within 1 %.
    """
    check_same(runs)
    rates, first = runs[0]["protocol"]["learning_rates"], min(record["seed"] for record in runs)
    found = {(record["contender"], record["learning_rate"], record["seed"]) for record in runs}
    grid = {(name, rate) for name in contenders for rate in rates}
    if choosing:
        check_choosing(choosing, runs, grid)
        grid = {(name, record["learning_rate"]) for name, record in best_runs(choosing).items()}
    missing = [(*one, first) for one in sorted(grid) if (*one, first) not in found]
    if REFERENCE in (best := best_runs(runs)):
        rate = best[REFERENCE]["learning_rate"]
        seeds = sorted({seed for *_, seed in found})
        missing += [(REFERENCE, rate, seed) for seed in seeds if (REFERENCE, rate, seed) not in found]
    if missing:
        raise ValueError(f"These runs are missing: {_names(missing)}; benchmarks.quality.perplexity train makes them.")
    if foreign := [one for one in sorted(found) if one[:2] not in grid]:
        raise ValueError(f"These runs are not of the grid: {_names(foreign)}; take them out of the folder.")
    if REFERENCE not in best:
        raise ValueError(f"{REFERENCE} has diverged: there is nothing to compare with.")
    budget = best[REFERENCE]["parameters"]
    for record in runs:
        if not record["diverged"] and abs(record["parameters"] - budget) > TOLERANCE * budget:
            raise ValueError(f"{record['contender']} has {record['parameters']} parameters, MDLM {budget}.")


def check_choosing(choosing: list[Record], runs: list[Record], grid: set[tuple[str, float]]) -> None:
    """Raise ValueError unless runs that choose learning rates have the whole grid, and the text and sizes of the runs.

    A contender all of whose short runs diverged has no others.
    """
    check_same(choosing)
    found = {(record["contender"], record["learning_rate"]) for record in choosing}
    first = min(record["seed"] for record in choosing)
    if missing := [(*one, first) for one in sorted(grid - found)]:
        raise ValueError(f"No learning rate is chosen without {_names(missing)}: `train` makes these runs.")
    differing = [
        name for name in ("training_sha256", "trees") if choosing[0]["trained"][name] != runs[0]["trained"][name]
    ]
    own, others = choosing[0]["protocol"], runs[0]["protocol"]
    differing += sorted(name for name in own.keys() - SHORTER if own[name] != others.get(name))
    if differing:
        raise ValueError(f"Learning rates were chosen with another {', '.join(differing)}: take another --folder.")


def check_same(runs: list[Record]) -> None:
    """Raise ValueError unless there are runs, and all that they should share is the same."""
    if not runs:
        raise ValueError("There are no finished runs: `train` makes them.")
    for record in runs:
        trained, others = record["trained"], runs[0]["trained"]
        differing = [name for name in SHARED if record[name] != runs[0][name]]
        differing += [f"{name} of training" for name in OF_TRAINING if trained[name] != others[name]]
        if differing:
            message = "was not run under the protocol of the others"
            raise ValueError(f"{record['command']!r} {message}: {', '.join(differing)} differ.")


def _names(runs: list[tuple[str, float, int]]) -> str:
    return ", ".join(Run(*one).name for one in runs)


def _all_seeds(record: Record, runs: list[Record]) -> list[Record]:
    same = ("contender", "learning_rate")
    return [one for one in runs if not one["diverged"] and all(one[name] == record[name] for name in same)]
