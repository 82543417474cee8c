"""Outputs that fail in the ways in which those of a process do."""

import contextlib
import io
import os
import pty
from collections.abc import Iterator


@contextlib.contextmanager
def broken_output(kind: str, encoding: str = "utf-8") -> Iterator[io.TextIOWrapper]:
    """A text stream onto a full disk, a pipe whose reader has left, or a terminal that is gone."""
    if kind == "full":
        file = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, file = os.pipe() if kind == "left" else pty.openpty()
        os.close(reader)
    stream = open(file, "w", encoding=encoding)
    try:
        yield stream
    finally:
        with contextlib.suppress(OSError):
            stream.close()
