"""A name is a folder or a repository of the Hub; anything else is said before the Hub is asked."""

import pytest

from modeling_treediff.files.sample import find_tree
from modeling_treediff.files.sources import check_source, public_name


def test_folders_and_repositories_stay_as_they_are(tmp_path):
    for name in (str(tmp_path), "someone/a-model", "gpt2"):
        assert check_source(name, "model") == name


@pytest.mark.parametrize("name", ["/nowhere/at/all", "no/such/folder", "../my_model", "a/b/c/"])
def test_a_path_without_a_folder_is_named(name):
    with pytest.raises(
        OSError, match=f"There is no folder {name}: name the folder of a model, or user/name on the Hub"
    ):
        check_source(name, "model")
    with pytest.raises(OSError, match=f"There is no folder {name}: name the folder of a tree"):
        find_tree(name)


def test_of_a_local_file_the_last_part_alone_is_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in (str(tmp_path / "mine"), "mine", "./mine", "mine/"):
        assert public_name(name) == "mine"
    for name in ("/home/alice/secret/corpus.txt", "~/secret/corpus.txt", "../secret/corpus.txt"):  # gone since
        assert public_name(name) == "corpus.txt"
    assert public_name("someone/a-model") == "someone/a-model"
