"""One request to stop, however often it is passed on; the old behaviour after it and after the block."""

import os
import signal
import threading

import pytest

from modeling_treediff.training.run import signals
from modeling_treediff.training.run.signals import StopRequest, exit_code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_and_those_right_after_it_are_one_request(number):
    before = signal.signal(number, signal.default_int_handler)  # whatever the tests were started under
    try:
        with StopRequest() as request:
            assert request.number == 0
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert request.number == number
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_later_signal_ends_the_process(monkeypatch):
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", -1.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.number == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGINT)
        assert request.number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_other_than_the_first_train_without_handlers():
    seen = []

    def work():
        with StopRequest() as request:
            seen.append(request.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_a_process_that_is_to_outlive_its_terminal_does():
    """As nohup starts it; SIGINT, which shells ignore for what runs in the background, still stops it."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.number == 0
            os.kill(os.getpid(), signal.SIGINT)
            assert request.number == signal.SIGINT
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_exit_codes_are_those_of_a_shell():
    assert exit_code(signal.SIGTERM) == 143 and exit_code(signal.SIGINT) == 130 and exit_code(signal.SIGHUP) == 129
