"""Groups of tokens by place, letters and frequency."""

import numpy as np
from helpers.vocabularies import byte_level, tokenizer_of

from modeling_treediff.evaluation.token_groups import WORD_PLACES, frequency_deciles, group_tokens


def test_places_in_words_and_capitals():
    pieces = [b" the", b" in", b"vent", b"ion", b" In", b",", b'"', b"We", b" 19", b" Act", b" dog"]
    tokenizer = tokenizer_of(*map(byte_level, pieces))
    *_, places, capitals = group_tokens(np.arange(11), tokenizer, 11, np.ones(11))
    function, word, first, later, none = range(5)
    assert places.index.tolist() == [function, first, later, later, function, none, none, function, none, word, word]
    assert capitals.index.tolist() == [1, 1, 2, 2, 0, 2, 2, 0, 2, 0, 1]
    assert places.groups == WORD_PLACES


def test_tenths_hold_a_tenth_of_the_text_each_and_unseen_tokens_are_rare():
    counts = np.random.default_rng(0).zipf(1.5, 4000).clip(max=3000) - 1
    decile = frequency_deciles(counts)
    mass = np.bincount(decile, counts) / counts.sum()
    assert abs(mass - 0.1).max() < counts.max() / counts.sum() + 1e-9
    ordered = counts[np.argsort(decile, kind="stable")]
    lows, highs = (np.array([pick(counts[decile == one]) for one in range(10)]) for pick in (np.min, np.max))
    assert (lows[:-1] >= highs[1:]).all() and (decile[counts == 0] == 9).all() and len(ordered) == 4000
