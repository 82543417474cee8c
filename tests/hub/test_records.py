"""Records count for the very weights that they name, and travel with those."""

import pytest
import torch
from helpers.cards import MEASURED, record, section, without_records
from helpers.hub_double import HubDouble
from transformers import AutoModel, dynamic_module_utils

from modeling_treediff.hub import save_checkpoint
from modeling_treediff.hub.card import render_card
from modeling_treediff.hub.records import weights_sha256


@pytest.mark.parametrize("name", ["result.json", "evaluation.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"nelbo": 1.5}', '{"nelbo": 1.5, "weights_sha256": {}}'])
def test_a_record_that_names_no_weights_does_not_count(loaded, checkpoint, tmp_path, name, content):
    bare = without_records(loaded, checkpoint, tmp_path)
    for file in ("result.json", "evaluation.json"):
        (checkpoint / file).unlink()
    (checkpoint / name).write_text(content)
    assert render_card(loaded, checkpoint) == bare


def test_other_weights_are_not_measured(loaded, checkpoint, tmp_path):
    bare = without_records(loaded, checkpoint, tmp_path)
    with torch.no_grad():
        loaded.head.nodes.bias[0] += 1
    save_checkpoint(loaded, checkpoint)
    assert (checkpoint / "result.json").exists()
    assert (checkpoint / "README.md").read_text("utf-8") == bare == render_card(loaded, checkpoint)


def test_records_travel_with_their_weights_and_with_no_others(loaded, checkpoint, tmp_path):
    save_checkpoint(loaded, tmp_path / "copy")
    for name in ("result.json", "evaluation.json"):
        assert record(tmp_path / "copy", name) == record(checkpoint, name)
    for title in MEASURED:
        copied = (tmp_path / "copy" / "README.md").read_text("utf-8")
        assert section(copied, title) == section(render_card(loaded, checkpoint), title)
    save_checkpoint(loaded, tmp_path / "sharded", max_shard_size="100KB")
    assert len(weights_sha256(tmp_path / "sharded")) > 1 and not (tmp_path / "sharded" / "result.json").exists()
    (tmp_path / "copy" / "result.json").write_text("{}")  # a file that is there already is not replaced
    save_checkpoint(loaded, tmp_path / "copy")
    assert record(tmp_path / "copy") == {}
    assert "# Training\n" not in (tmp_path / "copy" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("source", ["folder", "hub", "hub, by its own code"])
def test_records_travel_from_wherever_a_model_was_loaded(measured, tmp_path, monkeypatch, source):
    place, options = str(measured), {}
    if source != "folder":
        options = {"trust_remote_code": True} if "code" in source else {}
        place, double = "someone/a-model", HubDouble()
        double.put(place, {file.name: file.read_bytes() for file in measured.iterdir() if file.is_file()})
        with double:
            double.serve_this_process(monkeypatch, tmp_path / "home")
            monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
            save_checkpoint(AutoModel.from_pretrained(place, **options), tmp_path / "again")
    else:
        save_checkpoint(AutoModel.from_pretrained(place), tmp_path / "again")
    again, first = ((folder / "README.md").read_text("utf-8") for folder in (tmp_path / "again", measured))
    assert [section(again, title) for title in MEASURED] == [section(first, title) for title in MEASURED]
    assert "± " in section(again, "Training")
