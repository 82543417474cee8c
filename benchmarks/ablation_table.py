"""The record of `ablations.py` as a table."""

from pathlib import Path
from typing import Any

from marked_tables import table
from record_schema import Schema, read_record

RECORD = Path(__file__).resolve().parent / "results" / "ablations.json"
ESTIMATE: Schema = {"nats": float, "standard_error": float, "interval": [float]}
RUN: Schema = {
    **{"variant": str, "group": str, "title": str, "seed": int, "num_hidden_layers": int, "parameters": int},
    **{"nats": float, "interval": [float], "difference": ESTIMATE, "level_losses": [float], "branching": int},
}
SCHEMA: Schema = {
    "protocol": {"steps": int, "batch_size": int, "window": int},
    "learning_rate": float,
    "trained_with": {"device": str, "commit": str, "versions": {"torch": str}},
    "runs": [RUN],
}


def ablation_table() -> str:
    """Return a row for each variant, the best of a group first; differences to the base, or MDLM, of the same seed."""
    record = read_record(RECORD, SCHEMA)
    groups = list(dict.fromkeys(run["group"] for run in record["runs"]))
    ordered = sorted(record["runs"], key=lambda run: (groups.index(run["group"]), run["nats"]))
    header = ("question", "variant", "layers", "seed", "nats/token", "by level", "to the base (to MDLM among its own)")
    protocol, made = record["protocol"], record["trained_with"]
    seen = protocol["steps"] * protocol["batch_size"] * protocol["window"]
    return table(header, [_row(run) for run in ordered]) + (
        f"\n{seen / 1e6:.2f}M tokens, {protocol['steps']} steps of {protocol['batch_size']} windows of "
        f"{protocol['window']} tokens, learning rate {record['learning_rate']:g}. ± is half of a 95 % interval over "
        f"blocks of the text, of differences paired; it says nothing of other seeds: the base's differ by "
        f"{_seed_gap(record):.3f}. {made['device']}, torch {made['versions']['torch']}, commit {made['commit']}.\n"
    )


def _row(run: dict[str, Any]) -> list[str]:
    difference = run["difference"]
    itself = run["variant"] in ("base", "mdlm")
    levels = " + ".join(f"{share:.2f}" for share in run["level_losses"])
    cells = [run["group"], run["title"], f"{run['num_hidden_layers']}", f"{run['seed']}", _spread(run, ""), levels]
    return [*cells, "–" if itself else _spread(difference, "+")]


def _spread(estimate: dict[str, Any], sign: str) -> str:
    low, high = estimate["interval"]
    return f"{estimate['nats']:{sign}.3f} ± {(high - low) / 2:.3f}"


def _seed_gap(record: dict[str, Any]) -> float:
    nats = [run["nats"] for run in record["runs"] if run["variant"] == "base"]
    return max(nats) - min(nats)
