"""UTF-8 text files, possibly compressed: their documents, between blank lines or others; read block by block."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from modeling_treediff.files.kinds import ARCHIVE_ERRORS, DOCUMENT_BOUNDS, OPENERS, FileKind

UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BLOCK_BYTES = 2**20  # a file is read in blocks of at least this size


def iterate_text(
    path: Path, kind: FileKind, bounds: str, max_characters: int | None = None, first: int = 0
) -> Iterator[tuple[int, str]]:
    """Yield the documents of a file with their numbers, as they stand there, from document number `first` on.

    Args:
        path: of the file.
        kind: says how it is compressed.
        bounds: of the documents, one of DOCUMENT_BOUNDS.
        max_characters: longer documents come in pieces of at most this length, which share a number.
        first: number of the first document; those before it are read and left out.

    Raises:
        ValueError: bytes that are not UTF-8, or a damaged archive.

    """
    text_of, bound = _Utf8Decoder(path), re.compile(DOCUMENT_BOUNDS[bounds])
    number, rest, block = 0, "", b" "
    try:
        with OPENERS.get(kind.compression, open)(path, "rb") as stream:
            while block:
                # Blocks grow with an unfinished document, so that it is searched a few times only, however long.
                block = stream.read(max(BLOCK_BYTES, len(rest)))
                *documents, rest = bound.split(rest + text_of(block))
                for document in documents:
                    if number >= first:
                        yield from ((number, piece) for piece in cut_at_spaces(document, max_characters))
                    number += 1
                *pieces, rest = cut_at_spaces(rest, max_characters)
                if number >= first:
                    yield from ((number, piece) for piece in pieces)
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"{path} cannot be decompressed: {error}.") from error
    if number >= first:
        yield number, rest


class _Utf8Decoder:
    """Decodes a file block by block; an empty block ends it."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes_read, self.decoder = path, 0, codecs.getincrementaldecoder("utf-8")()

    def __call__(self, block: bytes) -> str:
        pending = len(self.decoder.getstate()[0])
        try:
            text = self.decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            position = self.bytes_read - pending + error.start
            found = "utf-16" if position == 0 and error.object[:2] in UTF_16_MARKS else "latin1"
            raise ValueError(
                f"{self.path} is not UTF-8: byte {position} is 0x{error.object[error.start]:02x}. Convert it first, "
                f"for example with iconv -f {found} -t utf-8."
            ) from error
        self.bytes_read += len(block)
        return text


def cut_at_spaces(document: str, max_characters: int | None) -> list[str]:
    """Cut a document into pieces, each as long as allowed; the last one may still grow without changing the others."""
    if max_characters is None or len(document) <= max_characters:
        return [document]
    up_to_a_space, no_space = rf"\S.{{0,{max_characters - 1}}}(?!\S)", rf"\S{{{max_characters}}}"
    return re.findall(rf"{up_to_a_space}|{no_space}|\s\Z", document, re.DOTALL)
