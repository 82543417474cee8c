"""A write that fails at any moment leaves the old content or the new, and nothing beside it."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.files.atomic_files import STALE_SECONDS, commit_folder, update_folder, write_atomically


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "file.txt"
    write_atomically(file, lambda path: path.write_text("old"))

    def fail(path):
        path.write_text("half of the n")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(file, fail)
    assert content(tmp_path) == {"file.txt": "old"}
    write_atomically(file, lambda path: path.write_text("new"))
    assert content(tmp_path) == {"file.txt": "new"}


def test_a_link_with_the_name_of_a_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name in (".file.txt.partial", ".partial"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "file.txt", lambda path: path.write_text("new"))
    with update_folder(tmp_path, lambda name: False) as folder:
        (folder / "other.txt").write_text("new")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "other.txt").read_text() == "new"


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "file.txt").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "file.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "file.txt").is_symlink()


def test_files_have_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "file", lambda path: path.write_text("new"))
    with update_folder(tmp_path, lambda name: False) as folder:
        (folder / "other").write_text("new")
    assert len({(tmp_path / name).stat().st_mode for name in ("plain", "file", "other")}) == 1


def test_what_a_kill_left_goes_when_it_is_old(tmp_path):
    for name, age in ((".old.partial", 2 * STALE_SECONDS), (".new.partial", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_atomically(tmp_path / "file", lambda path: path.write_text("new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.partial", "file"]


def test_many_may_write_at_the_same_time(tmp_path):
    tree = random_tree(40, 4, 3)

    def write(number):
        write_atomically(tmp_path / "file", lambda path: path.write_text(str(number) * 1000))
        with update_folder(tmp_path / "folder", lambda name: False) as folder:
            (folder / "a").write_text(str(number) * 1000)
        tree.save_pretrained(tmp_path / "tree")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(80)))
    assert all(len(set(text)) <= 2 for text in content(tmp_path / "folder").values())
    assert VocabularyTree.from_pretrained(tmp_path / "tree").sha256 == tree.sha256
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_is_committed_whole_and_replaces_none(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    commit_folder(tmp_path / "first", tmp_path / "place")
    with pytest.raises(OSError):
        commit_folder(tmp_path / "second", tmp_path / "place")
    assert content(tmp_path) == {"place/file": "first", "second/file": "second"}


def test_an_update_that_fails_changes_nothing(tmp_path):
    (tmp_path / "kept").write_text("old")
    with pytest.raises(ValueError, match="before the end"), update_folder(tmp_path, lambda name: False) as folder:
        (folder / "kept").write_text("new")
        raise ValueError("before the end")
    assert content(tmp_path) == {"kept": "old"}


def test_files_are_replaced_one_by_one_with_the_last_one_at_the_end(tmp_path, monkeypatch):
    """Killed before any rename, what is there is whole: the file written last is new only if all others are."""
    replace, moved = os.replace, []
    (tmp_path / "other").write_text("stays")
    for renames in range(4):
        for name in ("a", "index", "sub/z"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("old")

        def killed(source, target, renames=renames):
            if len(moved) == renames:
                raise KeyboardInterrupt
            moved.append(target)
            replace(source, target)

        monkeypatch.setattr(os, "replace", killed)
        try:
            with update_folder(tmp_path, lambda name: name == "index") as folder:
                (folder / "sub").mkdir()
                for name in ("a", "index", "sub/z"):
                    (folder / name).write_text("new")
        except KeyboardInterrupt:
            assert renames < 3
        moved.clear()
        found = content(tmp_path)
        assert found.pop("other") == "stays" and found.keys() == {"a", "index", "sub/z"}
        assert sorted(found.values()).count("new") == renames and (found["index"] == "new") == (renames == 3)
