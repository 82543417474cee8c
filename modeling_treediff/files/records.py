"""Records: JSON files that hold what was measured beside the command, seed, commit and versions that made it."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from accelerate import PartialState

from modeling_treediff import __version__

from .json_files import write_json

RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "tokenizers")


def write_record(path: Path, facts: Mapping[str, Any], seed: int) -> None:
    """Write `facts` as JSON with the command, seed, commit, device and versions that made them."""
    made_by = {
        "command": command_line(),
        "processes": PartialState().num_processes,
        "seed": seed,
        "commit": current_commit(),
        "device": _device(),
        "versions": {"python": platform.python_version(), "modeling_treediff": __version__}
        | {name: version(name) for name in RECORDED_PACKAGES},
    }
    write_json(path, {**made_by, **facts})


def command_line() -> str:
    """Return the command that runs, as typed, without the folders of paths that lead out of the current one."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None:
        program = ["python", "-m", module.name.removesuffix(".__main__")]
    elif Path(sys.argv[0]).is_absolute():
        program = [Path(sys.argv[0]).name]
    else:
        program = ["python", _inside(sys.argv[0])]
    return shlex.join([*program, *map(_inside, sys.argv[1:])])


def _inside(word: str) -> str:
    """Return a word of a command line; of paths that are absolute, in a home or above this folder, the last parts."""
    if re.match(r"\w+://", word) and not word.startswith("file:"):
        return re.sub(r"//[^/@\s]*@", "//", word)  # no names and passwords of addresses
    return "".join(map(_last_of_outside, re.split(r"([\s,;=:@]|^-\w(?=[/~]))", word)))


def _last_of_outside(part: str) -> str:
    path = PureWindowsPath(part)  # which knows both separators
    leads_out = part.startswith(("/", "\\", "~")) or ".." in path.parts
    return path.name if leads_out else part


def _device() -> str:
    device = PartialState().device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' * (threads > 1)}"


def current_commit() -> str | None:
    """Return the commit of the package's own checkout, marked where it has uncommitted changes.

    None where the package is installed from a wheel: the repository around that is the user's, and perhaps private.
    """
    if not (Path(__file__).parents[2] / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
