"""The record of an error analysis as tables of text and as sentences; every number in them is computed.

A record is what `analyze_errors` returns, with the names of its models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .error_analysis import FEWEST_WINDOWS, enough

Facts = dict[str, Any]
SHOWN = 5  # groups in a sentence


@dataclass(frozen=True)
class ErrorTable:
    """One table: a title, a line that says how to read it, column heads, rows; the first `texts` columns are text."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    texts: int

    def markdown(self) -> str:
        """Return the table with its title and note."""
        escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in self.rows]
        rule = ["---"] * self.texts + ["---:"] * (len(self.header) - self.texts)
        lines = "".join("| " + " | ".join(row) + " |\n" for row in (self.header, rule, *escaped))
        return f"**{self.title}**\n\n{lines}\n{self.note}\n"


def error_tables(record: Facts) -> list[ErrorTable]:
    """Return the tables of a record; of a flat model alone, those without clusters."""
    tables = [_groups(record), _right(record), _clusters(record), _confusions(record)]
    return [table for table in tables if table.rows]


def error_markdown(record: Facts) -> str:
    """Return summary and tables."""
    points = "".join(f"- {sentence}\n" for sentence in summary(record))
    return "\n".join([points, *(table.markdown() for table in error_tables(record))])


def summary(record: Facts) -> list[str]:
    """Say in plain words what was found, above all whether any group of tokens loses."""
    whole, *groups = record["rows"]
    text = f"{record['num_tokens']:,} tokens in {record['num_windows']:,} windows"
    found = [f"Bound of {_title(record, 'model')} on {text}: {spread(whole['model']['total'])} nats per token."]
    if whole["difference"] is not None:
        levels = enumerate(whole["difference"]["levels"], 1)
        split = ", ".join(f"{signed(level)} at level {index}" for index, level in levels)
        difference = f"Its difference to {_title(record, 'reference')} on the same windows"
        found.append(f"{difference}: {signed(whole['difference']['total'])} nats per token; {split}.")
        against = f"Against {_title(record, 'reference')}"
        found += _stand_out(groups, lambda row: row["difference"]["total"], ("lose", "gain"), against)
        against = "Against the difference over all tokens"
        found += _stand_out(groups, lambda row: row["relative"], ("do worse", "do better"), against)
    return [*found, _top_choices(record)]


def _stand_out(
    groups: list[Facts], estimate: Callable[[Facts], Facts], words: tuple[str, str], against: str
) -> list[str]:
    """Count the groups whose interval is above 0, below 0 or holds 0; name the first two kinds, largest first."""
    known = [row for row in groups if enough(row)]
    sides = (
        sorted((row for row in known if estimate(row)["interval"][0] > 0), key=lambda row: -estimate(row)["value"]),
        sorted((row for row in known if estimate(row)["interval"][1] < 0), key=lambda row: estimate(row)["value"]),
    )
    undecided = len(known) - sum(map(len, sides))
    found = [
        f"{against}, of the {len(known)} groups of tokens that occur in at least {FEWEST_WINDOWS} windows, "
        f"{len(sides[0])} {words[0]}, {len(sides[1])} {words[1]} and {undecided} are undecided (their 95 % interval "
        "holds 0)."
    ]
    for word, rows in zip(words, sides, strict=True):
        if rows:
            names = "; ".join(f"{row['group']} {signed(estimate(row))}" for row in rows[:SHOWN])
            found.append(f"Those that {word}{', the first of them' if len(rows) > SHOWN else ''}: {names}.")
    return found


def _top_choices(record: Facts) -> str:
    parts = [
        f"{row['model']['value']:.1%}"
        + (f" ({row['reference']['value']:.1%})" if row["reference"] else "")
        + f" at level {row['level']}"
        for row in record["right"]
    ]
    beside = f" (in brackets: {_title(record, 'reference')})" if record["right"][0]["reference"] else ""
    return f"The true child is the most probable one in {', '.join(parts)}{beside}."


