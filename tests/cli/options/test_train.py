"""What to train on and how: options that exclude each other, and what becomes of the others."""

import pytest
from helpers.options import parse, refusal

from modeling_treediff.cli.options.train import TrainingText
from modeling_treediff.training import DataOptions


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--validation-text", "a", "--validation-split", "b"], "--validation-text and --validation-split exclude"),
        (["--validation-text", "a", "--hold-out-every", "5"], "--validation-text and --hold-out-every exclude"),
        (["--gradient-accumulation-steps", "2", "--global-batch-size", "8"], "exclude each other"),
        (["--pad-answers"], "give chat, too"),
        (["--documents", "lines", "--split", "test"], "--split, --documents: say of which text, with --text"),
        (["--chat", "--streaming"], "Conversations are not streamed"),
        (["--sequence-length", "0"], "--sequence-length must be at least 1"),
        (["--max-steps", "0"], "max_steps must be at least 1"),
        (["--trackers", "mlflow"], "invalid choice: 'mlflow'"),
        (["--from", "a", "--layers", "2"], "leave out --layers"),
    ],
)
def test_contradictions_are_refused(line, message):
    assert message in refusal("train", *line)


def test_how_documents_become_windows_goes_to_the_data():
    text = parse("train", "--chat", "--pad-answers", "--hold-out-every", "7")[0]
    assert text.data_options(32) == DataOptions(32, chat=True, pad_answers=True, hold_out_every=7)
    assert TrainingText(streaming=True).data_options(8) == DataOptions(8, streaming=True)
