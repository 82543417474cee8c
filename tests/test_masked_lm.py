"""The distribution over tokens at open positions: against enumeration, the bound and the plain softmax."""

import itertools
import math

import pytest
import torch
from helpers.models import SEQUENTIAL, tiny_model, tokens_by_enumeration
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, DynamicCache

from modeling_treediff import TreeDiffForDiffusionLM, TreeDiffForMaskedLM, VocabularyTree, corrupt, likelihood_treediff
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import SCHEDULES
from modeling_treediff.noise_schedules import LevelSchedule

V = 11
TREES = {
    1: VocabularyTree.flat(V),
    2: random_tree(V, 4, 2, seed=0),
    3: random_tree(V, 3, 3, seed=0),
}
FAMILY = [
    {},
    {"schedule": "binomial", "node_embedding": "free"},
    {"schedule": "poisson", "head": "leaf"},
    {"head": "node", "head_rank": 3, "uniform_share": 0.2},
]


def masked_model(depth, **fields):
    return tiny_model(TREES[depth], TreeDiffForMaskedLM, **fields)


def some_nodes(tree):
    """Two texts with open positions of every depth among tokens."""
    texts = torch.tensor([[3, V, 7, V, 1, 0], [V, 2, 5, 9, 10, 4]])
    texts[0, 4] = tree.ancestors[8, min(1, tree.tree_depth - 1)]
    texts[1, 3] = tree.ancestors[6, tree.tree_depth - 1]
    return texts


@pytest.mark.parametrize("fields", FAMILY, ids=str)
@pytest.mark.parametrize("depth", TREES)
def test_every_path_is_scored_by_the_diffusion_model_itself(depth, fields):
    model = masked_model(depth, **fields).double()
    texts = some_nodes(model.tree)
    log_probs = model(texts).logits
    assert log_probs.shape == (2, 6, V) and not log_probs.requires_grad
    torch.testing.assert_close(log_probs.exp().sum(dim=-1), torch.ones(2, 6).double())
    for row, place in itertools.product(range(2), range(6)):
        torch.testing.assert_close(log_probs[row, place], tokens_by_enumeration(model, texts[row], place))


def test_flat_it_is_the_softmax_of_one_pass(monkeypatch):
    model = masked_model(1)
    texts, passes = some_nodes(model.tree), []
    expected = TreeDiffForDiffusionLM.forward(model, texts).logits.log_softmax(-1)
    monkeypatch.setattr(model.model, "forward", counted(model.model.forward, passes))
    log_probs, is_open = model(texts).logits, texts == V
    assert torch.equal(log_probs[is_open], expected[is_open]) and len(passes) == 1


def counted(forward, passes):
    return lambda *arguments: passes.append(len(arguments[0])) or forward(*arguments)


def test_tokens_stay_and_cost_nothing(monkeypatch):
    model, passes = masked_model(3), []
    monkeypatch.setattr(model.model, "forward", counted(model.model.forward, passes))
    texts = torch.randint(0, V, (2, 5), generator=torch.Generator().manual_seed(0))
    log_probs = model(texts).logits
    assert torch.equal(log_probs.exp(), torch.nn.functional.one_hot(texts, V).float()) and not passes
    texts[0, 1] = V
    model(texts)
    below = model.tree.num_nodes - V - 1
    assert sum(passes) == 2 + below  # the batch, and one sequence for each internal node below the root


@pytest.mark.parametrize("schedule", ["binomial", "poisson"])
@pytest.mark.parametrize("depth", TREES)
def test_of_a_single_open_token_it_is_the_bound(schedule, depth):
    """Beside given tokens each level of one token has one context: the conditional NELBO has no noise."""
    model = masked_model(depth, schedule=schedule).double()
    tokens = torch.tensor([[3, 8, 1, 0]])
    bound = model.nelbo(tokens, fixed_mask=torch.tensor([[1, 0, 1, 1]]), num_samples=depth)
    tokens[0, 1] = V
    assert math.isclose(-float(model(tokens).logits[0, 1, 8]), bound.value, rel_tol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("depth", TREES)
def test_blocks_before_are_seen_as_tokens(schedule, depth):
    """So of a single token alone in its block it is the bound under every schedule, also level by level."""
    model = masked_model(depth, schedule=schedule, block_size=4).double()
    tokens, given = torch.tensor([[3, 8, 1, 0, 7]]), torch.tensor([[1, 1, 1, 1, 0]])
    bound = model.nelbo(tokens, fixed_mask=given, num_samples=depth)
    tokens[0, 4] = V
    assert math.isclose(-float(model(tokens).logits[0, 4, 7]), bound.value, rel_tol=1e-9)


@pytest.mark.parametrize("schedule", ["sequential", "binomial"])
def test_neither_company_nor_padding_nor_the_size_of_passes_matters(schedule, monkeypatch):
    model = masked_model(3, schedule=schedule).double()
    texts = some_nodes(model.tree)
    together = model(texts).logits
    for row in range(2):
        torch.testing.assert_close(model(texts[row : row + 1]).logits[0], together[row])
    padding = torch.zeros(2, 3, dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(texts)], 1)
    torch.testing.assert_close(model(torch.cat([padding, texts], 1), mask).logits[:, 3:], together)
    segments = torch.cat([torch.zeros_like(texts), torch.ones_like(texts)], 1)
    joined = model(torch.cat([texts, texts.flip(0)], 1), segment_ids=segments).logits
    torch.testing.assert_close(joined, torch.cat([together, together.flip(0)], 1))
    monkeypatch.setattr(likelihood_treediff, "SEQUENCES_PER_PASS", 3)
    torch.testing.assert_close(model(texts).logits, together)


