"""Code of version 0.1.0 goes when a newer version saves or pushes over it, and nothing else does."""

import pytest
from helpers.pushes import REPO, assert_same

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.hub import push, save_checkpoint
from modeling_treediff.hub.retired_code import MARK, NAMES, retired_code

OLDER = {name: b"# of version 0.1.0" for name in NAMES}
OTHERS = {"version.py": b"VERSION = 3", "my_tools.py": b"# mine"}


def test_files_are_of_the_older_version_only_where_its_mark_is():
    assert retired_code(OTHERS) == set()
    assert retired_code([*OLDER, "modeling_treediff.py", "my_tools.py"]) == NAMES and MARK in NAMES


@pytest.mark.parametrize("place", [{}, {"subfolder": "small"}])
def test_a_push_removes_them(hub, model, place):
    hub.put(REPO, OLDER | {"my_tools.py": b"# mine"})
    push(model, REPO, **place)
    files = hub.repositories[REPO].files()
    assert not NAMES & files.keys() and files["my_tools.py"] == b"# mine"
    assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO, **place))
    hub.repositories.clear()
    hub.put(REPO, OTHERS)
    push(model, REPO, **place)
    assert OTHERS.items() <= hub.repositories[REPO].files().items()


def test_a_save_removes_them_and_a_folder_with_them_is_not_pushed(hub, model, tmp_path):
    save_checkpoint(model, tmp_path)
    for name, content in (OLDER | {"my_tools.py": b"# mine"}).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="was saved by version 0.1.0: load the model and save it again"):
        push(tmp_path, REPO)
    save_checkpoint(TreeDiffForDiffusionLM.from_pretrained(tmp_path), tmp_path)
    assert not any((tmp_path / name).exists() for name in NAMES) and (tmp_path / "my_tools.py").exists()
    push(tmp_path, REPO)
    assert_same(model, TreeDiffForDiffusionLM.from_pretrained(REPO))
