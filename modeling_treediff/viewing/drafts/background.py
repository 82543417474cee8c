"""A function with a callback as an iterator: it runs in a thread and stops with its reader."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Stopped(Exception):
    """Raised inside the thread by its callback to end it."""


def iterate_newest(
    run: Callable[[Callable[[Item], None]], object],
    stop: threading.Event | None = None,
    seconds: float = 0.0,
) -> Iterator[Item]:
    """Run `run(callback)` in a thread and give what it calls back with; of several waiting items only the newest.

    The last item is always given. Closing the iterator, or setting `stop`, ends the thread at its next call back.

    Args:
        run: calls back with items; an error it raises is raised here, after the items before it.
        stop: set it, from any thread, to end the run early.
        seconds: how long `run` waits after each item, where it would be too fast for people.

    """
    stop = stop or threading.Event()
    items: queue.SimpleQueue[tuple[Item] | None] = queue.SimpleQueue()
    errors: list[Exception] = []

    def callback(item: Item) -> None:
        items.put((item,))
        if stop.wait(seconds):
            raise Stopped

    def work() -> None:
        try:
            run(callback)
        except Stopped:
            pass
        except Exception as error:  # raised again where it can be handled
            errors.append(error)
        finally:
            items.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        more = True
        while more:
            newest, more = _newest(items)
            if newest is not None:
                yield newest[0]
        if errors:
            raise errors[0]
    finally:
        stop.set()
        thread.join()


def _newest(items: "queue.SimpleQueue[tuple[Item] | None]") -> tuple[tuple[Item] | None, bool]:
    """Wait for an item; return the newest there is, and whether more may come."""
    newest = None
    while (item := items.get()) is not None:
        newest = item
        if items.empty():
            return newest, True
    return newest, False
