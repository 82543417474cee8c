"""The training loss that looks farther down the tree than the next choice."""

import pytest
import torch
from helpers.models import TREES, corrupted, tiny_model

DEEP = TREES[2]
FIELDS = [
    {"head": "child"},
    {"head": "node"},
    {"head": "leaf"},
    {"head": "node", "node_embedding": "factorised", "tie_word_embeddings": True},
    {"head": "node", "schedule": "sequential"},
    {"head": "node", "block_size": 4},
    {"head": "node", "perturbation": 0.2},
]


def losses(model, **fields):
    """Return the training loss and what is reported with it, on one batch."""
    for name, value in fields.items():
        setattr(model.config, name, value)
    return model(**vars(corrupted(model)))


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: " ".join(map(str, fields.values())))
def test_adds_the_deeper_choices_from_the_same_hidden_state(fields):
    """A loop over positions: -log of the probabilities of all that lies below the next node."""
    model = tiny_model(DEEP, **fields).train()
    tree, batch = model.tree, vars(corrupted(model))
    found = losses(model, lookahead=0.7)
    plain = losses(model, lookahead=0.0)
    hidden = model(**batch, output_hidden_states=True).hidden_states[0]
    weights = model.schedule.weight(batch["timesteps"].flatten()).unflatten(0, batch["timesteps"].shape)
    expected = 0.0
    for row, place in (batch["labels"] >= 0).nonzero().tolist():
        token, node = int(batch["labels"][row, place]), batch["input_ids"][row, place]
        depth = int(tree.depth[node])
        at = (row, place) if weights.ndim == 3 else (row,)
        for level in range(depth + 1, tree.tree_depth):
            parent, child = tree.ancestors[token, level], tree.ancestors[token, level + 1]
            scores = model.head(hidden[row, place][None, None], parent[None, None], tree)[0, 0]
            expected -= weights[at][depth] * scores.log_softmax(dim=-1)[tree.child_slot[child]]
    torch.testing.assert_close(found.loss - plain.loss, 0.7 * expected / (batch["labels"] >= 0).sum())
    assert torch.equal(found.nelbo, plain.nelbo) and torch.equal(found.level_losses, plain.level_losses)


def test_changes_neither_the_bound_nor_the_scores_nor_the_flat_tree():
    model = tiny_model(DEEP).eval()
    assert losses(model, lookahead=0.5).loss == losses(model, lookahead=0.0).loss
    tokens = torch.randint(DEEP.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0))
    with_it, without = (
        tiny_model(DEEP, lookahead=share).nelbo(tokens, num_samples=4, generator=torch.Generator().manual_seed(1))
        for share in (0.5, 0.0)
    )
    assert with_it.value == without.value
    flat = tiny_model(TREES[0]).train()
    assert losses(flat, lookahead=0.5).loss == losses(flat, lookahead=0.0).loss


def test_teaches_masked_positions_the_tokens_themselves():
    """Where all is masked, the bound's loss reaches the vectors of clusters alone, this one those of tokens, too."""
    model = tiny_model(DEEP, head="node").train()
    root = torch.full((2, 6), DEEP.root_id)
    labels = torch.randint(DEEP.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.5):
        model.zero_grad()
        model.config.lookahead = share
        model(input_ids=root, labels=labels, timesteps=torch.ones(2)).loss.backward()
        of_tokens = model.head.nodes.weight.grad[: DEEP.vocab_size].abs().sum()
        assert bool(of_tokens > 0) == bool(share)


@pytest.mark.parametrize("share", [-0.1, float("inf"), float("nan"), "much"])
def test_refuses_what_is_no_weight(share):
    with pytest.raises(ValueError, match="lookahead must be"):
        tiny_model(DEEP, lookahead=share)
