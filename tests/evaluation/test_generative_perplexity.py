"""The judge's nats against a plain loop over single texts in fp64, whatever the batch."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from modeling_treediff.evaluation import GenerativePerplexity
from modeling_treediff.evaluation.intervals import ratio_and_error

TEXTS = [
    "The state of the Union",
    "a",
    "",
    "no, <|endoftext|> in a text is no end of it",
    "liberté, égalité — and so on to a text that is longer than all of the others",
]


@pytest.fixture(scope="module")
def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=48, vocab_size=8192, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def judge(tiny_gpt2, tokenizer):
    return GenerativePerplexity(tiny_gpt2, tokenizer)


def plain_nats(model, tokenizer, text):
    """Token by token, each from the logits of a forward pass over nothing but what stands before it."""
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
    total = 0.0
    for end in range(1, len(ids)):
        logits = model(torch.tensor([ids[:end]])).logits[0, -1]
        total -= F.log_softmax(logits, dim=-1)[ids[end]].item()
    return total, len(ids) - 1


@torch.no_grad()
def test_nats_are_those_of_a_plain_loop_in_fp64(tiny_gpt2, tokenizer, judge):
    double = GPT2LMHeadModel(tiny_gpt2.config).double().eval()
    double.load_state_dict(tiny_gpt2.state_dict())
    expected = [plain_nats(double, tokenizer, text) for text in TEXTS]
    nats, tokens = judge.text_nats(TEXTS, batch_size=3)
    assert tokens.tolist() == [count for _, count in expected] and tokens[2] == 0
    np.testing.assert_allclose(nats, [value for value, _ in expected], rtol=1e-5)
    np.testing.assert_allclose(
        GenerativePerplexity(double, tokenizer).text_nats(TEXTS)[0], [value for value, _ in expected], rtol=1e-12
    )


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_batches_and_their_padding_change_nothing(judge, batch_size):
    alone = np.concatenate([judge.text_nats([text])[0] for text in TEXTS])
    np.testing.assert_allclose(judge.text_nats(TEXTS, batch_size)[0], alone, rtol=1e-5)
    backwards = judge.text_nats(TEXTS[::-1], batch_size)[0][::-1]
    np.testing.assert_allclose(backwards, alone, rtol=1e-5)


def test_all_figures_follow_from_the_sums(judge):
    nats, tokens = judge.text_nats(TEXTS)
    result = judge.read(TEXTS)
    sizes = [22, 1, 0, 43, 81]  # é has two bytes, and the dash three
    assert result.num_bytes == sum(sizes) and result.num_tokens == tokens.sum() and result.num_texts == 5
    assert result.nats_per_token == pytest.approx(nats.sum() / tokens.sum())
    assert result.nats_per_byte == pytest.approx(nats.sum() / sum(sizes))
    assert result.perplexity == pytest.approx(math.exp(result.nats_per_token))
    low, high = result.perplexity_interval
    assert math.log(high / low) == pytest.approx(2 * 1.96 * result.standard_error)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["perplexity"] == result.perplexity


def test_the_judge_of_a_uniform_model_is_the_size_of_its_vocabulary(tokenizer):
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, n_positions=48, vocab_size=8192)).eval()
    torch.nn.init.zeros_(model.transformer.wte.weight)  # tied to the head
    result = GenerativePerplexity(model, tokenizer).read(TEXTS)
    assert result.perplexity == pytest.approx(8192)
    assert result.standard_error == pytest.approx(0, abs=1e-6)


def test_the_error_of_a_ratio_is_that_of_repeated_draws():
    random = np.random.default_rng(0)
    lengths = random.integers(5, 50, (2000, 40))
    values = lengths * 3.0 + random.normal(size=lengths.shape) * np.sqrt(lengths)
    ratios, errors = np.transpose([ratio_and_error(*row) for row in zip(values, lengths, strict=True)])
    assert np.mean(errors) == pytest.approx(ratios.std(), rel=0.06)  # 4 standard errors of a standard deviation
    assert ratio_and_error(values[0, :1], lengths[0, :1])[1] == math.inf
    equal = np.full(7, 4)
    sample = values[0, :7]
    assert ratio_and_error(sample, equal)[1] == pytest.approx(sample.std(ddof=1) / 7**0.5 / 4)  # the usual formula


def test_a_saved_judge_reads_the_same_in_fp32(tiny_gpt2, tokenizer, judge, tmp_path):
    tiny_gpt2.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved = GenerativePerplexity.from_pretrained(tmp_path)
    assert saved.read(TEXTS) == judge.read(TEXTS)
    AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    assert GenerativePerplexity.from_pretrained(tmp_path / "half").model.dtype == torch.float32


def test_what_cannot_be_judged_is_refused(judge, tiny_gpt2, tokenizer):
    with pytest.raises(ValueError, match="nothing to judge: 2 texts"):
        judge.read(["", ""])
    with pytest.raises(ValueError, match="nothing to judge: 0 texts"):
        judge.read([])
    with pytest.raises(ValueError, match="of the judge.s tokens, which reads at most 47: cut the text"):
        judge.read(["word " * 60])
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="neither a bos_token nor an eos_token"):
        GenerativePerplexity(tiny_gpt2, bare).read(TEXTS)
