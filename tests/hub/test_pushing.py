"""Pushing to the Hub: everything in one commit, and what is pulled is what was pushed."""

import itertools
import signal
import subprocess
import sys

import pytest
import torch
from helpers.hub_double import TOKEN, hub_in_this_process
from helpers.models import tiny_model
from helpers.processes import environment_on_the_cpu
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from transformers import AutoTokenizer

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import HEADS, SCHEDULES
from modeling_treediff.hub import push, push_tree, save_checkpoint
from modeling_treediff.text.tree_tokenizer import check_tokenizer

REPO = "someone/a-model"
NODES = torch.arange(100, 112)[None]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_in_this_process(monkeypatch, tmp_path / "home") as double:
        yield double


@pytest.fixture
def tree_tokenizer():
    return tokenizer_of(100)


def tokenizer_of(size):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"word{index}": index for index in range(size - 1)} | {"<eos>": size - 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<eos>")), eos_token="<eos>", unk_token="<eos>"
    )


def assert_same(model, other):
    """Equal logits bit by bit, equal generation config, equal tree with its provenance."""
    with torch.no_grad():
        assert torch.equal(other(NODES).logits, model(NODES).logits)
    assert other.generation_config.to_dict() == model.generation_config.to_dict()
    assert other.tree.sha256 == model.tree.sha256 and other.tree.metadata == model.tree.metadata


def commits(hub):
    return [request for request in hub.requests if "/commit/" in request.path]


# ---- what goes where ------------------------------------------------------------------------------------------------


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


def test_weights_replace_those_of_an_earlier_push_in_other_files(hub, model):
    for size in ("10KB", "1GB", "30KB"):
        with torch.no_grad():
            model.model.embed_nodes.weight.add_(1)
        push(model, REPO, max_shard_size=size)
        assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO))
        names = {name for name in hub.repositories[REPO].files() if name.startswith("model") and "safetens" in name}
        assert ("model.safetensors" in names) == (size == "1GB") == (len(names) == 1)
    assert len(commits(hub)) == 3


@pytest.mark.parametrize("place", [{}, {"revision": "dev"}, {"create_pr": True}])
def test_pushes_at_the_same_time_are_never_mixed(hub, model, monkeypatch, place):
    """Another push, in shards, arrives between the look at the repository and the commit of the first."""
    other, list_files, arrived = tiny_model(model.tree, seed=5), HfApi.list_repo_files, []
    branch = {key: value for key, value in place.items() if key == "revision"}
    push(model, REPO, **branch)
    with torch.no_grad():
        model.model.embed_nodes.weight.add_(1)

    def list_files_then_wait(self, *arguments, **options):
        files = list_files(self, *arguments, **options)
        if not arrived:
            arrived.append(True)
            push(other, REPO, max_shard_size="40KB", **branch)
        return files

    monkeypatch.setattr(HfApi, "list_repo_files", list_files_then_wait)
    if "create_pr" in place:  # it is made from what the push saw, so it is no mixture
        push(model, REPO, **place)
        assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO, revision="refs/pr/1"))
        assert_same(other, TreeDiffForDiffusionLM.from_pretrained(REPO))
        return
    with pytest.raises(HfHubHTTPError, match=f"^Somebody else pushed to {REPO} meanwhile, .*: push again.$"):
        push(model, REPO, **place)
    assert_same(other, TreeDiffForDiffusionLM.from_pretrained(REPO, **branch))
    push(model, REPO, **place)
    assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO, **branch))
    assert not [name for name in hub.repositories[REPO].files(branch.get("revision", "main")) if "-of-" in name]


def test_a_branch_is_made_and_the_others_stay(hub, model):
    first = push(model, REPO)
    before = TreeDiffForDiffusionLM.from_pretrained(REPO)
    with torch.no_grad():
        model.model.embed_nodes.weight.mul_(2)
    for _ in range(2):  # the second time, the branch is there and nothing has changed
        commit = push(model, REPO, revision="longer/training")
    refs = hub.repositories[REPO].refs
    assert refs == {"main": first.oid, "longer/training": commit.oid}
    HfApi().create_tag(REPO, tag="v1", revision="longer/training")
    for revision in ("longer/training", commit.oid, "v1"):
        assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO, revision=revision))
        assert VocabularyTree.from_pretrained(REPO, revision=revision).sha256 == model.tree.sha256
    for revision in ("main", first.oid):
        assert_same(before, TreeDiffForDiffusionLM.from_pretrained(REPO, revision=revision))


