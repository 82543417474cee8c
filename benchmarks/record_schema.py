"""Whether a record holds what a table or figure is about to show."""

import json
import math
from pathlib import Path
from typing import Any

Schema = type | dict[str, "Schema"] | list["Schema"]


def read_record(file: Path, schema: Schema) -> dict[str, Any]:
    """Return a record; ValueError if the file is missing or does not have the schema."""
    if not file.exists():
        raise ValueError(f"{file.name} is missing: the benchmark that writes it has not been run.")
    record = json.loads(file.read_text(encoding="utf-8"))
    check_schema(record, schema, file.stem)
    return record


def check_schema(value: Any, schema: Schema, where: str) -> None:
    """Raise ValueError unless a value has the schema: a type, names with a schema each, or a list of one schema.

    Lists must not be empty, numbers must be finite, whole numbers count as numbers, and names beyond the schema's are
    allowed.
    """
    if isinstance(schema, dict):
        if missing := [name for name in schema if name not in require(value, dict, where)]:
            raise ValueError(f"{where} lacks {', '.join(missing)}.")
        for name, part in schema.items():
            check_schema(value[name], part, f"{where}.{name}")
    elif isinstance(schema, list):
        if not require(value, list, where):
            raise ValueError(f"{where} is empty.")
        for index, part in enumerate(value):
            check_schema(part, schema[0], f"{where}[{index}]")
    elif schema is float:
        if isinstance(value, bool) or not math.isfinite(require(value, int | float, where)):
            raise ValueError(f"{where} is no finite number: {value}.")
    else:
        require(value, schema, where)


def require(value: Any, kind: Any, where: str) -> Any:
    """Return the value; ValueError if it is of another kind."""
    if not isinstance(value, kind):
        raise ValueError(f"{where} should be {getattr(kind, '__name__', kind)}, is {value!r}.")
    return value
