"""Names and kinds of tokens in the three notations of subword vocabularies, and which stand for a node."""

import numpy as np
import pytest
from helpers.processes import SAMPLE
from helpers.vocabularies import byte_level, tokenizer_of
from transformers import AutoTokenizer

from modeling_treediff import VocabularyTree
from modeling_treediff.text import KINDS, find_tokens, leading_tokens, token_kinds, token_names
from modeling_treediff.text.mask_token import with_mask_token


def read(tokenizer, vocab_size: int) -> list[tuple[str, str]]:
    kinds = [KINDS[kind] for kind in token_kinds(tokenizer, vocab_size)]
    return list(zip(token_names(tokenizer, vocab_size), kinds, strict=True))


def test_byte_level_tokens():
    contents = [b" the", b"ing", "é".encode(), " дом".encode(), b"\xe2\x80", b" \xff", b"\n\n", b" 19", b"...", b"\x1b"]
    tokenizer = tokenizer_of(*map(byte_level, contents), special=("<|end of text|>",))
    assert read(tokenizer, 11) == [
        ("▁the", "Latin word start"),
        ("ing", "Latin continuation"),
        ("é", "Latin continuation"),
        ("▁дом", "non-Latin"),
        ("<0xE2 0x80>", "byte"),
        ("<0x20 0xFF>", "byte"),
        ("⏎⏎", "whitespace"),
        ("▁19", "digit"),
        ("...", "punctuation"),
        ("<U+001B>", "punctuation"),  # an escape character must not reach a terminal
        ("<|end▁of▁text|>", "special"),
    ]


def test_sentencepiece_tokens():
    tokenizer = tokenizer_of("▁the", "ing", "<0x0A>", "▁", "▁▁", "三", "2", "▁(", "<unused3>", special=("</s>",))
    expected = (
        "Latin word start,Latin continuation,byte,whitespace,whitespace,non-Latin,digit,punctuation,unused,special"
    )
    assert [kind for _, kind in read(tokenizer, 10)] == expected.split(",")
    assert token_names(tokenizer, 10)[:5] == ["▁the", "ing", "<0x0A>", "▁", "▁▁"]


def test_wordpiece_tokens():
    tokenizer = tokenizer_of("the", "##ing", "##s", "[unused7]", "##д", "#", "##", "1999", special=("[CLS]",))
    assert read(tokenizer, 9) == [
        ("the", "Latin word start"),
        ("##ing", "Latin continuation"),
        ("##s", "Latin continuation"),
        ("[unused7]", "unused"),
        ("##д", "non-Latin"),
        ("#", "punctuation"),
        ("##", "punctuation"),
        ("1999", "digit"),
        ("[CLS]", "special"),
    ]


def test_ids_without_a_token_are_unused_and_ids_outside_are_refused():
    tokenizer = tokenizer_of("▁a", "▁b", first_id=1)
    assert read(tokenizer, 4) == [
        ("<unused 0>", "unused"),
        ("▁a", "Latin word start"),
        ("▁b", "Latin word start"),
        ("<unused 3>", "unused"),
    ]
    with pytest.raises(ValueError, match="token id 2, the tree's tokens are 0..1"):
        token_names(tokenizer, 2)


def test_a_name_is_what_the_tokenizer_decodes():
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    names, kinds = token_names(tokenizer, 8192), token_kinds(tokenizer, 8192)
    for token in np.flatnonzero(kinds >= KINDS.index("digit")):
        decoded = tokenizer.decode([token])
        if decoded.isprintable():
            assert names[token] == decoded.replace(" ", "▁")
    for token in np.flatnonzero(kinds == KINDS.index("byte")):
        assert "\N{REPLACEMENT CHARACTER}" in tokenizer.decode([token])
    assert all(name and name.isprintable() and " " not in name.replace(" 0x", "") for name in names)


def test_the_mask_of_a_model_s_tokenizer_is_no_token():
    tokenizer = tokenizer_of("▁a", "b")
    assert read(with_mask_token(tokenizer, 2), 2) == read(tokenizer, 2)


def test_search_ranks_the_exact_name_first():
    names = ["war", "▁War", "▁war", "##war", "warm", "#3"]
    assert find_tokens(names, " war") == [2, 0, 3, 1]
    assert find_tokens(names, "war") == [0, 2, 3, 1]
    assert find_tokens(names, "#3") == [3, 5]  # an id, then a name
    assert find_tokens(names, "#99") == []
    assert find_tokens(names, "peace") == []


def test_leading_tokens():
    """Clusters of 4, 2 and 1 tokens; slot 1 of the root is empty, tokens are not in order."""
    tree = VocabularyTree.from_paths(np.array([[3, 0], [0, 2], [0, 0], [2, 1], [0, 1], [2, 0], [0, 3]]), 4)
    root, first = tree.root_id, tree.root_id + 1
    assert leading_tokens(tree, first).tolist() == [1, 2, 4, 6]  # its representative, then by path
    assert leading_tokens(tree, first, np.array([9, 0, 5, 9, 0, 9, 7])).tolist() == [6, 2, 1, 4]
    assert sorted(leading_tokens(tree, root)) == list(range(7))
