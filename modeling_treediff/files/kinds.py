"""Kinds of files that hold text: the format and the compression of each, told by its endings and its first bytes.

One rule for all that reads texts: the last ending names the compression, if it is one of those, and the ending before
it the format. Only where that names no format `text_format` does. What the file holds must then be of that kind.
"""

import bz2
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = "text"
FORMATS = (TEXT, "json", "csv", "parquet")
FORMAT_OF_ENDING = {".txt": TEXT, ".md": TEXT, ".text": TEXT, ".jsonl": "json"} | {f".{one}": one for one in FORMATS}
DOCUMENT_BOUNDS = {"blank-lines": r"\n\s*\n", "lines": r"\n", "whole-file": r"(?!)"}  # between those of a text file
OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
ARCHIVE_ERRORS = (lzma.LZMAError, zlib.error, EOFError, OSError)  # what those raise for a damaged file
SIGNATURES = {  # how files begin that are no plain text, and the ending that says so
    rb"\xfd7zXZ\x00": ".xz",
    rb"\x1f\x8b": ".gz",
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": ".bz2",
    rb"PAR1\x15": ".parquet",
    rb"\x28\xb5\x2f\xfd": ".zst",
    rb"\x04\x22\x4d\x18": ".lz4",
    rb"PK[\x03\x05]": ".zip",
    rb"7z\xbc\xaf\x27\x1c": ".7z",
}
LONGEST_SIGNATURE = 10  # bytes


@dataclass(frozen=True)
class FileKind:
    """How a file is read.

    Attributes:
        format: one of FORMATS.
        compression: its ending, one of OPENERS, or "".

    """

    format: str
    compression: str = ""

    def __str__(self) -> str:
        return self.format + self.compression

    @property
    def ending(self) -> str:
        """The ending that names what the first bytes must show; "" where they show nothing."""
        return self.compression or (".parquet" if self.format == "parquet" else "")


def file_kind(source: str | os.PathLike[str], text_format: str | None = None) -> FileKind | None:
    """Return the kind of a single file by its name, whether it is there or not.

    Args:
        source: a file, a folder, or the name of a dataset on the Hub.
        text_format: the format, one of FORMATS, where the name does not say it.

    Returns:
        The kind; None for a folder or a name on the Hub.

    Raises:
        ValueError: a format that the name contradicts or that is not known, or a file whose name says none.

    """
    path = Path(source)
    if text_format not in (None, *FORMATS):
        raise ValueError(f"Unknown text format {text_format!r}; known: {', '.join(FORMATS)}.")
    if path.is_dir():
        if text_format is not None:
            raise ValueError(f"{path} is a folder, and --text-format is for a single file: leave it out.")
        return None
    compression = path.suffix.lower() if path.suffix.lower() in OPENERS else ""
    named = FORMAT_OF_ENDING.get(Path(path.stem if compression else path.name).suffix.lower())
    if named and text_format not in (None, named):
        raise ValueError(f"{path} is {named} by its ending, not {text_format}: rename it, or leave out --text-format.")
    if found := named or text_format:
        return FileKind(found, compression)
    if path.is_file():
        _check_content(path, compression)
        raise ValueError(
            f"The name of {path} has an unknown ending; known: {', '.join(FORMAT_OF_ENDING)}, also with "
            f"{', '.join(OPENERS)} behind. Rename it, or give its format with --text-format ({', '.join(FORMATS)})."
        )
    return None


def check_file(path: Path, kind: FileKind) -> None:
    """Raise unless a file is there and begins as its kind does.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it holds something else, or a compressed Parquet file.

    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {kind.format} file {path}.")
    if kind.compression and kind.format == "parquet":
        raise ValueError(f"{path} is compressed, as Parquet files are inside already: decompress it.")
    _check_content(path, kind.ending)


def _check_content(path: Path, ending: str) -> None:
    """Raise ValueError if a file holds something else than what an ending says, "" for plain text."""
    with path.open("rb") as stream:
        head = stream.read(LONGEST_SIGNATURE)
    shown = next((name for pattern, name in SIGNATURES.items() if re.match(pattern, head)), "")
    if shown == ending:
        return
    if not shown:
        raise ValueError(f"{path} holds no {ending} data, whatever its name says: rename it, or get the file again.")
    if shown in OPENERS or shown == ".parquet":
        raise ValueError(f"{path} holds {shown} data: let its name end in {shown}.")
    raise ValueError(f"{path} holds {shown} data, which is not read: decompress it first.")
