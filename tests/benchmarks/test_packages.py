"""Downloaded packages are found by name, and folders appear whole."""

import pytest

from benchmarks.packages import find_package, write_folder


def test_missing_or_doubled_package_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds 0 files gpt-tokenizer-\*.tgz"):
        find_package(tmp_path, "gpt-tokenizer-*.tgz")
    (tmp_path / "gpt-tokenizer-1.tgz").touch()
    assert find_package(tmp_path, "gpt-tokenizer-*.tgz") == tmp_path / "gpt-tokenizer-1.tgz"
    (tmp_path / "gpt-tokenizer-2.tgz").touch()
    with pytest.raises(FileNotFoundError, match="holds 2 files"):
        find_package(tmp_path, "gpt-tokenizer-*.tgz")


def test_a_folder_that_could_not_be_filled_does_not_appear(tmp_path):
    def fill_half(folder):
        (folder / "first").touch()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_folder(tmp_path / "made", fill_half)
    assert not (tmp_path / "made").exists()
    write_folder(tmp_path / "made", lambda folder: (folder / "second").touch())
    assert [file.name for file in tmp_path.rglob("*")] == ["made", "second"]
