"""What is printed arrives where it can, and nothing fails where it cannot."""

import io
import os
import sys

import pytest
from helpers.broken_outputs import broken_output

from modeling_treediff.files.standard_streams import LossyStream, lossy_output


def test_what_can_be_written_arrives_at_once_when_asked_for():
    kept = io.StringIO()
    stream = LossyStream(kept)
    print("first", "second", file=stream, flush=True)
    assert kept.getvalue() == "first second\n" and stream.error is None and not stream.isatty()


@pytest.mark.parametrize(("kind", "error"), [("full", OSError), ("left", BrokenPipeError), ("gone", OSError)])
@pytest.mark.parametrize("text", ["short", "long " * 10**5])
def test_what_cannot_be_written_is_dropped_and_known(kind, error, text):
    """At once or when the buffer is handed on; and nothing is left in it for Python's own end."""
    with broken_output(kind) as output, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        with lossy_output() as lost:
            for _ in range(3):
                print(text)
        assert isinstance(lost.error, error) and sys.stdout is output
        output.flush()
        output.close()


@pytest.mark.parametrize(("encoding", "written"), [("ascii", b"\\u2264 \\xb1"), ("cp1252", b"\\u2264 \xb1")])
def test_characters_that_the_output_does_not_have_are_spelled(encoding, written):
    output = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
    print("≤ ±", end="", file=LossyStream(output))
    assert output.buffer.getvalue() == written


def test_a_process_without_outputs_prints_nothing(monkeypatch):
    """As one that was started by `>&-` or without a console."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with lossy_output() as output:
        print("nowhere")
        assert not sys.stderr.isatty()
    assert output.error is None


def test_an_error_of_the_program_is_not_hidden():
    with broken_output("full") as output, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        with pytest.raises(FileNotFoundError), lossy_output():
            print("lost", flush=True)
            os.stat("no such file")
