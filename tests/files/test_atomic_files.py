"""A write that fails at any moment leaves the old content or the new, and nothing beside it."""

import os

import pytest

from modeling_treediff.files.atomic_files import commit_folder, update_folder, write_atomically


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
