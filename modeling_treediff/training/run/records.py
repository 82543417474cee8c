"""Result files: what was measured, beside the command, seed, commit and versions that made it."""

import json
import math
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
        "command": command_line(),
        "processes": PartialState().num_processes,
        "seed": seed,
        "commit": current_commit(),
        "device": _device(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in RECORDED_PACKAGES},
        **facts,
    }
    text = json.dumps(without_non_numbers(record), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))


def command_line() -> str:
    """Return the command that runs, as it is typed: a module by its name, a script by its path."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", module.name.removesuffix(".__main__")] if module else sys.argv[:1]
    return shlex.join(["python", *program, *sys.argv[1:]])


def without_non_numbers(value: Any) -> Any:  # noqa: ANN401
    """Return the value with None, at any depth, for infinities and what is no number: JSON has neither."""
    if isinstance(value, dict):
        return {name: without_non_numbers(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_non_numbers(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _device() -> str:
    device = PartialState().device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' * (threads > 1)}"


def current_commit() -> str | None:
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
