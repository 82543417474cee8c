"""Values in the text of a card: every number has a record, and none can break a table."""

import json
import re

import pytest
import yaml
from helpers.cards import numbers, record, section
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

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


@pytest.mark.parametrize(
    ("field", "plain", "value", "said"),
    [
        ("perturbation", 0.0, 0.25, "inner nodes shown wrong at a rate of"),
        ("block_size", None, 4, "in blocks of"),
        ("lookahead", 0.0, 0.5, "trained with lookahead"),
    ],
)
def test_noise_and_loss_are_described_where_they_are_not_plain(loaded, checkpoint, field, plain, value, said):
    setattr(loaded.config, field, plain)
    assert said not in render_card(loaded, checkpoint)
    setattr(loaded.config, field, value)
    assert f"{said} {value}" in " ".join(render_card(loaded, checkpoint).split())


def test_unknown_tokens_stand_beside_the_figures_that_they_spoil(loaded, checkpoint):
    measured = record(checkpoint, "evaluation.json")
    measured["texts"][0]["num_unknown"] = 17
    (checkpoint / "evaluation.json").write_text(json.dumps(measured))
    (checkpoint / "result.json").write_text(json.dumps(record(checkpoint) | {"num_unknown": 23}))
    card = render_card(loaded, checkpoint)
    spoilt, other = section(card, "Likelihood of further texts").strip().splitlines()[2:4]
    assert "of which 17 unknown" in spoilt and "not comparable" in spoilt and "unknown" not in other
    assert "of which 23 unknown to the tokenizer" in section(card, "Training")
    names = [(result.dataset_name, result.metric_name) for result in ModelCard(card).data.eval_results]
    first, second = (row["source"]["name"] for row in measured["texts"][:2])
    assert sum(name.startswith("Bits per byte") for text, name in names if text == first) == 0
    assert sum(name.startswith("Bits per byte") for text, name in names if text == second) == 1
    assert all("17 unknown tokens" in name for text, name in names if text == first)


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


HOSTILE = {
    "an image": "![x](https://example.org/pixel.png)",
    "a link": "[safe](https://example.org)",
    "an address": "https://example.org www.example.org someone@example.org",
    "a tag": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "characters that turn the text": "a\u202ebc\u2066d",
    "characters that end texts": "a\x00b\x1b[31mc\x7f",
    "the end of a cell and of a line": "a|b\n| c | d |\n\n# Heading",
    "code": "``` ` \\` ```",
    "a picture by reference": "![x][y]\n\n[y]: https://example.org/pixel.png",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_others_wrote_stays_text(loaded, checkpoint, monkeypatch, kind):
    """In the tree's metadata and in the record of the training: nothing in the card becomes active."""
    hostile, before = HOSTILE[kind], set(re.findall(r"<(\w+)", as_html(render_card(loaded, checkpoint))))
    tables = loaded.base_model.tree_tables
    monkeypatch.setattr(
        tables, "metadata", dict.fromkeys(("method", "source", "license", "tokenizer", "seed"), hostile)
    )
    training = record(checkpoint)
    source = {"name": hostile, "on_hub": False, "split": hostile, "configuration": hostile}
    changed = {"text": source, "base_model": source, "hold_out_every": hostile, "seed": hostile, "commit": hostile}
    training |= changed | {"device": hostile, "versions": {hostile: hostile}, "command": hostile, "license": hostile}
    training.pop("validation_text", None)
    (checkpoint / "result.json").write_text(json.dumps(training))
    html = as_html(card := render_card(loaded, checkpoint))
    assert all(character.isprintable() for character in card.replace("\n", ""))
    assert set(re.findall(r"<(\w+)", html)) == before and not re.findall(r'(?:href|src)="[^"]*example', html)
    # Addresses, of which GitHub's Markdown makes links, stand in code alone.
    assert not re.search(r"://example|www\.|\w@\w", re.sub(r"`[^`\n]*`", "", card.partition("\n---\n")[2]))


def as_html(card):
    """A card's text as a parser of CommonMark and GitHub's tables reads it; its head is YAML."""
    head, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert isinstance(yaml.safe_load(head), dict)
    return MarkdownIt("commonmark").enable("table").render(text)
