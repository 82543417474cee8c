"""What is uploaded, and to which repository."""

from pathlib import Path

from helpers.options import parse, refusal


def test_flags_take_no_value_and_stand_anywhere():
    (upload,) = parse("push", "--private", "--dry-run", "folder", "someone/model")
    assert (upload.folder, upload.repository) == (Path("folder"), "someone/model")
    assert upload.private and upload.dry_run and not upload.create_pr and upload.revision is None


def test_folder_and_repository_are_needed():
    assert "required: REPOSITORY" in refusal("push", "folder")
    assert "unknown option --privat; the nearest is --private" in refusal("push", "folder", "a/b", "--privat")
