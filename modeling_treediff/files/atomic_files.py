"""Writing files so that a kill at any moment leaves either the old content or the new, never a mixture."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary file beside `path`, then rename that file to `path`."""
    temporary = path.with_name(f".{path.name}.partial")  # a fixed name: the next attempt overwrites what a kill left
    try:
        write(temporary)
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def commit_folder(temporary: Path, path: Path) -> None:
    """Rename a finished folder to `path`, which must not exist yet."""
    for file in temporary.rglob("*"):
        _flush_to_disk(file)
    os.rename(temporary, path)


@contextmanager
def update_folder(path: Path, written_last: Callable[[str], bool]) -> Iterator[Path]:
    """Give a temporary folder whose files replace those in `path` one by one when the block ends without an error.

    All slow work happens in the temporary folder; what remains is one rename per file, those for which
    `written_last(file name)` holds at the end. Files of `path` with other names stay.
    """
    temporary = path / ".partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = [file for file in sorted(temporary.rglob("*")) if file.is_file()]
        for file in files:
            _flush_to_disk(file)
        for file in sorted(files, key=lambda file: written_last(file.name)):
            target = path / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush_to_disk(file: Path) -> None:
    if file.is_file():
        with file.open("r+b") as stream:
            os.fsync(stream.fileno())
