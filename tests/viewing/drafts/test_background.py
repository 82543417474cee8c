"""The newest item of a thread."""

import threading
import time

import pytest

from modeling_treediff.viewing.drafts import iterate_newest


def test_the_newest_of_waiting_items_is_given():
    taken, go_on = threading.Event(), threading.Event()

    def run(callback):
        callback(0)
        taken.wait(10)
        for item in (1, 2, 3):
            callback(item)
        go_on.set()

    items = iterate_newest(run)
    assert next(items) == 0
    taken.set()
    go_on.wait(10)
    assert list(items) == [3]


@pytest.mark.parametrize("how", ["closed", "stopped"])
def test_a_reader_that_wants_no_more_ends_the_thread(how):
    calls, stop, threads = [], threading.Event(), threading.active_count()

    def run(callback):
        while True:
            calls.append(len(calls))
            callback(calls[-1])
            time.sleep(0.001)

    items = iterate_newest(run, stop)
    next(items)
    if how == "closed":
        items.close()
        assert stop.is_set()
    else:
        stop.set()
        assert list(items)[-1:] in ([], [calls[-1]])
    assert threading.active_count() == threads


def test_an_error_comes_after_the_items_before_it():
    def run(callback):
        callback("first")
        raise ValueError("second")

    items = iterate_newest(run)
    assert next(items) == "first"
    with pytest.raises(ValueError, match="second"):
        next(items)
