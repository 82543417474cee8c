"""The record of the quality benchmark: all runs under one protocol, and what each contender is against MDLM."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contenders import REFERENCE
from quality_data import VALIDATION
from run_queue import DONE_NAME

from modeling_treediff.training import write_record

SHARED = ("protocol", "manifest", "tokens_seen", "tokens_per_epoch", "device", "versions", "commit")
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
        """What `quality.py run` is told."""
        rate = f"{self.learning_rate:g}"
        return ["--contender", self.contender, "--learning-rate", rate, "--seed", str(self.seed)]


def read_runs(folder: Path) -> list[Record]:
    """Return the records of all finished runs of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*/{DONE_NAME}"))]


def best_runs(runs: list[Record], text: str = VALIDATION) -> dict[str, Record]:
    """Return of each contender the run of the first seed whose learning rate did best on the validation text."""
    first = min(record["seed"] for record in runs)
    best: dict[str, Record] = {}
    for record in (record for record in runs if record["seed"] == first):
        known = best.get(record["contender"])
        if known is None or record["texts"][text]["nats"] < known["texts"][text]["nats"]:
            best[record["contender"]] = record
    return best


def write_quality(path: Path, runs: list[Record], seed: int) -> None:
    """Write all runs into one record, with the ratios to MDLM's perplexity.

    Raises:
        ValueError: the runs were not made under one protocol, by one commit, or MDLM is not among them.

    """
    check_same(runs)
    best = best_runs(runs)
    if REFERENCE not in best:
        raise ValueError(f"There is no run of {REFERENCE} to compare with.")
    shared = {name: runs[0][name] for name in SHARED}
    facts = {
        "protocol": shared["protocol"],
        "manifest": shared["manifest"],
        "tokens_seen": shared["tokens_seen"],
        "tokens_per_epoch": shared["tokens_per_epoch"],
        "trained_on": {name: shared[name] for name in ("device", "versions", "commit")},
        "runs": [_without_windows(record) for record in runs],
        "best": {
            name: {
                "learning_rate": record["learning_rate"],
                "ratios": {str(one["seed"]): ratios(one, runs) for one in _all_seeds(record, runs)},
            }
            for name, record in best.items()
        },
    }
    write_record(path, facts, seed)


def ratios(record: Record, runs: list[Record]) -> dict[str, Any]:
    """Return the perplexity of each text over that of MDLM with the same seed, with its 95 % interval.

    The windows are the same, so the difference of their nats, paired, is what varies.
    """
    best = best_runs(runs)[REFERENCE]
    reference = next(one for one in _all_seeds(best, runs) if one["seed"] == record["seed"])
    found = {}
    for text, figures in record["texts"].items():
        difference = np.subtract(figures["windows"], reference["texts"][text]["windows"])
        mean, error = difference.mean(), difference.std(ddof=1) / math.sqrt(len(difference))
        low, high = math.exp(mean - 1.96 * error), math.exp(mean + 1.96 * error)
        found[text] = {"ratio": math.exp(mean), "interval": [low, high]}
    return found


def check_same(runs: list[Record]) -> None:
    """Raise ValueError unless all that the runs should share is the same."""
    if not runs:
        raise ValueError("There are no finished runs: quality.py train makes them.")
    for record in runs:
        if differing := [name for name in SHARED if record[name] != runs[0][name]]:
            message = "was not run under the protocol of the others"
            raise ValueError(f"{record['command']!r} {message}: {', '.join(differing)} differ.")


def _all_seeds(record: Record, runs: list[Record]) -> list[Record]:
    same = ("contender", "learning_rate")
    return [one for one in runs if all(one[name] == record[name] for name in same)]


def _without_windows(record: Record) -> Record:
    texts = {
        text: {name: value for name, value in figures.items() if name != "windows"}
        for text, figures in record["texts"].items()
    }
    return {name: value for name, value in record.items() if name not in SHARED} | {"texts": texts}
