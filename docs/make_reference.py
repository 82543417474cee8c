"""Write docs/api.md: the public names, their signatures and their docstrings as they are.

python docs/make_reference.py            # after changing a docstring
python docs/make_reference.py --check    # fail if docs/api.md is not what the docstrings say
"""

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import modeling_treediff
from modeling_treediff.files.atomic_files import write_atomically

PAGE = Path(__file__).parent / "api.md"
PACKAGE = "modeling_treediff"
MODULES = (PACKAGE, *(f"{PACKAGE}.{part}" for part in ("corpora", "building", "training", "evaluation", "viewing")))
INTRODUCTION = """# API reference

Made from the docstrings by `docs/make_reference.py`. What a class has from a library is described there:
models have all that transformers' `PreTrainedModel` has.
"""
# The modules of classes, and addresses of objects: not the same everywhere.
INCIDENTAL = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])| at 0x[0-9a-f]+")
LONG = 100


class Unquoted(str):
    """An annotation that was given as a string."""

    __repr__ = str.__str__


def unquoted(annotation: Any) -> Any:  # noqa: ANN401 -- a type or a string
    """Return an annotation that is shown as it would be without quotes."""
    return Unquoted(annotation) if isinstance(annotation, str) else annotation


def signature_of(thing: Any) -> str:  # noqa: ANN401 -- a class, function or method
    """Return the signature, one parameter to a line where it is long; of a dataclass, its own fields."""
    signature = inspect.signature(thing)
    hidden = {"self"}
    if isinstance(thing, type) and is_dataclass(thing):
        own = {name for base in own_bases(thing) for name in inspect.get_annotations(base)}
        hidden |= signature.parameters.keys() - own
    parameters = [
        one.replace(annotation=unquoted(one.annotation))
        for name, one in signature.parameters.items()
        if name not in hidden
    ]
    result = signature.empty if isinstance(thing, type) else unquoted(signature.return_annotation)
    signature = signature.replace(parameters=parameters, return_annotation=result)
    text = str(signature)
    if len(text) > LONG:
        after = str(signature.replace(parameters=[]))[1:]
        text = "".join(["(\n", *(f"    {line},\n" for line in written(parameters)), after])
    return INCIDENTAL.sub("", text)


def written(parameters: list[inspect.Parameter]) -> Iterator[str]:
    """Yield each parameter as in a signature, with the bare star before those that are keywords only."""
    kinds = [parameter.kind for parameter in parameters]
    first = kinds.index(inspect.Parameter.KEYWORD_ONLY) if inspect.Parameter.KEYWORD_ONLY in kinds else None
    for index, parameter in enumerate(parameters):
        if index == first and inspect.Parameter.VAR_POSITIONAL not in kinds:
            yield "*"
        yield str(parameter)


def section(title: str, level: int, *parts: str | None) -> str:
    """Return a heading and a block that Markdown leaves alone."""
    text = "\n\n".join(filter(None, parts))
    return f"\n{'#' * level} {title}\n\n```text\n{text}\n```\n"


def describe_class(cls: type) -> str:
    """Return a class, then what it has itself or from classes that are not public."""
    more = "".join(f"It has all that {base.__name__} has." for base in public_bases(cls))
    parts = [section(cls.__name__, 3, f"class {cls.__name__}{signature_of(cls)}", inspect.getdoc(cls), more)]
    for name, member in own_members(cls).items():
        title, value = f"{cls.__name__}.{name}", getattr(cls, name)
        shown = f"{name}: a property" if isinstance(member, property) else f"{name}{signature_of(value)}"
        parts.append(section(title, 4, shown, inspect.getdoc(value)))
    return "".join(parts)


def own_bases(cls: type) -> list[type]:
    """Return the class and its bases in this package, the class last."""
    return [base for base in reversed(cls.__mro__) if base.__module__.startswith(PACKAGE)]


def public_bases(cls: type) -> list[type]:
    """Return the bases that are described themselves."""
    return [base for base in own_bases(cls)[:-1] if getattr(modeling_treediff, base.__name__, None) is base]


def own_members(cls: type) -> dict[str, Any]:
    """Return public methods and properties, but for those that public bases have as well."""
    kinds = (FunctionType, classmethod, staticmethod, property)
    there = {inherited for base in public_bases(cls) for inherited in base.__mro__}
    return {
        name: member
        for base in own_bases(cls)
        if base not in there
        for name, member in vars(base).items()
        if isinstance(member, kinds) and not name.startswith("_")
    }


def describe_module(module: ModuleType) -> str:
    """Return the public names of a module, in alphabetical order."""
    parts = [f"\n## {module.__name__}\n\n{inspect.getdoc(module)}\n"]
    for name in sorted(module.__all__, key=str.lower):
        thing = getattr(module, name)
        if isinstance(thing, type):
            parts.append(describe_class(thing))
        elif callable(thing):
            parts.append(section(name, 3, f"{name}{signature_of(thing)}", inspect.getdoc(thing)))
        elif not name.startswith("_"):
            parts.append(section(name, 3, f"{name} = {thing!r}"))
    return "".join(parts)


def render() -> str:
    """Return the page."""
    return INTRODUCTION + "".join(describe_module(importlib.import_module(name)) for name in MODULES)


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    options, text = parser.parse_args(), render()
    if options.check:
        sys.exit(None if PAGE.read_text(encoding="utf-8") == text else f"{PAGE} is out of date: run make_reference.py.")
    write_atomically(PAGE, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
