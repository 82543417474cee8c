"""What of a folder goes to the Hub. What stays, and what a command says of it, is in tests/cli/test_push.py."""

import getpass
import hashlib
import json
import os
from pathlib import Path

import pytest
from helpers.models import tiny_model
from helpers.pushes import REPO

from modeling_treediff.hub import preview_push, push, save_checkpoint, weights_sha256
from modeling_treediff.hub.card import MARK
from modeling_treediff.hub.contents import SHIPPED, contents


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
    files = contents(checkpoint, "me/model")
    assert b"4.250 \xc2\xb1 0.500" in files["README.md"] and files["result.json"] == checkpoint / "result.json"
    assert "4.250 ± 0.500" not in (checkpoint / "README.md").read_text("utf-8")  # the folder is only read


def test_a_card_that_is_missing_is_rendered(checkpoint):
    (checkpoint / "README.md").unlink()
    assert MARK.encode() in contents(checkpoint, "me/model")["README.md"]


@pytest.mark.parametrize("spoil", [None, "nobody can render this"])
def test_a_card_that_somebody_wrote_or_that_cannot_be_rendered_goes_as_it_is(checkpoint, spoil):
    if spoil is None:
        (checkpoint / "README.md").write_text("# Mine\n")
    else:
        record(checkpoint)
        facts = json.loads((checkpoint / "result.json").read_text()) | {"text": spoil}
        (checkpoint / "result.json").write_text(json.dumps(facts))
    assert contents(checkpoint, "me/model")["README.md"] == checkpoint / "README.md"
    assert "README.md" in preview_push(checkpoint, "someone/a-model")


def test_nothing_that_goes_says_where_on_this_machine_it_was_made(hub, measured):
    """Trained and evaluated by absolute paths; the preview shows the hash of every file that then goes."""
    shown = preview_push(measured, REPO)
    push(measured, REPO)
    files = hub.repositories[REPO].files()
    assert {"README.md", "result.json", "evaluation.json", "metrics.jsonl"} <= files.keys()
    for name, content in files.items():
        for folder in (measured.parent, measured.parents[1], Path.home()):
            assert os.fsencode(f"{folder}/") not in content and os.fsencode(f'{folder}"') not in content, name
        assert (
            f"pytest-of-{getpass.getuser()}".encode() not in content
        )  # the name of the user, in the folder of this test
        if name != ".gitattributes":
            assert f"sha256 {hashlib.sha256(content).hexdigest()}" in shown


LINKED = [
    "curves.png",
    "README.md",
    "model.safetensors",
    "tokenizer.json",
    "vocabulary_tree.py",
    "modeling_treediff.py",
]


@pytest.mark.parametrize("name", LINKED)
def test_a_link_is_refused(checkpoint, tmp_path, name):
    """What it points to may be a key."""
    (tmp_path / "key").write_bytes((checkpoint / name).read_bytes() if (checkpoint / name).exists() else b"key")
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(tmp_path / "key")
    with pytest.raises(ValueError, match=f"{name} is a link: .* Put the file there itself"):
        contents(checkpoint, "me/model")


def test_a_folder_that_is_a_link_is_refused(checkpoint, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key.jinja").write_text("key")
    (checkpoint / "additional_chat_templates").symlink_to(tmp_path / "secrets")
    with pytest.raises(ValueError, match="additional_chat_templates is a link"):
        contents(checkpoint, "me/model")


@pytest.mark.parametrize("entry", ["private_notes.X", "/home/someone/secret.X", "../secret.X"])
def test_code_that_a_config_names_beside_the_models_own_stays(checkpoint, entry):
    (checkpoint / "private_notes.py").write_text("class X: ...")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": entry}}))
    assert {name for name in contents(checkpoint, "me/model") if name.endswith(".py")} == SHIPPED


def test_code_that_the_models_own_imports_must_be_this_packages(checkpoint):
    (checkpoint / "private_notes.py").write_text("class X: ...")
    with (checkpoint / "node_layers_treediff.py").open("a") as code:
        code.write("\nfrom .private_notes import X\n")
    with pytest.raises(ValueError, match="private_notes.py is no code of this package, and is not pushed"):
        contents(checkpoint, "me/model")


def test_shards_that_no_index_names_stay(checkpoint, tree):
    (checkpoint / "model-00007-of-00009.safetensors").write_bytes(b"secret")
    assert "model-00007-of-00009.safetensors" not in contents(checkpoint, "me/model")
    save_checkpoint(tiny_model(tree), checkpoint, max_shard_size="20KB")
    (checkpoint / "model-00007-of-00900.safetensors").write_bytes(b"secret")
    names = {name for name in contents(checkpoint, "me/model") if name.startswith("model-")}
    assert len(names) > 1 and "model-00007-of-00900.safetensors" not in names


@pytest.mark.parametrize("name", ["model_backup_private", "model-private", "modelling", "model.secret", "model-1-of-2"])
def test_weights_of_other_names_stay(checkpoint, name):
    (checkpoint / f"{name}.safetensors").write_bytes(b"secret")
    assert f"{name}.safetensors" not in contents(checkpoint, "me/model")


def test_only_what_is_on_the_list_goes(checkpoint):
    for name in ("notes.json", "model_card.md", "helper.py", "training_weights.safetensors", "tokenizer.pkl"):
        (checkpoint / name).write_text("private")
    (checkpoint / "LICENSE").write_text("MIT")
    names = set(contents(checkpoint, "me/model"))
    left = {file.name for file in checkpoint.iterdir()} - names
    assert left == {"notes.json", "model_card.md", "helper.py", "training_weights.safetensors", "tokenizer.pkl"}
    assert "LICENSE" in names
