"""Options from a YAML or JSON file, as command-line arguments."""

from pathlib import Path
from typing import Any

import yaml


def words_of_file(file: Path) -> list[str]:
    """Return the file's content, one `name: value` for each option, as a command line says it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is neither YAML nor JSON, or holds something else.

    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except OSError as error:
        raise OSError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold options and their values, one `name: value` each")
    if "config" in content:
        raise ValueError(f"{file} cannot name a further file: leave out config")
    return [word for key, value in content.items() for word in _words(f"--{str(key).replace('_', '-')}", value)]


def _words(flag: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    return [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
