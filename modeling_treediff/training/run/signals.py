"""SIGTERM, SIGINT, SIGHUP: the first asks the run to save and stop, a later one ends the process at once."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

# SIGHUP is a terminal that was closed; Windows has none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
# A launcher passes on the signal that a cluster or a terminal has sent to its workers already: that is one request.
SAME_REQUEST_SECONDS = 3.0
# Set by `accelerate launch` and by torchrun.
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")


class StopRequest:
    """Notes, while its block runs, the signal that asked for a stop.

    A second signal more than three seconds later does what it would do without this: it ends the process.
    """

    def __init__(self) -> None:
        """Wait for no signal yet; the handlers are installed by `with`."""
        self._received, self._since, self._parent = 0, 0.0, os.getppid()
        self._launched = any(name in os.environ for name in LAUNCHED)
        self._before: dict[signal.Signals, Any] = {}

    @property
    def number(self) -> int:
        """The signal's number, 0 before there is one; SIGTERM when the launcher is gone, which ends without a word."""
        orphaned = self._launched and os.getppid() != self._parent
        return self._received or (signal.SIGTERM if orphaned else 0)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS if not _by_nohup(number)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > SAME_REQUEST_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _by_nohup(number: signal.Signals) -> bool:
    """Tell whether this is SIGHUP and the process was started to outlive its terminal."""
    return number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN


def leave_to_parent(worker: int) -> None:
    """Ignore the signals in a process that loads data: who is sent one with its whole group still needs its batches."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_code(number: int) -> int:
    """Return what shells and clusters take for the end by this signal: 143 for SIGTERM, 130 for SIGINT, 129 SIGHUP."""
    return 128 + number
