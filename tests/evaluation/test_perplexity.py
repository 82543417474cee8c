"""Likelihoods with their errors: against counts by hand and models that are known exactly."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.eight_words import BINARY, FLAT, TEXTS, make_tokenizer, uniform_model
from helpers.models import tiny_model

from modeling_treediff import VocabularyTree
from modeling_treediff.evaluation import WindowProtocol, evaluate_texts, tokenize_texts
from modeling_treediff.evaluation.perplexity import WINDOWS_PER_CALL


@pytest.fixture
def tokenizer():
    return make_tokenizer()


def constant_model(tree, scores):
    """The scores (D, K) of the children do not depend on the text."""
    model = tiny_model(tree, head="child")
    with torch.no_grad():
        for level, score in zip(model.head.levels, scores, strict=True):
            level.weight.zero_()
            level.bias.copy_(score)
    return model


@pytest.mark.parametrize("tree", [FLAT, BINARY], ids=["flat", "binary"])
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (5, 5), (5, 2)])
def test_a_uniform_model_needs_log_v_nats_per_token_whatever_is_drawn(tokenizer, tree, window, stride):
    result = evaluate_texts(uniform_model(tree), tokenizer, TEXTS, WindowProtocol(window, stride), seed=stride)
    assert result.nelbo == pytest.approx(math.log(8), rel=1e-6)
    assert result.perplexity == pytest.approx(8, rel=1e-5)
    assert result.level_losses == pytest.approx([math.log(8) / tree.tree_depth] * tree.tree_depth, rel=1e-6)
    assert result.num_tokens == 14 + 3 and result.num_texts == 3 and result.num_unknown == 0
    assert result.num_bytes == 10 + 5 + 18  # é has two bytes
    assert result.bits_per_byte == pytest.approx(17 * 3 / 33, rel=1e-6)  # 3 bits for each token


def test_without_eos_its_nats_are_not_counted(tokenizer):
    result = evaluate_texts(uniform_model(FLAT), tokenizer, TEXTS, WindowProtocol(5, 5, eos=False))
    assert result.num_tokens == 14 and result.bits_per_byte == pytest.approx(14 * 3 / 33, rel=1e-6)


def known_nats(tree, scores, token_ids):
    """Nats per token and per level of a constant model, from its tables."""
    log_p = torch.log_softmax(scores, dim=-1)
    return torch.stack([-log_p[level][tree.paths[token_ids, level]] for level in range(tree.tree_depth)]).mean(dim=1)


@pytest.mark.parametrize("tree", [FLAT, BINARY], ids=["flat", "binary"])
def test_estimates_are_unbiased_and_intervals_cover_the_truth(tokenizer, tree):
    scores = torch.randn(tree.tree_depth, tree.max_branching, generator=torch.Generator().manual_seed(0))
    model = constant_model(tree, scores)
    texts = TEXTS * 4
    truth = known_nats(tree, scores, torch.from_numpy(tokenize_texts(texts, tokenizer)))
    protocol = WindowProtocol(6, 4)
    results = [evaluate_texts(model, tokenizer, texts, protocol, num_samples=6, seed=seed) for seed in range(60)]
    values = np.array([result.nelbo for result in results])
    assert abs(values.mean() - float(truth.sum())) < 4 * values.std() / math.sqrt(60) + 1e-3 * float(truth.sum())
    levels = np.array([result.level_losses for result in results])
    assert np.allclose(levels.mean(axis=0), truth, atol=4 * levels.std(axis=0).max() / math.sqrt(60) + 2e-3)
    covered = [low <= float(truth.sum()) <= high for low, high in (result.confidence_interval for result in results)]
    assert np.mean(covered) > 0.85
    errors = np.array([result.standard_error for result in results])
    assert 0.6 * values.std() < errors.mean() < 3 * values.std()  # honest, and not by being useless


def test_seeds_reproduce_and_batch_sizes_do_not_matter(tokenizer):
    model, protocol = tiny_model(BINARY), WindowProtocol(4, 4)
    texts = TEXTS * 50  # 213 windows: several calls, none of them full
    first = evaluate_texts(model, tokenizer, texts, protocol, seed=1)
    assert first.num_windows == 213 > WINDOWS_PER_CALL
    assert evaluate_texts(model, tokenizer, texts, protocol, seed=1) == first
    other = evaluate_texts(model, tokenizer, texts, protocol, seed=2)
    assert other.nelbo != first.nelbo
    assert abs(other.nelbo - first.nelbo) < 4 * math.hypot(first.standard_error, other.standard_error)
    small = evaluate_texts(model, tokenizer, texts, protocol, seed=1, batch_size=7)
    assert abs(small.nelbo - first.nelbo) < 4 * math.hypot(first.standard_error, small.standard_error)


def test_many_parts_are_pooled_like_one(tokenizer, monkeypatch):
    scores = torch.linspace(-1, 1, 8)[None]
    model, texts, protocol = constant_model(FLAT, scores), TEXTS * 20, WindowProtocol(4, 3)
    whole = evaluate_texts(model, tokenizer, texts, protocol, num_samples=4)
    monkeypatch.setattr("modeling_treediff.evaluation.perplexity.WINDOWS_PER_CALL", 9)
    parts = evaluate_texts(model, tokenizer, texts, protocol, num_samples=4)
    assert parts.num_tokens == whole.num_tokens
    assert abs(parts.nelbo - whole.nelbo) < 4 * math.hypot(parts.standard_error, whole.standard_error)
    assert parts.standard_error == pytest.approx(whole.standard_error, rel=0.3)


def test_context_from_overlapping_windows_reaches_the_model(tokenizer):
    """Given tokens must be seen: other tokens before the counted ones change their likelihood."""
    model = tiny_model(FLAT)
    results = [
        evaluate_texts(model, tokenizer, [start + " a b c d"], WindowProtocol(8, 4), num_samples=64)
        for start in ("a a a a a a a a", "the é the é the é the é")
    ]
    assert results[0].num_windows == 3 and results[0].nelbo != results[1].nelbo


def test_unknown_words_are_reported(tokenizer):
    assert evaluate_texts(uniform_model(FLAT), tokenizer, ["a strange word", "b"]).num_unknown == 2


def test_a_single_corruption_has_no_error_and_still_gives_json(tokenizer):
    result = evaluate_texts(uniform_model(FLAT), tokenizer, ["a"])
    assert result.standard_error == math.inf and result.confidence_interval == (0, math.inf)
    facts = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert facts["standard_error"] is None and facts["bits_per_byte_interval"] == [0, None]


def test_the_result_states_its_protocol(tokenizer):
    packed = evaluate_texts(uniform_model(FLAT), tokenizer, TEXTS).to_dict()["protocol"]
    assert (packed["sequence_length"], packed["stride"], packed["eos"]) == (16, 16, True)
    assert "windows of 16 tokens, stride 16, without overlap" in packed["description"]
    assert "each followed by EOS" in packed["description"]
    strided = str(WindowProtocol(16, 4, eos=False))
    assert "each but the first given its first 12 tokens" in strided and "without EOS" in strided


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "no text to evaluate"),
        (["a", ""], {}, "Text 1 .* of 2 is empty"),
        ("a b", {}, "a single string"),
        ([" "], {"protocol": WindowProtocol(4, 4, eos=False)}, "no token to count"),
        (["a"], {"protocol": WindowProtocol(17, 17)}, "17 tokens are longer than the model's 16"),
        (["a"], {"num_samples": 0}, "at least 1"),
        (["a"], {"batch_size": 0}, "at least 1"),
        (["a"], {"num_samples": 10**9}, "1000000000 samples of 16 tokens at a time need 1.3e.11 bytes: take 16777216"),
    ],
)
def test_impossible_requests_say_what_is_wrong(tokenizer, texts, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate_texts(uniform_model(FLAT), tokenizer, texts, **settings)


def test_tokenizers_of_other_trees_or_without_eos_are_refused(tokenizer):
    with pytest.raises(ValueError, match="9 leaves but the tokenizer has 8"):
        evaluate_texts(uniform_model(VocabularyTree.flat(9)), tokenizer, TEXTS)
    model, without = uniform_model(FLAT), make_tokenizer(eos=None)
    assert not WindowProtocol.for_model(model, without).eos
    with pytest.raises(ValueError, match="no eos_token"):
        evaluate_texts(model, without, TEXTS, WindowProtocol(4, 4, eos=True))
