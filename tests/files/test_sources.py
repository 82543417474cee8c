"""A name is a folder or a repository of the Hub; anything else is said before the Hub is asked."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.processes import SAMPLE, run_here
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from modeling_treediff.files.sample import FLAT, find_tree
from modeling_treediff.files.sources import check_source, public_name
from modeling_treediff.text import Corpus

ANSWER: Any = SimpleNamespace(headers={}, request=None)
MISSING = "There is no folder or Hub repository {}: name the folder of a {}, or user/name on the Hub"
UNREACHABLE = " (which cannot be reached: only what was downloaded before is found)."
ANSWERS = {
    "there": (None, None),
    "not there": (RepositoryNotFoundError("404", response=ANSWER), "."),
    "gated": (GatedRepoError("403", response=ANSWER), None),
    "in trouble": (HfHubHTTPError("503", response=ANSWER), None),
    "no network": (HTTPError("Name or service not known"), UNREACHABLE),
    "too slow": (TimeoutError("timed out"), UNREACHABLE),
    "offline": (OfflineModeIsEnabled("offline"), UNREACHABLE),
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What the Hub was asked for, and an answer that it gives to everything."""
    asked = SimpleNamespace(names=[], answer=None)

    def repo_info(self, name, repo_type, timeout):
        asked.names.append((name, repo_type))
        if asked.answer is not None:
            raise asked.answer

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return asked


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", ["someone/a-model", "my_modl"])
def test_the_hub_is_asked_once_and_what_it_lacks_is_said_first(hub, answer, name):
    hub.answer, said = ANSWERS[answer]
    if said is None:
        assert check_source(name, "model") == name
    else:
        with pytest.raises(OSError, match=re.escape(MISSING.format(name, "model") + said)):
            check_source(name, "model")
    assert hub.names == [(name, "model")]


def test_folders_and_what_was_downloaded_before_need_no_hub(hub, tmp_path):
    assert check_source(str(tmp_path), "model") == str(tmp_path) and find_tree(FLAT) == FLAT
    for folder in ("models--someone--cached", "datasets--someone--cached"):
        (tmp_path / "hub" / folder).mkdir(parents=True)
    assert check_source("someone/cached", "model") == "someone/cached"
    assert check_source("someone/cached", "text", "dataset") == "someone/cached"
    assert not hub.names


@pytest.mark.parametrize("name", ["/nowhere/at/all", "no/such/folder", "../my_model", "a/b/c/"])
def test_a_path_without_a_folder_is_named(hub, name):
    with pytest.raises(OSError, match=MISSING.format(name, "model")):
        check_source(name, "model")
    with pytest.raises(OSError, match=MISSING.format(name, "tree")):
        find_tree(name)
    assert not hub.names


@pytest.mark.parametrize("name", ["/data/x.log", "no/such/file.log", "notes"])
def test_a_text_that_is_not_there_may_have_been_meant_as_a_file(hub, name):
    hub.answer = RepositoryNotFoundError("404", response=ANSWER)
    with pytest.raises(OSError, match=f"There is no file, folder or Hub dataset {name}: name a text or a table"):
        list(Corpus(name).documents())


COMMANDS = {
    "generate": ["{}"],
    "evaluate": ["{}", "text.txt"],
    "analyze-errors": ["{}", "--text", "text.txt"],
    "plan-memory --from": ["plan-memory", "--from", "{}"],
    "plan-memory": ["--tree", "{}"],
    "train": ["--tree", "{}", "--output", "{{output}}"],
    "train --from": ["train", "--from", "{}", "--output", "{{output}}"],
    "train --tokenizer": ["train", "--tree", "flat", "--tokenizer", "{}", "--output", "{{output}}"],
    "train --text": ["train", "--text", "{}", "--output", "{{output}}"],
    "inspect-tree": ["{}"],
    "inspect-tree --tokenizer": ["inspect-tree", "sotu-8k", "--tokenizer", "{}"],
    "inspect-tree --text": ["inspect-tree", "sotu-8k", "--text", "{}"],
    "inspect-tree --embeddings": ["inspect-tree", "sotu-8k", "--embeddings", "{}"],
    "build-tree": ["--tokenizer", "{}", "--text", "text.txt", "--output", "{{output}}"],
    "build-tree --text": ["build-tree", "--train-tokenizer", "300", "--text", "{}", "--output", "{{output}}"],
    "build-tree --extend": ["build-tree", "--extend", "{}", "--tokenizer", SAMPLE, "--output", "{{output}}"],
    "convert": ["{}", "--output", "{{output}}"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["my_modl", "runs/none/model"])
def test_it_is_the_first_line_of_every_subcommand(hub, tmp_path, command, name):
    hub.answer = RepositoryNotFoundError("404", response=ANSWER)
    words = [str(word).format(name).format(output=tmp_path / "output") for word in COMMANDS[command]]
    ran = run_here(*([] if words[0] == command.split()[0] else [command.split()[0]]), *words)
    lines = [line for line in ran.stderr.splitlines() if "error" in line]
    assert ran.returncode == 1 and "Traceback" not in ran.stderr and len(lines) == 1
    what = "file, folder or Hub dataset" if "--text" in command else "folder or Hub repository"
    assert f"error: There is no {what} {name}: name " in lines[0]
    assert len(hub.names) <= 1


def test_of_a_local_file_the_last_part_alone_is_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in (str(tmp_path / "mine"), "mine", "./mine", "mine/"):
        assert public_name(name) == "mine"
    for name in ("/home/alice/secret/corpus.txt", "~/secret/corpus.txt", "../secret/corpus.txt"):  # gone since
        assert public_name(name) == "corpus.txt"
    assert public_name("someone/a-model") == "someone/a-model"
