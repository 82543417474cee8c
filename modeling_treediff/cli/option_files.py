"""Options of a script from a YAML or JSON file, checked like those of the command line."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

OPTION = "--config"


class OptionParser(argparse.ArgumentParser):
    """A parser with the option `--config FILE`, whose keys are the names of the other options.

    The file's values go through the parser as if they stood before the command line, which therefore wins. Errors are
    one line.
    """

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 -- argparse's own
        """Make a parser that knows only `--help` and `--config`."""
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument(OPTION, type=Path, metavar="FILE", help="YAML or JSON file with any of the options below")

    def parse_args(  # type: ignore[override]  # no other use of the namespace
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse the file that the command line names, then the command line."""
        line = list(sys.argv[1:] if args is None else args)
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument(OPTION, type=Path)
        file = first.parse_known_args(line)[0].config
        return super().parse_args([*self._read(file), *line] if file else line, namespace)

    def error(self, message: str) -> NoReturn:
        """End with one line instead of the usage of all options."""
        self.exit(2, f"{self.prog}: {message} (--help lists all options)\n")

    def given(self, options: argparse.Namespace, names: Sequence[str]) -> list[str]:
        """Return which of these options do not have their default."""
        return [name for name in names if getattr(options, name) != self.get_default(name)]

    def _read(self, file: Path) -> list[str]:
        """Return the file's content as a command line."""
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
        except OSError as error:
            self.error(f"{file} cannot be read: {error.strerror}")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.error(f"{file} is neither YAML nor JSON: {' '.join(str(error).split())}")
        if not isinstance(content, dict):
            self.error(f"{file} must hold options and their values, one `name: value` each")
        return [word for key, value in content.items() for word in self._words(file, str(key), value)]

    def _words(self, file: Path, key: str, value: Any) -> list[str]:  # noqa: ANN401
        flag = "--" + key.replace("_", "-")
        actions = {name: action for action in self._actions for name in action.option_strings if name != OPTION}
        if flag not in actions:
            near = difflib.get_close_matches(flag, actions, 1, cutoff=0.0)[0].removeprefix("--")
            self.error(f"{file} has an unknown option {key!r}; the nearest is {near!r}")
        if value is None or (actions[flag].nargs == 0 and value is False):
            return []
        if actions[flag].nargs == 0:
            if value is not True:
                self.error(f"{file}: {key} is either true or false, got {value!r}")
            return [flag]
        return [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