@pytest.mark.parametrize(
    "fields",
    [
        SEQUENTIAL,
        {"schedule": "binomial"},
        {"schedule": "poisson"},
        SEQUENTIAL | {"time_warp": "cosine"},
        SEQUENTIAL | {"num_timesteps": 9},
    ],
    ids=str,
)
def test_deepest_beside_is_what_the_forward_process_shows(fields):
    """20,000 corruptions of 12 tokens: what stands beside each depth, and is less than one level away from lost."""
    tree = TREES[3]
    schedule = LevelSchedule.from_config(tiny_model(tree, **fields).config)
    tokens = torch.randint(0, V, (20_000, 12), generator=torch.Generator().manual_seed(0))
    depths = tree.depth[corrupt(tokens, tree, schedule, generator=torch.Generator().manual_seed(1)).input_ids]
    for depth in range(3):
        beside = depths[(depths == depth).any(dim=1)]
        assert int(beside.max()) == schedule.deepest_beside(depth)


def test_with_labels_it_trains_and_it_generates_as_the_diffusion_model():
    model, plain = masked_model(2), tiny_model(TREES[2])
    tokens = torch.randint(0, V, (4, 8), generator=torch.Generator().manual_seed(0))
    batch = corrupt(tokens, model.tree, model.schedule, generator=torch.Generator().manual_seed(1))
    for kind in (model.train(), plain.train()):
        kind.loss = kind(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps).loss
        kind.loss.backward()
    assert torch.equal(model.loss, plain.loss)
    asked = {"labels": batch.labels, "timesteps": batch.timesteps, "output_hidden_states": True}
    assert torch.equal(*(kind(batch.input_ids, **asked).hidden_states[0] for kind in (model, plain)))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    texts = [
        kind.eval().generate(some_nodes(TREES[2]), generator=torch.Generator().manual_seed(2))
        for kind in (model, plain)
    ]
    assert torch.equal(*texts) and type(model) is TreeDiffForMaskedLM


@pytest.mark.parametrize(
    "settings", [{}, {"suppress_tokens": [1]}, {"unmasking": "margin", "remasking_steps": 2}], ids=str
)
@pytest.mark.parametrize("wrap", ["compiled", "replaced"])
def test_it_generates_whatever_became_of_its_forward(wrap, settings):
    """Which gives distributions over tokens, where generation needs scores of children."""
    texts = []
    for changed in (False, True):
        model = masked_model(2)
        if changed:
            compiled = torch.compile(model.forward, backend="eager")
            model.forward = compiled if wrap == "compiled" else lambda *inputs, **options: None
        random = torch.Generator().manual_seed(0)
        texts.append(model.generate(some_nodes(model.tree), generator=random, num_steps=6, **settings))
    assert torch.equal(*texts)


def test_the_folder_serves_both_classes(tmp_path):
    model = masked_model(2)
    model.generation_config.num_steps = 7
    texts, folders = some_nodes(model.tree), (tmp_path / "first", tmp_path / "second")
    expected = model(texts).logits
    for folder in folders:
        model.save_pretrained(folder)
        model = AutoModelForMaskedLM.from_pretrained(folder)
        assert type(model) is TreeDiffForMaskedLM and torch.equal(model(texts).logits, expected)
        diffusion_model = AutoModelForCausalLM.from_pretrained(folder)
        assert type(diffusion_model) is TreeDiffForDiffusionLM
        assert model.generation_config.num_steps == diffusion_model.generation_config.num_steps == 7


def test_ids_outside_the_tree_are_refused():
    model = masked_model(2)
    for bad in (-1, model.tree.num_nodes):
        with pytest.raises(ValueError, match=rf"0\.\.{model.tree.num_nodes - 1} \(nodes of the tree\)"):
            model(torch.tensor([[0, bad]]))


def test_a_cache_and_blocks_of_its_own_are_refused():
    with pytest.raises(ValueError, match="of whole texts: leave out past_key_values"):
        masked_model(2)(some_nodes(TREES[2]), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="leave out block_numbers"):
        masked_model(2)(some_nodes(TREES[2]), block_numbers=torch.zeros(2, 6, dtype=torch.long))
    labels = torch.zeros(2, 6, dtype=torch.long)
    with pytest.raises(ValueError, match="leave out past_key_values"):
        masked_model(2)(labels, labels=labels, timesteps=torch.ones(2), past_key_values=DynamicCache())


def test_a_text_longer_than_the_model_is_refused():
    """By the forward pass, so in likelihoods and pipelines as well; one of just that length is not."""
    fits, long = torch.full((1, 8), V), torch.full((1, 9), V)
    for kind in (TreeDiffForMaskedLM, TreeDiffForDiffusionLM):
        model = tiny_model(TREES[2], kind, max_position_embeddings=8)

        def bound(nodes, model=model):
            model.nelbo(nodes - 1, num_samples=2)

        for use in (model, model.token_log_probs, bound, model.model, model.generate):
            use(fits)
            with pytest.raises(ValueError, match="9 positions are more than the model's 8"):
                use(long)
