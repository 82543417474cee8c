"""Pushing to the Hub: everything in one commit, and what is pulled is what was pushed."""

import itertools
import signal
import subprocess
import sys

import pytest
import torch
from helpers.models import tiny_model
from helpers.processes import environment_on_the_cpu
from helpers.pushes import REPO, assert_same, commits
from helpers.vocabularies import numbered_words
from transformers import AutoTokenizer

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import HEADS, SCHEDULES
from modeling_treediff.hub import push, push_tree, render_card, save_checkpoint
from modeling_treediff.text.tree_tokenizer import check_tokenizer


@pytest.fixture
def tree_tokenizer():
    return numbered_words(100)


@pytest.mark.parametrize(("head", "schedule"), list(itertools.product(HEADS, SCHEDULES)))
def test_what_is_pulled_is_what_was_saved_and_pushed(hub, tree, tmp_path, head, schedule):
    model = tiny_model(tree, head=head, schedule=schedule, num_hidden_layers=1)
    model.generation_config.num_steps, model.generation_config.temperature = 7, [0.5, 1.0, 1.5]
    save_checkpoint(model, tmp_path / "saved")
    saved = TreeDiffForDiffusionLM.from_pretrained(tmp_path / "saved")
    push(saved, REPO)
    assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO))


def test_one_commit_holds_all_that_a_saved_folder_holds(hub, model, tree_tokenizer, tmp_path):
    save_checkpoint(model, tmp_path / "saved", tree_tokenizer)
    commit = push(model, REPO, tokenizer=tree_tokenizer, commit_message="A first model")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    saved["README.md"] = render_card(model, tmp_path / "saved", repository=REPO).encode()
    repository = hub.repositories[REPO]
    pushed = dict(repository.files())
    del pushed[".gitattributes"]
    assert pushed == saved
    assert repository.messages == ["initial commit", "A first model"] and len(commits(hub)) == 1
    before = dict(repository.files())
    push(tmp_path / "saved", REPO)  # the same, from the folder
    assert repository.files() == before and len(commits(hub)) == 1
    with pytest.raises(ValueError, match="goes with the tokenizer in it"):
        push(tmp_path / "saved", REPO, tree_tokenizer)
    assert commit.oid == repository.refs["main"] and str(commit) == f"{hub.url}/{REPO}/commit/{commit.oid}"


def test_a_subfolder_holds_the_model_and_the_root_its_code(hub, model, tree_tokenizer):
    other = tiny_model(model.tree, seed=1, head="node")
    for name, one in (("small", model), ("node/best", other)):
        push(one, REPO, subfolder=name, tokenizer=tree_tokenizer, max_shard_size="20KB")
    for name, one in (("small", model), ("node/best", other)):
        assert_same(one, TreeDiffForDiffusionLM.from_pretrained(REPO, subfolder=name))
    for name in hub.repositories[REPO].files():
        assert name.endswith(".py") == ("/" not in name) or name == ".gitattributes"
    push(one, REPO, subfolder="small/")  # in one file now: its shards go, the neighbour's stay
    assert_same(other, TreeDiffForDiffusionLM.from_pretrained(REPO, subfolder="small"))
    assert_same(other, TreeDiffForDiffusionLM.from_pretrained(REPO, subfolder="node/best"))


@pytest.mark.parametrize("place", [{}, {"revision": "dev"}, {"subfolder": "small"}])
def test_a_card_that_somebody_wrote_stays_and_a_rendered_one_is_renewed(hub, model, place):
    push(model, REPO, **place)
    repository, ref = hub.repositories[REPO], place.get("revision", "main")
    name = f"{place['subfolder']}/README.md" if "subfolder" in place else "README.md"
    rendered = repository.files(ref)[name]
    written = "---\nlicense: mit\n---\n# Ours, 3 µm\n\n---\n".encode()
    for before, after in {
        written: written,
        b"No metadata": b"No metadata",
        b"": rendered,
        b"---\nlicense: mit\n---\n": rendered,  # what the site makes of a choice in its form
        rendered + b"from an older version": rendered,
    }.items():
        repository.commit(ref, repository.files(ref) | {name: before}, "Edited on the site")
        with torch.no_grad():
            model.model.embed_nodes.weight.add_(1)
        push(model, REPO, **place)
        assert repository.files(ref)[name] == after
        assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO, **place))


