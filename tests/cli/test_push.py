"""Pushing as people do it: what goes, what stays, and what it says."""

from contextlib import contextmanager

import huggingface_hub
import pytest
import torch
from helpers.hub_double import TOKEN, HubDouble, hub_in_this_process
from helpers.models import tiny_model
from helpers.processes import REPOSITORY, SAMPLE, run_python
from transformers import AutoTokenizer

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.cli.main import main
from modeling_treediff.hub import render_card, save_checkpoint

REPO = "someone/a-model"
PRIVATE = {
    *(".hidden.json", "optimizer.bin", "state.pkl", "run.json", "training_weights.safetensors", "notes.txt"),
    *("credentials.json", "my_keys.py", "screenshot.png", "diary.md", "results.json", "LICENSE_KEY", "samples.jsonl"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as training leaves it: the model, records, and much that is nobody else's business."""
    folder = tmp_path_factory.mktemp("run") / "model"
    tree, tokenizer = VocabularyTree.from_pretrained(SAMPLE), AutoTokenizer.from_pretrained(SAMPLE)
    save_checkpoint(tiny_model(tree), folder, tokenizer)
    for name in ("result.json", "evaluation.json", "conversion.json", "metrics.jsonl", "curves.png"):
        (folder / name).write_text("{}")
    for name in PRIVATE:
        (folder / name).write_text("private")
    (folder / "checkpoint-0000001").mkdir()
    (folder / "checkpoint-0000001" / "config.json").write_text("private")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_in_this_process(monkeypatch, tmp_path / "home") as double:
        yield double


@pytest.fixture
def push(capsys):
    """Run the command in this process; return what it prints."""

    def run(*arguments):
        main(["push", *map(str, arguments)])
        return capsys.readouterr().out

    return run


@contextmanager
def refused(message):
    """The command ends with one line that says so."""
    with pytest.raises(SystemExit, match=message) as stop:
        yield
    assert stop.value.code.startswith("treediff push: error: ") and "\n" not in stop.value.code
    assert TOKEN not in stop.value.code


def test_what_makes_the_model_goes_in_one_commit_and_all_else_stays(hub, push, trained):
    said = push(trained, REPO, "--message", "Trained", "--private")
    repository = hub.repositories[REPO]
    assert said == f"{hub.url}/{REPO}/commit/{repository.refs['main']}\n"
    assert repository.messages == ["initial commit", "Trained"] and repository.private
    files = dict(repository.files())
    del files[".gitattributes"]
    card = render_card(TreeDiffForDiffusionLM.from_pretrained(trained), trained, repository=REPO)
    assert files == {name: (trained / name).read_bytes() for name in files} | {"README.md": card.encode()}
    left = {path.name for path in trained.iterdir()} - files.keys()
    assert left == {*PRIVATE, "checkpoint-0000001"}
    assert {"result.json", "metrics.jsonl", "curves.png", "tokenizer.json"} <= files.keys()
    nodes = torch.arange(8192, 8200)[None]
    pulled, local = (TreeDiffForDiffusionLM.from_pretrained(source) for source in (REPO, trained))
    with torch.no_grad():
        assert torch.equal(pulled(nodes).logits, local(nodes).logits)
    assert AutoTokenizer.from_pretrained(REPO).get_vocab() == AutoTokenizer.from_pretrained(trained).get_vocab()


def test_a_branch_a_pull_request_and_a_subfolder(hub, push, trained):
    push(trained, REPO, "--revision", "dev", "--subfolder", "small")
    repository = hub.repositories[REPO]
    assert set(repository.files()) == {".gitattributes"}
    assert TreeDiffForDiffusionLM.from_pretrained(REPO, revision="dev", subfolder="small").config.vocab_size == 8192
    assert push(trained, REPO, "--create-pr") == f"{hub.url}/{REPO}/discussions/1\n"
    assert "config.json" in repository.files("refs/pr/1") and "config.json" not in repository.files()


def test_a_dry_run_shows_all_that_would_go_and_asks_the_hub_nothing(hub, push, trained):
    said = push(trained, REPO, "--subfolder", "small", "--dry-run")
    assert not hub.requests
    push(trained, REPO, "--subfolder", "small")
    table, card = said.split("\n\nThe card, ")
    first, *rows, total = table.splitlines()
    assert first == f"Would go to {REPO}:"
    listed = {row.split()[0]: int(row.split()[1].replace(",", "")) for row in rows}
    pushed = {name: len(content) for name, content in hub.repositories[REPO].files().items() if name[0] != "."}
    assert listed == pushed
    assert f"{len(pushed)} files" in total and f"{sum(pushed.values()):,} bytes" in total
    assert (trained / "README.md").read_text().splitlines()[1] in card


def test_a_folder_of_a_tree_goes_with_its_tokenizer_and_license(hub, push, tmp_path):
    push(REPOSITORY / "tree_artifacts" / "gpt2", "a-tree")
    names = {path.name for path in (REPOSITORY / "tree_artifacts" / "gpt2").iterdir()}
    assert set(hub.repositories["someone/a-tree"].files()) == {*names, ".gitattributes"}
    assert VocabularyTree.from_pretrained("someone/a-tree").vocab_size == 50257
    assert len(AutoTokenizer.from_pretrained("someone/a-tree")) == 50257


def test_what_does_not_load_does_not_go(hub, push, trained, tmp_path):
    tree = random_tree(100, 5, 3)
    tree.save_pretrained(tmp_path / "tree")
    AutoTokenizer.from_pretrained(SAMPLE).save_pretrained(tmp_path / "tree")
    tiny_model(tree).save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "modeling_treediff.py").unlink()
    tiny_model(tree).save_pretrained(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "tree": "100 leaves but the tokenizer has 8192",
        "bare": "holds no modeling_treediff.py: load the model and save it again",
        "damaged": "are damaged",
        "empty": "holds no vocabulary_tree.safetensors",
        "nowhere": "nowhere is not a folder",
    }.items():
        with refused(message):
            push(tmp_path / name, REPO)
    assert not hub.requests


def test_errors_are_one_line(hub, push, trained, monkeypatch):
    push(trained, REPO)
    with refused("exists and is public: make it private in its settings"):
        push(trained, REPO, "--private")
    with refused("a bad/name/of many"):
        push(trained, "a bad/name/of many")
    with refused("leave out create_pr or revision"):
        push(trained, REPO, "--create-pr", "--revision", "dev")
    hub.break_off(3, "before")
    with refused("interrupted"):
        push(trained, REPO, "--revision", "dev")
    monkeypatch.setenv("HF_TOKEN", "hf_another_token")
    with refused("401"):
        push(trained, REPO)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with refused("Connection refused"):
        push(trained, REPO)


TWICE = """
import os, sys
from modeling_treediff.cli.main import main
for token in (os.environ["HF_TOKEN"], "hf_another_token"):
    os.environ["HF_TOKEN"] = token
    try:
        main()
    except SystemExit as stop:
        print(stop, file=sys.stderr)
"""


def test_no_token_is_ever_printed(trained, tmp_path):
    """With all requests logged, by the client's own switch: one push, and one refused for its token."""
    with HubDouble() as hub:
        environment = hub.environment(tmp_path / "home", HF_DEBUG="1", PYTHONPATH=str(REPOSITORY))
        ran = run_python("push", trained, REPO, code=TWICE, **environment)
        assert f"{hub.url}/{REPO}/commit/" in ran.stdout and hub.repositories[REPO].files()
    assert "authorization" in ran.stderr.lower()  # the log does speak of tokens
    assert "treediff push: error: " in ran.stderr and "401" in ran.stderr and "Traceback" not in ran.stderr
    for token in (TOKEN, "hf_another_token"):
        assert token not in ran.stdout + ran.stderr
