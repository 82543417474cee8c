"""JSON files: atomic writes, and reads that tolerate damage."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic_files import write_atomically


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, whole or not at all; what is not finite becomes null."""
    text = json.dumps(without_non_numbers(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; empty if there is no file, no JSON in it, or JSON of another kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def without_non_numbers(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with None, at any depth, for infinities and what is no number: JSON has neither."""
    return {name: _finite(value) for name, value in content.items()}


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return without_non_numbers(value)
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
