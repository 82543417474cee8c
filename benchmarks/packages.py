"""Downloaded packages, and folders made from them in one step."""

import shutil
from collections.abc import Callable
from pathlib import Path

from modeling_treediff.files.atomic_files import commit_folder


def find_package(packages: Path, pattern: str) -> Path:
    """Return the one package of this name; raise FileNotFoundError if there is none or more."""
    found = sorted(packages.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"{packages} holds {len(found)} files {pattern}, not one: --help says how to get it.")
    return found[0]


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary folder, then rename that to `path`."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    fill(temporary)
    commit_folder(temporary, path)
