"""Result files: what was measured, beside the command, seed, commit and versions that made it."""

import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from modeling_treediff.atomic_files import write_atomically

RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "tokenizers")


def write_record(path: Path, facts: dict[str, Any], seed: int) -> None:
    """Write `facts` as JSON with the command, seed, commit, device and versions that made them."""
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "processes": PartialState().num_processes,
        "seed": seed,
        "commit": _commit(),
        "device": _device(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in RECORDED_PACKAGES},
        **facts,
    }
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(record, indent=2) + "\n", "utf-8"))


def _device() -> str:
    device = PartialState().device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def _commit() -> str | None:
    """Return the commit of the checkout that runs, marked where it has uncommitted changes; None outside of git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
