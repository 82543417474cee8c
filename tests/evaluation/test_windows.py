"""Windows of texts: each token counted exactly once, with the context that precedes it."""

import numpy as np
import pytest
import torch
from helpers.eight_words import TEXTS, make_tokenizer

from modeling_treediff.evaluation import WindowProtocol, cut_windows, tokenize_texts
from modeling_treediff.text import pack_windows, tokenize_documents


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.mark.parametrize("length", [1, 2, 6, 7, 8, 13, 14, 15, 50])
@pytest.mark.parametrize(("window", "stride"), [(7, 7), (7, 3), (7, 1), (7, 6), (1, 1), (60, 20)])
def test_every_token_is_counted_exactly_once_and_the_context_is_what_precedes_it(length, window, stride):
    row = np.arange(length)
    windows = cut_windows(row, WindowProtocol(window, stride))
    counted = (windows.attention_mask == 1) & (windows.fixed_mask == 0)
    assert windows.token_ids[counted].tolist() == row.tolist()  # once, and in order
    assert counted.any(dim=1).all()  # no window for nothing
    for tokens, seen in zip(windows.token_ids, windows.attention_mask, strict=True):
        run = tokens[seen == 1]
        assert torch.equal(run, torch.arange(run[0], run[0] + len(run)))  # contiguous, padding on the right
    assert not (windows.fixed_mask & (1 - windows.attention_mask)).any()
    assert (windows.fixed_mask[1:].sum(dim=1) == window - stride).all() and not windows.fixed_mask[0].any()


def test_without_overlap_the_windows_are_those_of_training_and_the_rest(tokenizer):
    row = tokenize_texts(TEXTS, tokenizer)
    assert np.array_equal(row, tokenize_documents(TEXTS, tokenizer))
    windows = cut_windows(row, WindowProtocol(5, 5))
    packed = torch.from_numpy(pack_windows(row, 5).astype(np.int64))
    assert torch.equal(windows.token_ids[: len(packed)], packed) and windows.attention_mask[: len(packed)].all()
    assert len(windows) == len(packed) + 1 and windows.attention_mask[-1].sum() == len(row) % 5


def test_eos_ends_every_text_if_asked_for(tokenizer):
    assert tokenize_texts(["a b", "c"], tokenizer).tolist() == [2, 3, 0, 4, 0]
    assert tokenize_texts(["a b", "c"], tokenizer, eos=False).tolist() == [2, 3, 4]


@pytest.mark.parametrize("stride", [0, -1, 5])
def test_strides_that_lose_tokens_are_refused(stride):
    with pytest.raises(ValueError, match=r"stride must lie in 1\.\.4"):
        WindowProtocol(4, stride)
