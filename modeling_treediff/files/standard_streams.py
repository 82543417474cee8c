"""Standard output and standard error that never end a program.

A reader that is gone, a full disk or a terminal that was closed loses the text; characters that the output does not
have are spelled.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import IO, Any, cast


class LossyStream:
    """Passes all on to a stream until it cannot be written; from then on drops it.

    Attributes:
        error: why it could not be written, None as long as it could.

    """

    def __init__(self, stream: IO[str] | None) -> None:
        """Write to a stream, or to none, as Python gives a process that was started without one."""
        self.stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream
        self.error: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, if that is possible; return how many characters were taken."""
        with self._dropping():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what is kept, if that is possible."""
        with self._dropping():
            self.stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            # What is still kept goes nowhere, or Python would fail on it again when it ends.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextmanager
def lossy_output() -> Iterator[LossyStream]:
    """Let nothing that is printed in the block fail; give the stream of standard output, which knows whether it did."""
    out, err = LossyStream(sys.stdout), LossyStream(sys.stderr)
    with redirect_stdout(cast(IO[str], out)), redirect_stderr(cast(IO[str], err)):
        try:
            yield out
        finally:
            out.flush()
            err.flush()
