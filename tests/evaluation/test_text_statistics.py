"""Statistics of texts against counts by hand, and at their limits."""

import math

import pytest

from modeling_treediff.evaluation import measure_texts
from modeling_treediff.evaluation.text_statistics import distinct_share, self_repetition, token_entropy


def test_entropy_is_that_of_the_shares():
    assert token_entropy("aabc") == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert token_entropy([7] * 50) == pytest.approx(0)
    assert token_entropy(range(50)) == pytest.approx(math.log(50))
    assert token_entropy("cbaa") == token_entropy("aabc")  # order does not count


def test_distinct_counts_over_all_texts_and_never_across_their_borders():
    texts = ["abab", "abc"]  # a b a b a b c; ab ba ab, ab bc; aba bab, abc; abab
    assert [distinct_share(texts, length) for length in (1, 2, 3, 4, 5)] == [3 / 7, 3 / 5, 3 / 3, 1 / 1, 0]
    assert distinct_share(["abababc"], 2) == 3 / 6  # joined they have another pair


def test_repetition_counts_within_one_text_only():
    assert self_repetition(["abcabcd"], 3) == pytest.approx(1 / 5)  # abc bca cab abc bcd
    assert self_repetition(["abcd", "abcd"], 3) == 0
    assert self_repetition(["aaaaa", "abcde"], 4) == pytest.approx(1 / 4)
    assert self_repetition(["abc"], 4) == 0  # too short to have any


def test_limits_of_all_figures():
    constant = measure_texts([[3] * 20] * 2)
    assert constant.entropy == pytest.approx(0) and constant.entropy_standard_error == 0
    assert constant.distinct == pytest.approx((1 / 40, 1 / 38, 1 / 36, 1 / 34))
    assert constant.self_repetition == pytest.approx(16 / 17)
    varied = measure_texts([list(range(20)), list(range(20, 40))])
    assert varied.entropy == pytest.approx(math.log(20))
    assert varied.distinct == (1, 1, 1, 1) and varied.self_repetition == 0
    assert (varied.num_texts, varied.num_tokens) == (2, 40)


def test_the_mean_and_its_error_are_over_texts():
    few = measure_texts(["aa", "ab", ""])  # entropies 0, ln 2, 0
    assert few.entropy == pytest.approx(math.log(2) / 3)
    # Sample variance 2 (1/3)^2 + (2/3)^2 over 2 = 1/3, in units of ln 2, of a mean of three.
    assert few.entropy_standard_error == pytest.approx(math.log(2) / 3)
    assert measure_texts(["ab"]).entropy_standard_error == math.inf
    with pytest.raises(ValueError, match="no text"):
        measure_texts([])
