"""Records of measurements beside a model, matched to its weights by their hash.

A record, as `files.records` writes it, names the weights it is about, `weights_sha256`: {file name: sha256 of its
bytes}. It counts only beside these very weights.
"""

import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from modeling_treediff.files.fingerprints import file_sha256
from modeling_treediff.files.json_files import read_json
from modeling_treediff.modeling_treediff import weights_pattern

TRAINING_RECORD = "result.json"
EVALUATION_RECORD = "evaluation.json"
RECORD_NAMES = (TRAINING_RECORD, EVALUATION_RECORD)
CURVES_NAME = "curves.png"  # a picture of the training, beside its record


def is_weights(name: str) -> bool:
    """Tell whether a file of this name belongs to the weights that a model is loaded from by default."""
    return weights_pattern().fullmatch(name) is not None


def weights_files(folder: Path) -> set[str]:
    """Return the names of the weights in a folder, with the index of shards."""
    return {file.name for file in folder.glob("model*") if is_weights(file.name)}


def loaded_weights(folder: Path) -> set[str]:
    """Return the names of the weights that are loaded from a folder: one file, or an index and the shards it names."""
    found = weights_files(folder)
    if SAFE_WEIGHTS_NAME in found or SAFE_WEIGHTS_INDEX_NAME not in found:
        return found & {SAFE_WEIGHTS_NAME}
    shards = read_json(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map", {}).values()
    return found & {SAFE_WEIGHTS_INDEX_NAME, *shards}


def weights_sha256(folder: Path) -> dict[str, str]:
    """Return the sha256 of each weights file of the model in a folder, by name; empty if there is none."""
    names = sorted(name for name in weights_files(folder) if name.endswith(".safetensors"))
    return {name: file_sha256(folder / name) for name in names}


def find_records(weights: Path, places: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the records, by file name, that are about the weights in a folder.

    Args:
        weights: the folder that holds the weights.
        places: where the record of each name lies; those that are missing or no records are passed over.

    """
    measured = cache(lambda: weights_sha256(weights))  # seconds for large weights, and seldom needed
    records = {name: read_json(file) for name, file in places.items()}
    named = {name: record for name, record in records.items() if record.get("weights_sha256")}
    found = {name: record for name, record in named.items() if record["weights_sha256"] == measured()}
    for record in found.values():
        if "licence" in record:  # its name in records written before version 0.2
            record["license"] = record.pop("licence")
    return found


def records_of_origin(model: PreTrainedModel) -> dict[str, Path]:
    """Return the local paths, by name, of the records where a model was loaded from: a folder, or a Hub repository.

    A model does not remember revision and subfolder, so of a repository this is the main branch's main folder. Records
    of other weights than the model's may be among them: `find_records` compares.
    """
    origin = model.name_or_path or ""
    # What is neither a folder nor in the cache was made here, or its folder is gone: no name to ask the Hub for.
    if not os.path.isdir(origin) and (not origin or not _is_cached(origin)):
        return {}
    quiet = {f"_raise_exceptions_for_{reason}": False for reason in ("missing_entries", "connection_errors")}
    found = {name: cached_file(origin, name, **quiet) for name in RECORD_NAMES}
    return {name: Path(file) for name, file in found.items() if file is not None}


def _is_cached(origin: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(origin, CONFIG_NAME), str)
    except HFValidationError:  # a path
        return False


def number(record: Mapping[str, Any], *names: str) -> float | None:
    """Return the finite number that a record holds under nested names; None if it holds none."""
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if is_number(value) else None


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
