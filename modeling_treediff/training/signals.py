"""SIGTERM and SIGINT: the first asks the run to save and stop, a later one ends the process at once."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on the signal that a cluster or a terminal has sent to its workers already: that is one request.
SAME_REQUEST_SECONDS = 3.0


class StopRequest:
    """While its block runs, holds the number of the signal that asked for a stop, 0 before.

    A second signal more than three seconds later does what it would do without this: it ends the process.
    """

    def __init__(self) -> None:
        """Wait for no signal yet; the handlers are installed by `with`."""
        self.number, self._since = 0, 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > SAME_REQUEST_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def leave_to_parent(worker: int) -> None:
    """Ignore the signals in a process that loads data: who is sent one with its whole group still needs its batches."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_code(number: int) -> int:
    """Return what shells and clusters take for the end by this signal: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + number
