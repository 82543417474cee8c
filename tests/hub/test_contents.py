"""What of a folder goes to the Hub. What stays, and what a command says of it, is in tests/cli/test_push.py."""

import json

import pytest
from helpers.models import tiny_model

from modeling_treediff.hub import preview_push, save_checkpoint, weights_sha256
from modeling_treediff.hub.card import MARK
from modeling_treediff.hub.contents import contents


@pytest.fixture
def checkpoint(tree, tmp_path):
    save_checkpoint(tiny_model(tree), tmp_path / "model")
    return tmp_path / "model"


def record(folder):
    facts = {"nelbo": 4.25, "nelbo_standard_error": 0.5, "weights_sha256": weights_sha256(folder)}
    (folder / "result.json").write_text(json.dumps(facts))


def test_a_rendered_card_goes_as_the_records_are_now(checkpoint):
    record(checkpoint)
    assert "4.250 ± 0.500" not in (checkpoint / "README.md").read_text("utf-8")
    files = contents(checkpoint)
    assert b"4.250 \xc2\xb1 0.500" in files["README.md"] and files["result.json"] == checkpoint / "result.json"
    assert "4.250 ± 0.500" not in (checkpoint / "README.md").read_text("utf-8")  # the folder is only read


def test_a_card_that_is_missing_is_rendered(checkpoint):
    (checkpoint / "README.md").unlink()
    assert MARK.encode() in contents(checkpoint)["README.md"]


@pytest.mark.parametrize("spoil", [None, "nobody can render this"])
def test_a_card_that_somebody_wrote_or_that_cannot_be_rendered_goes_as_it_is(checkpoint, spoil):
    if spoil is None:
        (checkpoint / "README.md").write_text("# Mine\n")
    else:
        record(checkpoint)
        facts = json.loads((checkpoint / "result.json").read_text()) | {"text": spoil}
        (checkpoint / "result.json").write_text(json.dumps(facts))
    assert contents(checkpoint)["README.md"] == checkpoint / "README.md"
    assert "README.md" in preview_push(checkpoint, "someone/a-model")


def test_only_what_is_on_the_list_goes(checkpoint):
    for name in ("notes.json", "model_card.md", "helper.py", "training_weights.safetensors", "tokenizer.pkl"):
        (checkpoint / name).write_text("private")
    (checkpoint / "LICENSE").write_text("MIT")
    names = set(contents(checkpoint))
    left = {file.name for file in checkpoint.iterdir()} - names
    assert left == {"notes.json", "model_card.md", "helper.py", "training_weights.safetensors", "tokenizer.pkl"}
    assert "LICENSE" in names
