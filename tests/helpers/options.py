"""Options of subcommands, parsed without running anything."""

import contextlib
import importlib
import io
from types import ModuleType

from modeling_treediff.cli.options.parser import OptionParser


def options_module(subcommand: str) -> ModuleType:
    return importlib.import_module(f"modeling_treediff.cli.options.{subcommand.replace('-', '_')}")


def parse(subcommand: str, *line: str) -> tuple:
    """The option dataclasses of a subcommand, as this command line fills them."""
    module = options_module(subcommand)
    return OptionParser(module.OPTIONS, subcommand, "", "").parse(line, getattr(module, "check", None))


def refusal(subcommand: str, *line: str) -> str:
    """What the parser says of options that cannot be; it ends with 2 and one line."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            parse(subcommand, *line)
        except SystemExit as stop:
            assert stop.code == 2 and said.getvalue().count("\n") == 1
            return said.getvalue()
    raise AssertionError(f"{subcommand} {line} is not refused")
