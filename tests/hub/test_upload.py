"""An upload is one commit, all of it or none, where it was sent."""

import itertools

import pytest
import torch
from helpers.hub_double import TOKEN
from helpers.models import tiny_model
from helpers.pushes import REPO, assert_same, commits
from helpers.untraced import untraced
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.hub import push


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


@untraced
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
