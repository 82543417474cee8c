"""Writing files so that a kill at any moment leaves either the old content or the new, never a mixture."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

SUFFIX = ".partial"
STALE_SECONDS = 24 * 3600  # a temporary folder this old is what a kill has left


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary file on the same disk, then rename that file to `path`."""
    with _temporary_folder(path.parent) as folder:
        write(folder / path.name)
        _flush_to_disk(folder / path.name)
        os.replace(folder / path.name, path)


def commit_folder(temporary: Path, path: Path) -> None:
    """Rename a finished folder to `path`, which must not exist yet."""
    for file in temporary.rglob("*"):
        _flush_to_disk(file)
    os.rename(temporary, path)


def set_aside(path: Path) -> Path:
    """Rename what is damaged to `damaged-NAME` beside it, in place of an earlier one; return where it is now."""
    aside = path.with_name(f"damaged-{path.name}")
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)
    return path.rename(aside)


@contextmanager
def update_folder(path: Path, written_last: Callable[[str], bool]) -> Iterator[Path]:
    """Give a temporary folder whose files replace those in `path` one by one when the block ends without an error.

    All slow work happens in the temporary folder; what remains is one rename per file, those for which
    `written_last(file name)` holds at the end. Files of `path` with other names stay.
    """
    path.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(path) as temporary:
        yield temporary
        files = [file for file in sorted(temporary.rglob("*")) if file.is_file()]
        for file in files:
            _flush_to_disk(file)
        for file in sorted(files, key=lambda file: written_last(file.name)):
            target = path / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """Give a folder of this user alone, of a name that nobody can know before; remove it at the end."""
    for left in parent.glob(f".*{SUFFIX}"):
        with suppress(FileNotFoundError):  # another process has removed its own
            if left.is_dir() and not left.is_symlink() and time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(dir=parent, prefix=".", suffix=SUFFIX, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _flush_to_disk(file: Path) -> None:
    if file.is_file():
        with file.open("r+b") as stream:
            os.fsync(stream.fileno())
