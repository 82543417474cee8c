"""Records beside a model: what was measured, and of which weights.

A record is a JSON file that names the weights it is about, `weights_sha256`: {file name: sha256 of its bytes}, what
`sha256sum` prints and the Hub shows. It counts only beside these very weights.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

TRAINING_RECORD = "result.json"
EVALUATION_RECORD = "evaluation.json"
RECORD_NAMES = (TRAINING_RECORD, EVALUATION_RECORD)


def weights_sha256(folder: Path) -> dict[str, str]:
    """Return the sha256 of each weights file of the model in a folder, by name; empty if there is none."""
    files = [*folder.glob("model.safetensors"), *folder.glob("model-?????-of-?????.safetensors")]
    return {file.name: _sha256(file) for file in sorted(files)}


def find_records(weights: Path, places: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the records, by file name, that are about the weights in a folder.

    Args:
        weights: the folder that holds the weights.
        places: where the record of each name lies; those that are missing or no records are passed over.

    """
    measured = cache(lambda: weights_sha256(weights))  # seconds for large weights, and seldom needed
    records = {name: _read(file) for name, file in places.items()}
    named = {name: record for name, record in records.items() if record.get("weights_sha256")}
    return {name: record for name, record in named.items() if record["weights_sha256"] == measured()}


def find_files(source: str | os.PathLike, names: tuple[str, ...], **hub_kwargs: Any) -> dict[str, Path]:  # noqa: ANN401
    """Return the local paths, by name, of those small files that a folder or Hub repository has and that can be had."""
    quiet = {f"_raise_exceptions_for_{reason}": False for reason in ("missing_entries", "connection_errors")}
    found = {name: cached_file(os.fspath(source), name, **hub_kwargs, **quiet) for name in names}
    return {name: Path(file) for name, file in found.items() if file is not None}


def number(record: Mapping[str, Any], *names: str) -> float | None:
    """Return the finite number that a record holds under nested names; None if it holds none."""
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if is_number(value) else None


def is_number(value: Any) -> bool:  # noqa: ANN401 -- what a JSON file holds
    """Tell whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
