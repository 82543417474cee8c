"""The records of `ablations.py` as tables."""

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from ablations import BASE, ORDERS, RECORDS, SEEDS, SOURCES, TREE, VARIANTS
from marked_tables import table
from record_schema import Schema, check_schema, read_record

RESULTS = Path(__file__).resolve().parent / "results"
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
CANDIDATES_SCHEMA: Schema = SCHEMA | {"runs": [RUN | {"to_mdlm": ESTIMATE, "given": dict}]}
GIVEN: Schema = ESTIMATE | {"difference": ESTIMATE}
UNCHANGED = (BASE, "mdlm")  # what differences are to
COMMON = ("layers", "seed", "nats/token", "by level")  # columns

Record = dict[str, Any]


def read_part(part: str) -> Record:
    """Return the record of a part of the ablations; ValueError if it is missing or lacks anything."""
    record = read_record(RESULTS / f"{RECORDS[part]}.json", CANDIDATES_SCHEMA if part == "candidates" else SCHEMA)
    for index, run in enumerate(record["runs"]):
        for title in record["runs"][0].get("given", {}):
            check_schema(run["given"].get(title), GIVEN, f"{RECORDS[part]}.runs[{index}].given.{title}")
    return record


def trees_table(record: Record) -> str:
    """Return a row for each source of clusters, a column for each order of siblings; differences to the base."""
    found = {run["variant"]: run for run in record["runs"] if run["seed"] == SEEDS[0]}
    names = {(VARIANTS[name].source, VARIANTS[name].order): name for name in found if name in VARIANTS}
    if missing := [f"{source}, {order}" for source in SOURCES for order in ORDERS if (source, order) not in names]:
        raise ValueError(f"{RECORDS['trees']} lacks trees: {'; '.join(missing)}.")
    rows = [
        [title, *(_with_difference(found[names[source, order]]) for order in ORDERS)]
        for source, title in SOURCES.items()
    ]
    header = ("clusters", *(f"siblings {title}" for title in ORDERS.values()))
    return f"{table(header, rows)}\n{_facts(record)}"


def ablation_table(record: Record) -> str:
    """Return a row for each variant, the best of a group first; differences to the base, or MDLM, of the same seed.

    Trees have a table of their own.
    """
    shown = [run for run in record["runs"] if run["group"] != TREE]
    groups = list(dict.fromkeys(run["group"] for run in shown))
    ordered = sorted(shown, key=lambda run: (groups.index(run["group"]), run["nats"]))
    header = ("question", "variant", *COMMON, "to the base (to MDLM among its own)")
    rows = [[run["group"], run["title"], *_common(run), _difference(run)] for run in ordered]
    return f"{table(header, rows)}\n{_facts(record)}"


def candidates_table(record: Record) -> str:
    """Return a row for each variant and seed, the best variant first, with the ratio to MDLM's perplexity.

    A second table has the nats of texts of which a part is given, with the differences to the base.
    """
    runs = [run for variant in ranked_candidates(record) for run in candidate_runs(record, variant)]
    header = ("variant (question)", *COMMON, "to the base", "perplexity, to MDLM's")
    whole = table(header, [[_name(run), *_common(run), _difference(run), _ratio(run)] for run in runs])
    titles = list(runs[0]["given"])
    rows = [[_name(run), f"{run['seed']}", *(_given(run, title) for title in titles)] for run in runs]
    given = table(("nats/token (to the base)", "seed", *titles), rows)
    return f"{whole}\n{given}\n{_facts(record)}"


def headline(record: Record) -> str:
    """Return what the best variant, which is the default, is against MDLM."""
    best, *_ = ranked_candidates(record)
    runs = candidate_runs(record, best)
    ratios = " and ".join(f"{_ratio(run)} with seed {run['seed']}" for run in runs)
    return (
        f"**The default** ({runs[0]['title']}) is the best of {len(ranked_candidates(record))} candidates in the same "
        f"training, its perplexity to MDLM's {ratios}, on the windows that learning rates were chosen by."
    )


def ranked_candidates(record: Record) -> list[str]:
    """Return the variants, the best mean over seeds first."""
    variants = dict.fromkeys(run["variant"] for run in record["runs"])
    return sorted(variants, key=lambda name: mean(run["nats"] for run in candidate_runs(record, name)))


def candidate_runs(record: Record, variant: str) -> list[Record]:
    """Return the runs of a variant, one for each seed."""
    return sorted((run for run in record["runs"] if run["variant"] == variant), key=lambda run: run["seed"])


def _name(run: Record) -> str:
    return f"{run['title']} ({run['group']})"


def _given(run: Record, title: str) -> str:
    return _with_difference(run["given"][title] | {"variant": run["variant"]})


def _with_difference(figures: Record) -> str:
    change = "" if figures["variant"] in UNCHANGED else f" ({_spread(figures['difference'], '+')})"
    return f"{figures['nats']:.3f}{change}"


def _common(run: Record) -> list[str]:
    levels = " + ".join(f"{share:.2f}" for share in run["level_losses"])
    return [f"{run['num_hidden_layers']}", f"{run['seed']}", _spread(run, ""), levels]


def _difference(run: Record) -> str:
    return "–" if run["variant"] in UNCHANGED else _spread(run["difference"], "+")


def _ratio(run: Record) -> str:
    low, high = (math.exp(end) for end in run["to_mdlm"]["interval"])
    return "1" if run["variant"] == "mdlm" else f"{math.exp(run['to_mdlm']['nats']):.3f} ({low:.3f} to {high:.3f})"


def _spread(estimate: Record, sign: str) -> str:
    low, high = estimate["interval"]
    return f"{estimate['nats']:{sign}.3f} ± {(high - low) / 2:.3f}"


def _facts(record: Record) -> str:
    protocol, made = record["protocol"], record["trained_with"]
    seen = protocol["steps"] * protocol["batch_size"] * protocol["window"]
    return (
        f"{seen / 1e6:.2f}M tokens, {protocol['steps']} steps of {protocol['batch_size']} windows of "
        f"{protocol['window']} tokens, learning rate {record['learning_rate']:g}. ± is half of a 95 % interval over "
        f"blocks of the text, of differences paired; it says nothing of other seeds: the base's differ by "
        f"{_gap(run['nats'] for run in candidate_runs(record, BASE)):.3f}. {made['device']}, torch "
        f"{made['versions']['torch']}, commit {made['commit']}.\n"
    )


def _gap(numbers: Iterable[float]) -> float:
    found = list(numbers)
    return max(found) - min(found)
