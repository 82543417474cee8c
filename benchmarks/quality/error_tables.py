"""What `examples/analyze_errors.py` records of two models, and the page of it as Markdown."""

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import table
from benchmarks.record_schema import Schema, check_schema
from modeling_treediff.evaluation.error_analysis import enough
from modeling_treediff.evaluation.error_tables import error_markdown, signed, spread

ESTIMATE: Schema = {"value": float, "standard_error": float, "interval": [float]}
ESTIMATES: Schema = {"total": ESTIMATE, "levels": [ESTIMATE]}
COMPARED: dict[str, Schema] = dict.fromkeys(("model", "reference", "difference"), ESTIMATES)
COUNTED: dict[str, Schema] = {"tokens": int, "windows": int, "relative": ESTIMATE}
MODEL: Schema = {
    **dict.fromkeys(("title", "source", "head", "schedule", "tree_sha256"), str),
    **dict.fromkeys(("tree_depth", "num_hidden_layers", "hidden_size", "parameters"), int),
    "weights_sha256": dict,
}
NODE: dict[str, Schema] = {"level": int, "node": int, "node_tokens": [str]}
ERRORS_SCHEMA: Schema = {
    **dict.fromkeys(("command", "commit", "device", "counts_of", "protocol"), str),
    **dict.fromkeys(("seed", "num_windows", "num_tokens", "num_samples", "tree_depth"), int),
    "versions": dict,
    "text": {"name": str},
    "models": {"model": MODEL, "reference": MODEL},
    "rows": [{"grouping": str, "group": str, **COUNTED, **COMPARED}],
    "right": [{"level": int, **dict.fromkeys(COMPARED, ESTIMATE)}],
    "confusions": list,
    "clusters": list,
}
CONFUSION: Schema = {
    **NODE,
    "taken_for": int,
    "taken_for_tokens": [str],
    **dict.fromkeys(("tokens", "share", "probability", "reference_share"), float),
}
CLUSTER: Schema = {**NODE, "nats": float, **COUNTED, **COMPARED}


def check_errors(record: dict[str, Any]) -> None:
    """Raise ValueError unless a record is that of a comparison; only lists of clusters may be empty."""
    check_schema(record, ERRORS_SCHEMA, "errors")
    for name, schema in (("confusions", CONFUSION), ("clusters", CLUSTER)):
        for index, row in enumerate(record[name]):
            check_schema(row, schema, f"errors.{name}[{index}]")


def errors_section(record: dict[str, Any]) -> str:
    """Return what was found in sentences, the tables, and how it was measured."""
    check_errors(record)
    return f"{error_markdown(record)}\n{_facts(record)}"


def unseen_errors_table(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return by frequency in the training text what trees of before and of now lose against the same other model.

    Raises:
        ValueError: the records are not of the same text, counts and other model.

    """
    for name in ("text", "counts_of", "num_tokens", "num_samples", "seed"):
        if before[name] != now[name]:
            raise ValueError(f"The error analyses to compare differ in {name}: make both alike.")
    if before["models"]["reference"]["weights_sha256"] != now["models"]["reference"]["weights_sha256"]:
        raise ValueError("The error analyses to compare have different models of reference: make both alike.")
    rows = []
    for old, new in zip(before["rows"], now["rows"], strict=True):
        if old["grouping"] in ("all", "frequency"):
            cells = (signed(row["difference"]["total"]) for row in (old, new))
            rows.append([old["group"], f"{old['tokens']:,}", spread(old["reference"]["total"]), *cells])
    header = (
        "tokens by frequency in training",
        "tokens",
        "flat",
        "unseen tokens apart, - flat",
        "beside their like, - flat",
    )
    said = "Nats per token, ± half of a 95 % interval over windows, differences paired."
    return f"{table(header, rows)}\n{said} {_facts(now)}"


def texts_table(records: Mapping[str, dict[str, Any]]) -> str:
    """Return the difference of two models on several texts, by frequency in the training text; then what loses, where.

    Args:
        records: by the name of the text, all of the same two models.

    Raises:
        ValueError: they are not.

    """
    first, *others = records.values()
    for name in ("models", "counts_of", "num_samples", "seed"):
        if any(other[name] != first[name] for other in others):
            raise ValueError(f"The error analyses to compare differ in {name}: make all alike.")
    losing, cells_of = [], dict[str, dict[str, str]]()  # a text without tokens of a group has no row of it
    for text, record in records.items():
        for row in record["rows"]:
            difference = row["difference"]
            if row["grouping"] in ("all", "frequency"):
                cells_of.setdefault(row["group"], {})[text] = signed(difference["total"]) + _mark(row)
            if enough(row) and difference["total"]["interval"][0] > 0:
                cells = (f"{row['tokens'] / record['num_tokens']:.1%}", signed(difference["total"]))
                losing.append([text, row["group"], *cells, *map(signed, difference["levels"])])
    rows = [[group, *(cells.get(text, "") for text in records)] for group, cells in cells_of.items()]
    levels = (f"level {level}" for level in range(1, first["tree_depth"] + 1))
    if losing:
        lost = table(("text", "tokens that lose", "share of the tokens", "difference", *levels), losing)
    else:
        lost = "No group of tokens loses on any of these texts.\n"
    titles = " less ".join(first["models"][role]["title"] for role in ("model", "reference"))
    said = "nats per token, ± half of a 95 % interval over windows, paired; * in too few windows to say."
    header = ("tokens by frequency in training", *records)
    return f"{table(header, rows)}\n{titles[0].upper()}{titles[1:]}: {said}\n\n{lost}\n{_how(first)}"


def _mark(row: dict[str, Any]) -> str:
    return "" if enough(row) else " *"


def _facts(record: dict[str, Any]) -> str:
    return _how(record, f"on {record['text']['name']}, ")


def _how(record: dict[str, Any], on_text: str = "") -> str:
    models = " and ".join(
        f"{one['title']} with {one['num_hidden_layers']} layers of {one['hidden_size']}, "
        f"{one['parameters'] / 1e6:.2f}M parameters"
        for one in record["models"].values()
    )
    trained = f"trained with seed {record['training_seed']}, " if "training_seed" in record else ""
    return (
        f"{models[0].upper()}{models[1:]}, {trained}{on_text}{record['num_samples']} corruptions of a window, seed "
        f"{record['seed']}; frequencies of {record['counts_of']}; {record['device']}, commit {record['commit']}.\n"
    )
