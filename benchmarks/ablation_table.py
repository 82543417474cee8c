"""The record of `ablations.py` as a table."""

from pathlib import Path
from typing import Any

from marked_tables import table
from record_schema import Schema, read_record

RECORD = Path(__file__).resolve().parent / "results" / "ablations.json"
RUN: Schema = {
    **{"variant": str, "group": str, "title": str, "seed": int, "num_hidden_layers": int, "parameters": int},
    **{"nats": float, "standard_error": float, "difference": float, "difference_error": float},
    **{"level_losses": [float], "branching": int},
}
SCHEMA: Schema = {
    "protocol": {"steps": int, "batch_size": int, "window": int},
    "tokens_seen": int,
    "learning_rate": float,
    "trained_on": {"device": str, "commit": str, "versions": dict},
    "runs": [RUN],
}


def ablation_table() -> str:
    """Return a row for each variant, the best of a group first; differences to the base with the same seed."""
    record = read_record(RECORD, SCHEMA)
    groups = list(dict.fromkeys(run["group"] for run in record["runs"]))
    ordered = sorted(record["runs"], key=lambda run: (groups.index(run["group"]), run["nats"]))
    rows = [_row(run) for run in ordered]
    header = ("question", "variant", "layers", "seed", "nats/token", "by level", "to the base (± standard error)")
    protocol, made = record["protocol"], record["trained_on"]
    return table(header, rows) + (
        f"\n{record['tokens_seen'] / 1e6:.2f}M tokens, {protocol['steps']} steps of {protocol['batch_size']} windows "
        f"of {protocol['window']} tokens, learning rate {record['learning_rate']:g}. Errors are over windows of the "
        f"validation text, paired for differences, and say nothing of other seeds: the base's differ by "
        f"{_seed_gap(record):.3f}. {made['device']}, torch {made['versions']['torch']}, commit {made['commit']}.\n"
    )


def _row(run: dict[str, Any]) -> list[str]:
    base = run["group"] == "base"
    difference = "–" if base else f"{run['difference']:+.3f} ± {run['difference_error']:.3f}"
    levels = " + ".join(f"{share:.2f}" for share in run["level_losses"])
    nats = f"{run['nats']:.3f} ± {run['standard_error']:.3f}"
    return [run["group"], run["title"], f"{run['num_hidden_layers']}", f"{run['seed']}", nats, levels, difference]


def _seed_gap(record: dict[str, Any]) -> float:
    nats = [run["nats"] for run in record["runs"] if run["group"] == "base"]
    return max(nats) - min(nats)
