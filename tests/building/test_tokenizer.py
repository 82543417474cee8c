"""Tokenizers learned from a text give every text back."""

import pytest
from transformers import AutoTokenizer

from modeling_treediff.building import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat", "the dog sat on the log"] * 3, 270)


def test_round_trip_after_reload(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(reloaded) == 270
    for text in ["the cat , it 's . ", " \t\r\n\0\x1f\x7f ", "naïve 漢字 🙂\u200d e\u0301 \ufeff <|x|>", ""]:
        ids = reloaded(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert reloaded.decode(ids) == text
    assert {reloaded.bos_token_id, reloaded.eos_token_id, reloaded.pad_token_id, reloaded.unk_token_id} == {0}


def test_too_small_text():
    with pytest.raises(ValueError, match="too small for 9000 tokens"):
        train_tokenizer(["a few words"], 9000)
    with pytest.raises(ValueError, match="at least 257"):
        train_tokenizer(["a few words"], 256)
    with pytest.raises(ValueError, match="at most 1,048,576, got 1000000000"):
        train_tokenizer(["text"], 10**9)