@pytest.mark.parametrize("place", [{}, {"subfolder": "small"}])
def test_a_tokenizer_stays_with_its_tree_and_goes_with_it(hub, model, tree_tokenizer, place):
    def names():
        return {name.rsplit("/", 1)[-1] for name in hub.repositories[REPO].files()}

    tokenizer_files = {"tokenizer.json", "tokenizer_config.json"}
    for files in ({"tokenizer.json": b"{}"}, {"config.json": b"[]", "vocab.json": b"{}", "merges.txt": b""}):
        folder = f"{place['subfolder']}/" if place else ""
        hub.put(REPO, {folder + name: content for name, content in files.items()})
        push(model, REPO, **place)  # a tokenizer that was there first stays, that of a model of another kind goes
        assert ("tokenizer.json" in files) == ("tokenizer.json" in names())
        assert not names() & {"vocab.json", "merges.txt"}
    push(model, REPO, tokenizer=tree_tokenizer, **place)
    with torch.no_grad():
        model.model.embed_nodes.weight.add_(1)
    push(model, REPO, **place)
    push_tree(model.tree, REPO, **place)
    assert tokenizer_files <= names()
    other = tiny_model(random_tree(90, 5, 3))
    push(other, REPO, **place)
    assert not tokenizer_files & names()
    assert TreeDiffForDiffusionLM.from_pretrained(REPO, **place).tree.sha256 == other.tree.sha256
    push(model, REPO, tokenizer=tree_tokenizer, **place)
    push(other, REPO, tokenizer=numbered_words(90), **place)
    check_tokenizer(other.tree, AutoTokenizer.from_pretrained(REPO, **place))


PUSH = """
import sys
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.hub import push
push(TreeDiffForDiffusionLM.from_pretrained(sys.argv[1]), sys.argv[2])
"""


def test_a_killed_push_leaves_the_repository_as_it_was(hub, model, tmp_path):
    push(model, REPO)
    uploads = [number for number, request in enumerate(hub.requests, 1) if request.method == "PUT"]
    before = dict(hub.repositories[REPO].files())
    with torch.no_grad():
        model.model.embed_nodes.weight.add_(1)
    model.save_pretrained(tmp_path / "next")
    hub.break_off(uploads[0], "never")
    environment = environment_on_the_cpu(**hub.environment(tmp_path / "other home"))
    process = subprocess.Popen([sys.executable, "-c", PUSH, tmp_path / "next", REPO], env=environment)
    assert hub.reached.wait(240)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert hub.repositories[REPO].files() == before
    ran = subprocess.run([sys.executable, "-c", PUSH, tmp_path / "next", REPO], env=environment, timeout=300)
    assert ran.returncode == 0
    assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO))


def test_a_tree_alone_is_pushed_and_pulled(hub, tree):
    other = random_tree(90, 5, 3, seed=2, metadata={"license": "CC0-1.0"})
    for place in ({}, {"revision": "dev"}, {"subfolder": "trees/small"}):
        for one in (tree, other):
            commit = push_tree(one, "a-tree", **place)
            assert commit.commit_message == "Upload vocabulary tree"
            pulled = VocabularyTree.from_pretrained("someone/a-tree", **place)
            assert pulled.sha256 == one.sha256 and pulled.metadata == one.metadata
    names = {"vocabulary_tree.json", "vocabulary_tree.safetensors"}
    expected = {".gitattributes", *names, *(f"trees/small/{name}" for name in names)}
    assert set(hub.repositories["someone/a-tree"].files()) == expected
    push_tree(tree, "private", private=True, create_pr=True, commit_message="My tree")
    assert hub.repositories["someone/private"].private
    assert VocabularyTree.from_pretrained("someone/private", revision="refs/pr/1").sha256 == tree.sha256
    with pytest.raises(OSError, match="someone/private holds no vocabulary_tree.safetensors: name a folder or repo"):
        VocabularyTree.from_pretrained("someone/private")