def _groups(record: Facts) -> ErrorTable:
    compared = record["rows"][0]["difference"] is not None
    rows = []
    for row in record["rows"]:
        cells = [spread(row["model"]["total"]), *map(spread, row["model"]["levels"])]
        if compared:
            split = row["difference"]["levels"]
            cells = [spread(row[role]["total"]) for role in ("model", "reference")]
            cells += [signed(row["difference"]["total"]), *map(signed, split), signed(row["relative"])]
        share = f"{row['tokens'] / record['num_tokens']:.1%}"
        rows.append((row["grouping"], row["group"], f"{row['tokens']:,}" + " *" * (not enough(row)), share, *cells))
    header = ["grouping", "tokens that are", "tokens", "share", _title(record, "model")]
    header += [_title(record, "reference"), "difference"] if compared else []
    header += [f"level {level}" for level in range(1, record["tree_depth"] + 1)]
    header += ["relative to all"] if compared else []
    note = (
        "Nats per token, ± half of the 95 % interval over windows, which means little where marked *: in fewer than "
        f"{FEWEST_WINDOWS} windows."
    )
    if compared:
        note += (
            " Difference: the first model less the second, paired by windows, in total and by level. Of twenty groups "
            "without a difference, about one looks significant by chance. The two models predict a level from "
            "different contexts: only the sum over levels compares them."
        )
    return ErrorTable("Bound by kind of token and level", note, tuple(header), rows, 2)


def _right(record: Facts) -> ErrorTable:
    compared = record["right"][0]["difference"] is not None
    rows = []
    for row in record["right"]:
        cells = [_percent(row["model"])]
        if compared:
            cells += [_percent(row["reference"]), f"{row['difference']['value']:+.1%}{_half(row['difference'], '.1%')}"]
        rows.append((str(row["level"]), *cells))
    header = ("level", _title(record, "model"), *((_title(record, "reference"), "difference") if compared else ()))
    note = "Share of choices in which the true child is the most probable one, weighed as in the bound."
    return ErrorTable("Right first choices", note, header, rows, 1)


def _clusters(record: Facts) -> ErrorTable:
    compared = record["rows"][0]["difference"] is not None
    rows = []
    for row in record["clusters"]:
        cells = [spread(row["model"]["total"])]
        if compared:
            cells += [spread(row["reference"]["total"]), signed(row["difference"]["total"])]
        rows.append((str(row["level"]), _name(row["node_tokens"]), f"{row['tokens']:,}", f"{row['nats']:,.0f}", *cells))
    header = ["level", "cluster", "tokens", "nats lost" if compared else "nats", _title(record, "model")]
    header += [_title(record, "reference"), "difference"] if compared else []
    note = "By nats in total, the rest per token. These clusters are picked for it: their intervals are too favourable."
    return ErrorTable("Clusters that cost most", note, tuple(header), rows, 2)


def _confusions(record: Facts) -> ErrorTable:
    compared = record["rows"][0]["difference"] is not None
    rows = [
        (
            str(row["level"]),
            _name(row["node_tokens"]),
            _name(row["taken_for_tokens"]),
            f"{row['tokens']:,.0f}",
            f"{row['share']:.1%}",
            f"{row['probability']:.3f}",
            *([f"{row['reference_share']:.1%}"] if compared else []),
        )
        for row in record["confusions"]
    ]
    header = ["level", "cluster", "taken for", "tokens", "share", "probability"]
    header += [f"share, {_title(record, 'reference')}"] if compared else []
    note = (
        "Where another child of the same node is the most probable: tokens, weighted as in the bound (a token "
        "mistaken in half of its corruptions counts 0.5), their share of the cluster's, the mean probability that the "
        "true one got there."
    )
    return ErrorTable("Clusters most often taken for others", note, tuple(header), rows, 3)


def _title(record: Facts, role: str) -> str:
    return str(record["models"][role]["title"])


def _name(tokens: list[str]) -> str:
    return " ".join(tokens)


def _half(estimate: Facts, form: str) -> str:
    return f" ± {(estimate['interval'][1] - estimate['interval'][0]) / 2:{form}}"


def spread(estimate: Facts) -> str:
    """Return the value ± half of its interval."""
    return f"{estimate['value']:.3f}{_half(estimate, '.3f')}"


def signed(estimate: Facts) -> str:
    """Return the same of a difference, whose sign is shown."""
    return f"{estimate['value']:+.3f}{_half(estimate, '.3f')}"


def _percent(estimate: Facts) -> str:
    return f"{estimate['value']:.1%}{_half(estimate, '.1%')}"
