"""Options from a YAML or JSON file, as command-line arguments."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

NOT_GIVEN: tuple[Any, ...] = ("", "~", "null", [])
TRUE, FALSE = {"true", "yes", "on"}, {"false", "no", "off"}


def words_of_file(file: Path, switches: Collection[str]) -> list[str]:
    """Return the file's content, one `name: value` for each option, as a command line says it.

    Args:
        file: YAML or JSON; an option without a value, null or with an empty list is not given.
        switches: the options that are true or false, such as --resume.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is neither YAML nor JSON, or holds something else.

    """
    try:
        # JSON is YAML; this loader leaves values as they are written, so that `no` is not False.
        content = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506 -- it makes strings alone
    except OSError as error:
        raise OSError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold options and their values, one `name: value` each")
    if "config" in content:
        raise ValueError(f"{file} cannot name a further file: leave out config")
    named = {f"--{key.replace('_', '-')}": value for key, value in content.items()}
    return [word for flag, value in named.items() for word in _words(flag, value, switches)]


def _words(flag: str, value: Any, switches: Collection[str]) -> list[str]:
    if value in NOT_GIVEN:
        return []
    if flag in switches and str(value).lower() in TRUE | FALSE:
        no = flag.replace("--", "--no-", 1)
        return [flag] if value.lower() in TRUE else [no] * (no in switches)
    return [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
