"""Parsing command lines into dataclasses with transformers' `HfArgumentParser`.

It is there wherever the package is, makes one group of options for each dataclass, and stays an `argparse` parser, so
that errors can be one line. (jsonargparse spells options with underscores, tyro's errors are boxes of several lines.)
"""

import argparse
import copy
import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformers.hf_argparser import HfArgumentParser

from modeling_treediff.files.utf8 import check_utf8

from .fields import flag_of
from .files import words_of_file

OURS = ("operand", "flag", "is_text", "presets")  # metadata that are no arguments of `add_argument`


@dataclasses.dataclass
class ConfigFile:
    """The option that every subcommand has."""

    config: Path | None = dataclasses.field(
        default=None, metadata={"help": "YAML or JSON file with any of the options below; the command line wins"}
    )


class HelpFormatter(
    argparse.RawDescriptionHelpFormatter, argparse.MetavarTypeHelpFormatter, argparse.ArgumentDefaultsHelpFormatter
):
    """Keeps the line breaks of description and examples, names types, and shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default in (argparse.SUPPRESS, "", [])
        return action.help if silent else super()._get_help_string(action)


class OptionParser(HfArgumentParser):
    """Makes options of dataclasses: defaults shown, no abbreviations, errors in one line, values also from a file."""

    def __init__(self, dataclass_types: Sequence[type], prog: str, description: str, examples: str) -> None:
        """Make the parser of a command; the dataclasses' `_argument_group_name` are the titles of their groups."""
        options = [one for kind in dataclass_types for one in dataclasses.fields(kind)]
        needed = map(_usage, options)
        # Words by the name of the preset, of the one option that has such.
        self.presets: dict[str, Sequence[str]] = {}
        for one in options:
            self.presets |= one.metadata.get("presets", {})
        super().__init__(
            [ConfigFile, *dataclass_types],  # type: ignore[list-item]  # its DataClassType is none that mypy knows
            prog=prog,
            usage=" ".join([prog, *filter(None, needed), "[options]"]),
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        for action in self._actions:  # the library also takes underscores; hyphens are what is shown
            action.option_strings = [name for name in action.option_strings if "_" not in name]

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
        """Make a field an argument. The library knows no operands, no flags without a value, and one name for both."""
        metadata = {name: value for name, value in field.metadata.items() if name not in OURS}
        if "operand" in field.metadata:
            metadata.setdefault("metavar", field.name.upper())
            parser.add_argument(field.name, type=Path if field.type is Path else str, **metadata)
        elif field.type is bool:
            parser.add_argument(flag_of(field), dest=field.name, action="store_true", **metadata)
        elif field.type == bool | None:
            parser.add_argument(
                flag_of(field), dest=field.name, action=argparse.BooleanOptionalAction, default=None, **metadata
            )
        else:
            renamed = copy.copy(field)
            renamed.name = field.metadata.get("flag", field.name)
            renamed.metadata = metadata | {"dest": field.name}  # type: ignore[assignment]  # only read
            HfArgumentParser._parse_dataclass_field(parser, renamed)

    def parse(self, line: Sequence[str], check: Callable[..., None] | None = None) -> tuple[Any, ...]:
        """Return an instance of each dataclass; `check` raises ValueError for what they contradict each other in."""
        try:
            from_file, of_preset = self._further_words(line)
            named, *read, unknown = self.parse_args_into_dataclasses(
                [*of_preset, *from_file, *line], return_remaining_strings=True, look_for_args_file=False
            )
            if unknown:
                place = f"{named.config}: " if unknown[0] in from_file else ""
                self.error(f"{place}{self._nearest(unknown[0])}")
            for text in _texts(read):
                check_utf8(text)
            if check is not None:
                check(*read)
        except (OSError, ValueError) as error:
            self.error(str(error))
        return tuple(read)

    def _further_words(self, line: Sequence[str]) -> tuple[list[str], Sequence[str]]:
        """Return the words of the file that the line names, and those of the preset that one of them names."""
        first = argparse.ArgumentParser(prog=self.prog, add_help=False, allow_abbrev=False)
        first.error = self.error  # type: ignore[method-assign]  # one line
        first.add_argument("--config", type=Path)
        first.add_argument("--preset")
        file = first.parse_known_args(line)[0].config
        switches = [flag for one in self._actions if one.nargs == 0 for flag in one.option_strings]
        from_file = [] if file is None else [*words_of_file(file, switches), f"--config={file}"]
        return from_file, self.presets.get(first.parse_known_args([*from_file, *line])[0].preset, ())

    def _nearest(self, word: str) -> str:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            return f"unexpected {word!r}"
        near = difflib.get_close_matches(name, [flag for one in self._actions for flag in one.option_strings], 1, 0.0)
        return f"unknown option {name}; the nearest is {near[0]}"

    def error(self, message: str) -> NoReturn:
        """End with one line instead of the usage of all options."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (--help lists all options)\n")


def _texts(read: Sequence[Any]) -> Iterator[str]:
    """Yield the values of options that are text; what names files is left to the system, which takes any bytes."""
    for options in read:
        for one in dataclasses.fields(options):
            value = getattr(options, one.name) if "is_text" in one.metadata else None
            yield from [value] if isinstance(value, str) else value or []


def _usage(one: dataclasses.Field[Any]) -> str:
    """Return how the usage names a field that must be given or is an operand; nothing for others."""
    name = str(one.metadata.get("metavar", one.name.upper()))
    if "operand" in one.metadata:
        return {"?": f"[{name}]", "+": f"{name} ..."}.get(one.metadata.get("nargs", ""), name)
    required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    return f"{flag_of(one)} {name}" if required else ""
