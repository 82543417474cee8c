"""How documents become windows: what cannot be is refused before anything is read."""

import pytest

from modeling_treediff.training import DataOptions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_length": 0}, "at least one token, got 0"),
        ({"hold_out_every": 1}, "One document in 1 cannot be held out"),
        ({"chat": True, "streaming": True}, "Conversations are not streamed"),
        ({"chat": True, "separate_documents": True}, "leave out separate_documents"),
        ({"pad_answers": True}, "give chat, too"),
    ],
)
def test_impossible_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataOptions(**({"sequence_length": 8} | settings))
