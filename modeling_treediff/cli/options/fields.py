"""Fields of option dataclasses: help and default of an option are written once, by its owner."""

import dataclasses
import inspect
import re
from collections.abc import Iterable
from typing import Any

REQUIRED: Any = dataclasses.MISSING  # as a default


def operand(text: str, **metadata: Any) -> Any:
    """Return the field of a positional argument."""
    default = None if metadata.get("nargs") == "?" else REQUIRED
    return dataclasses.field(default=default, metadata={"operand": True, "help": text} | metadata)


def same_as(owner: type, name: str, **metadata: Any) -> Any:
    """Return a field with default and help of `owner`'s field of that name; metadata are added."""
    (source,) = (one for one in dataclasses.fields(owner) if one.name == name)
    merged = {"help": help_of(owner, name)} | dict(source.metadata) | metadata
    if source.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=source.default_factory, metadata=merged)
    return dataclasses.field(default=source.default, metadata=merged)


def help_of(owner: type, name: str) -> str:
    """Return the help of an attribute: its field's, else the lines of the class docstring's "Attributes"."""
    if dataclasses.is_dataclass(owner):
        for one in dataclasses.fields(owner):
            if one.name == name and "help" in one.metadata:
                return str(one.metadata["help"])
    found = re.search(rf"^    {name}: (.*?)(?=^    \S|^\S|\Z)", inspect.getdoc(owner) or "", re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"{owner.__name__} does not document {name}.")
    return " ".join(found[1].split()).removesuffix(".").replace("%", "%%")


def option(default: Any, text: str, **metadata: Any) -> Any:
    """Return the field of an option with its default, its help, and what else `add_argument` takes.

    The option is called like the field, or like `flag` among the metadata. With `is_text` it is text to write or to
    tokenise, and no name of a file: it must be Unicode; `presets` are further words of the command line by its value.
    """
    return dataclasses.field(default=default, metadata={"help": text} | metadata)


def trust_option() -> Any:
    """Return the field that lets a tokenizer of others run its own code."""
    return option(False, "run the code that the tokenizer's own repository brings: only if you trust its authors")


def block_size_option() -> Any:
    """Return the field of another size of blocks than the model's own."""
    return option(None, "positions of a block, for a model that was trained with several (default: the model's own)")


def flag_of(one: dataclasses.Field[Any]) -> str:
    """Return the option of a field."""
    return f"--{one.metadata.get('flag', one.name).replace('_', '-')}"


def given(options: Any, names: Iterable[str] | None = None) -> list[str]:
    """Return the options of a dataclass that do not have their default, among the fields of these names or all."""
    return [
        flag_of(one)
        for one in dataclasses.fields(options)
        if (names is None or one.name in names) and getattr(options, one.name) != _default(one)
    ]


def check_exclusive(options: Any, *names: str) -> None:
    """Raise ValueError if more than one of the fields is given."""
    if len(clash := given(options, names)) > 1:
        raise ValueError(f"{' and '.join(clash)} exclude each other: leave out one of them.")


def _default(one: dataclasses.Field[Any]) -> Any:
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
