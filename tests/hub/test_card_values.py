"""Values in the text of a card: every number has a record, and none can break a table."""

import json
import re

import pytest
from helpers.cards import numbers, record, section

from modeling_treediff.hub.card import render_card


@pytest.mark.parametrize(
    ("name", "path"),
    [
        *(("result.json", [key]) for key in ("nelbo", "nelbo_standard_error", "validation_tokens", "unigram_entropy")),
        *(("result.json", [key]) for key in ("training_seconds", "tokens_seen", "steps", "seed", "hold_out_every")),
        ("result.json", ["peak_memory_bytes", "resident"]),
        ("result.json", ["level_losses", 1]),
        *(("evaluation.json", ["texts", 1, key]) for key in ("nelbo", "perplexity", "bits_per_byte", "num_tokens")),
        *(("evaluation.json", ["texts", 0, f"{key}_interval", 0]) for key in ("confidence", "perplexity")),
        *(("evaluation.json", ["texts", 0, key]) for key in ("num_samples", "standard_error")),
    ],
)
def test_a_number_in_a_record_is_the_cards(loaded, checkpoint, name, path):
    before, changed = render_card(loaded, checkpoint), record(checkpoint, name)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = inner[path[-1]] * 2 + 1
    (checkpoint / name).write_text(json.dumps(changed))
    assert render_card(loaded, checkpoint) != before
    inner[path[-1]] = None  # as JSON has what was not finite
    (checkpoint / name).write_text(json.dumps(changed))
    assert len(numbers(render_card(loaded, checkpoint))) < len(numbers(before))


def test_what_a_record_holds_cannot_break_a_table_or_be_a_tag(loaded, checkpoint):
    changed = record(checkpoint) | {"command": "python x.py --text 'a|b' $HOME `date` <script>\n", "license": "<b>|$x"}
    (checkpoint / "result.json").write_text(json.dumps(changed))
    rows = section(render_card(loaded, checkpoint), "Training").strip().split("\n\n")[0].splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert rows[2].startswith("| License of the weights | &#60;b&#62;&#124;$x")
    assert not any("<script" in row for row in rows)


def test_records_of_older_versions_are_read(loaded, checkpoint):
    card, older = render_card(loaded, checkpoint), record(checkpoint)
    assert "license: apache-2.0" in card
    older["licence"] = older.pop("license")
    (checkpoint / "result.json").write_text(json.dumps(older))
    assert render_card(loaded, checkpoint) == card
