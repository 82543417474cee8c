"""Contenders have equal budgets and differ in what their row says."""

import math

import pytest
import torch
from helpers.contenders import SIZES
from helpers.models import tiny_model
from transformers import GPT2LMHeadModel

from benchmarks.contenders import (
    AUTOREGRESSIVE,
    COLOURS,
    CONTENDERS,
    GIDD,
    REFERENCE,
    budget_config,
    gpt2_for_budget,
    gpt2_parameters,
    reference_parameters,
    same_depth_config,
    unclustered_tree,
)
from benchmarks.quality import perplexity
from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree, corrupt


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_have_the_parameters_of_mdlm(name, form):
    vocab_size, layers, sizes = SIZES[form]
    budget = reference_parameters(vocab_size, layers, **sizes)
    contender = CONTENDERS[name]
    config = budget_config(contender, unclustered_tree(contender, vocab_size), budget, **sizes)
    with torch.device("meta"):
        model = TreeDiffForDiffusionLM(config)
    assert abs(sum(parameter.numel() for parameter in model.parameters()) - budget) <= 0.01 * budget


def test_ours_is_the_default_of_the_library():
    contender = CONTENDERS["tree"]
    config = TreeDiffConfig.from_tree(unclustered_tree(contender, 512))
    assert {name: getattr(config, name) for name in contender.fields} == contender.fields


@pytest.mark.parametrize("form", SIZES)
def test_gpt2_has_the_parameters_of_mdlm(form):
    vocab_size, layers, sizes = SIZES[form]
    budget = reference_parameters(vocab_size, layers, **sizes)
    window, heads = sizes["max_position_embeddings"], sizes["num_attention_heads"]
    config = gpt2_for_budget(vocab_size, window, budget, sizes["hidden_size"], heads, eos_token_id=0)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == gpt2_parameters(config)
    assert abs(counted - budget) <= 0.01 * budget


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_differ_in_nothing_but_what_their_row_says(name):
    vocab_size, layers, sizes = 512, 2, perplexity.PROTOCOLS["tiny"].sizes
    contender, reference = CONTENDERS[name], CONTENDERS[REFERENCE]
    tree, flat = unclustered_tree(contender, vocab_size), unclustered_tree(reference, vocab_size)
    budget = reference_parameters(vocab_size, 8, **sizes)
    shape = {"tree_depth", "max_branching", "num_tree_nodes", "tree_sha256"} if contender.depth > 1 else set()
    spent = {"num_hidden_layers", "intermediate_size"} | ({"hidden_size"} if contender.width != 1 else set())
    ranks = {"head_rank", "embedding_rank"} if contender.fields.get("tie_word_embeddings") else set()
    made = [budget_config(one, over, budget, **sizes) for one, over in ((contender, tree), (reference, flat))]
    as_deep = [same_depth_config(one, over, layers, **sizes) for one, over in ((contender, tree), (reference, flat))]
    pairs = ((*made, spent | ranks), (*as_deep, ranks))
    for config, other, allowed in pairs:
        fields = [field for field in TreeDiffConfig.__annotations__ if getattr(config, field) != getattr(other, field)]
        own = {field for field, value in contender.fields.items() if getattr(other, field) != value}
        assert set(fields) - allowed == own | shape
        assert all(getattr(config, field) == value for field, value in contender.fields.items())


def test_mdlms_published_loss_of_our_logits_is_our_loss():
    """Sahoo et al. 2024 (arXiv 2406.07524), as published: log-linear noise, SUBS, dsigma / expm1(sigma)."""
    model = tiny_model(VocabularyTree.flat(20)).double()
    tokens = torch.randint(0, 20, (6, 10), generator=torch.Generator().manual_seed(0))
    t = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).clamp(min=0.01)
    batch = corrupt(tokens, model.tree, model.schedule, t, torch.Generator().manual_seed(2))
    output = model(batch.input_ids, labels=batch.labels, timesteps=t)

    mask = 20
    sigma, rate = -torch.log1p(-t), 1 / (1 - t)
    logits = torch.cat((output.logits, torch.zeros(6, 10, 1, dtype=torch.float64)), dim=-1)  # a score for the mask
    logits[..., mask] = -math.inf
    log_p = logits - logits.logsumexp(dim=-1, keepdim=True)
    clean = batch.input_ids != mask
    log_p[clean] = -math.inf
    log_p[clean, batch.input_ids[clean]] = 0.0
    log_p_theta = log_p.gather(-1, tokens[..., None])[..., 0]
    published = -log_p_theta * (rate / torch.expm1(sigma))[:, None]
    torch.testing.assert_close(output.loss, published.mean(), rtol=1e-10, atol=0)


def test_every_model_of_the_figures_has_a_colour_of_its_own():
    assert len(set(COLOURS.values())) == len(COLOURS) and set(COLOURS) == {*CONTENDERS, GIDD, AUTOREGRESSIVE}
