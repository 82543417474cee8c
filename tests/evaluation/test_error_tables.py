"""Tables and sentences of an error analysis: every group has a row, and the sentences say who loses."""

import pytest
from helpers.compared_models import compared_errors

from modeling_treediff.evaluation.error_tables import ErrorTable, error_markdown, error_tables, summary


@pytest.fixture(scope="module")
def record(tokenizer):
    return compared_errors(tokenizer) | {"models": {name: {"title": name} for name in ("model", "reference")}}


def test_every_group_of_tokens_has_a_row_with_its_difference(record):
    table = error_tables(record)[0]
    assert [row[:2] for row in table.rows] == [(row["grouping"], row["group"]) for row in record["rows"]]
    column = table.header.index("difference")
    for row, found in zip(table.rows, record["rows"], strict=True):
        assert row[column].startswith(f"{found['difference']['total']['value']:+.3f} ± ")


def test_the_summary_names_the_groups_whose_interval_is_above_zero(record):
    rows = [row | {"windows": 1000} for row in record["rows"]]
    lost = {"value": 2.0, "standard_error": 0.1, "interval": [1.8, 2.2]}
    gained = {"value": -1.0, "standard_error": 0.1, "interval": [-1.2, -0.8]}
    for row, total in zip(rows[1:], (lost, gained), strict=False):
        row["difference"] = row["difference"] | {"total": total}
    for row in rows[3:]:
        open_one = {"value": 0.0, "standard_error": 1.0, "interval": [-2.0, 2.0]}
        row["difference"] = row["difference"] | {"total": open_one}
    sentences = summary(record | {"rows": rows})
    assert f"Those that lose: {rows[1]['group']} +2.000 ± 0.200." in sentences
    assert f"Those that gain: {rows[2]['group']} -1.000 ± 0.200." in sentences
    assert any(f"1 lose, 1 gain and {len(rows) - 3} are undecided" in one for one in sentences)


def test_a_token_cannot_end_a_cell():
    table = ErrorTable("Title", "Note.", ("token", "n"), [("a|b", "1")], 1)
    assert table.markdown() == "**Title**\n\n| token | n |\n| --- | ---: |\n| a\\|b | 1 |\n\nNote.\n"


def test_the_page_has_the_sentences_and_the_tables(record):
    page = error_markdown(record)
    assert all(f"- {sentence}\n" in page for sentence in summary(record))
    assert all(table.markdown() in page for table in error_tables(record))