def test_a_pull_request_leaves_main_as_it_was(hub, model):
    first = push(model, REPO)
    for change in (2, 3):
        with torch.no_grad():
            model.model.embed_nodes.weight.mul_(change)
        # Its own revision takes further commits.
        commit = push(model, REPO, **({"create_pr": True} if change == 2 else {"revision": "refs/pr/1"}))
        if change == 2:
            assert commit.pr_url == f"{hub.url}/{REPO}/discussions/1" and commit.pr_revision == "refs/pr/1"
        assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO, revision="refs/pr/1"))
    assert hub.repositories[REPO].refs == {"main": first.oid, "refs/pr/1": commit.oid}
    hub.mend()
    with pytest.raises(ValueError, match="opened against main: leave out create_pr or revision"):
        push(model, REPO, create_pr=True, revision="dev")
    assert not hub.requests


def test_private_repositories_are_private(hub, model, tmp_path):
    push(model, REPO, private=True)
    assert hub.repositories[REPO].private
    assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO))
    push(model, REPO, private=True)  # again: it exists, and is
    for token in (False, "hf_another"):
        with pytest.raises(OSError, match=REPO):
            TreeDiffForDiffusionLM.from_pretrained(REPO, token=token, cache_dir=tmp_path / "empty")
    push(model, "someone/open")
    files = hub.repositories["someone/open"].files()
    with pytest.raises(ValueError, match="someone/open exists and is public: make it private in its settings"):
        push(model, "someone/open", private=True)
    assert hub.repositories["someone/open"].files() == files


def test_the_token_given_is_the_one_sent_and_only_to_the_hub(hub, model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HfHubHTTPError, match="401"):
        push(model, REPO)
    hub.mend()
    push(model, REPO, token=TOKEN)
    elsewhere = [request for request in hub.requests if request.path.startswith("/large")]
    assert elsewhere and all(request.token is None for request in elsewhere)
    assert {request.token for request in hub.requests if request not in elsewhere} == {TOKEN}
    with pytest.raises((RepositoryNotFoundError, HfHubHTTPError)) as error:
        push(model, REPO, token="hf_wrong_token")
    assert "hf_wrong_token" not in str(error.value)


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
    push(other, REPO, tokenizer=tokenizer_of(90), **place)
    check_tokenizer(other.tree, AutoTokenizer.from_pretrained(REPO, **place))


# ---- interruptions --------------------------------------------------------------------------------------------------


def test_a_push_that_broke_off_anywhere_leaves_no_trace_and_is_repeated(hub, model):
    """Each request in turn fails, before or after its effect: main is whole each time, and the next push completes."""
    push(model, REPO, max_shard_size="80KB", revision="dev")
    length, broken = len(hub.requests), 0
    assert length > 8
    for number, how in itertools.product(range(1, length + 1), ("before", "after")):
        repository = hub.repositories.get(REPO)
        before = dict(repository.files("dev"))
        with torch.no_grad():
            model.model.embed_nodes.weight.add_(1)
        hub.break_off(number, how)
        try:
            push(model, REPO, max_shard_size="80KB", revision="dev")
        except Exception as error:
            broken += 1
            assert TOKEN not in str(error)
            committed = "/commit/" in hub.requests[-1].path and how == "after"
            assert (repository.files("dev") != before) == committed
        hub.mend()
        commit = push(model, REPO, max_shard_size="80KB", revision="dev")
        assert repository.refs["dev"] == commit.oid
        assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO, revision="dev"))
    assert broken > length  # a broken validation of the card, for one, may be no reason to stop


def test_large_files_that_had_arrived_are_not_sent_again(hub, model):
    push(model, REPO)
    uploads = [number for number, request in enumerate(hub.requests, 1) if request.method == "PUT"]
    last = next(number for number, request in enumerate(hub.requests, 1) if "/commit/" in request.path)
    assert len(uploads) == 2  # weights and tree
    hub.repositories.clear(), hub.large_files.clear()
    hub.break_off(last, "before")
    with pytest.raises(HfHubHTTPError):
        push(model, REPO)
    assert set(hub.repositories[REPO].files()) == {".gitattributes"}
    hub.mend()
    push(model, REPO)
    assert not [request for request in hub.requests if request.method == "PUT"]
    assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO))


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


# ---- trees ----------------------------------------------------------------------------------------------------------


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
