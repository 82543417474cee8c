"""Drafts: the layout is undone by the result, and tokens that are not allowed close nodes and no others."""

import pytest
import torch
from helpers.models import TREES, tiny_model

from modeling_treediff import TreeDiffGenerationConfig, VocabularyTree
from modeling_treediff.drafts_treediff import Draft, TokenWeights

TREE = TREES[1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_end_together_and_the_result_has_the_layout_of_what_was_given(side):
    given = torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [0] * 6])
    mask = mask.flip(1) if side == "left" else mask
    draft = Draft.lay_out(given, mask, 2, TREE)
    assert draft.real.tolist() == [[True] * 8, [False] * 2 + [True] * 6, [False] * 6 + [True] * 2]
    assert (draft.node_ids[:, -2:] == TREE.root_id).all()
    assert draft.node_ids[1, 2:6].tolist() == given[1][mask[1] == 1].tolist()
    assert draft.result[:, :6].tolist() == given.tolist() and (draft.result[:, 6:] == TREE.root_id).all()
    values = torch.arange(24.0).view(3, 8)
    restored = draft.restore(values, torch.full((3, 8), -1.0))
    assert sorted(restored[1].tolist()) == [-1, -1, *values[1, 2:].tolist()]


def test_columns_that_are_padding_everywhere_are_left_out():
    given, mask = torch.zeros(2, 5, dtype=torch.long), torch.tensor([[0, 0, 1, 1, 1], [1, 0, 0, 0, 0]])
    draft = Draft.lay_out(given, mask, 1, TREE)
    assert draft.node_ids.shape == (2, 4) and draft.attention_mask.tolist() == [[1] * 4, [0, 0, 1, 1]]
    whole = Draft.lay_out(given, torch.ones(2, 5), 1, TREE)
    assert whole.attention_mask is None and whole.result.shape == (2, 6)


def weights(model: object, **settings: object) -> TokenWeights:
    constraint = TokenWeights()
    constraint.begin(model, TreeDiffGenerationConfig(**settings))
    return constraint


@pytest.mark.parametrize("tree", TREES)
@torch.no_grad()
def test_a_nodes_weight_is_the_probability_of_its_allowed_tokens(tree):
    """By enumeration of the paths below it, with every node's children as it sees them alone."""
    model = tiny_model(tree)
    allowed = [0, 3, 7, 11]
    constraint = weights(model, allowed_tokens=allowed)
    child_IK = constraint.child_log_probs_alone()
    for node in range(tree.num_nodes):
        if node == tree.root_id:
            continue
        total = 0.0
        for token in allowed:
            path = tree.ancestors[token].tolist()
            if node in path:
                below = path[path.index(node) :]
                steps = zip(below, below[1:], strict=False)
                nats = [float(child_IK[parent - tree.root_id, tree.child_slot[child]]) for parent, child in steps]
                total += float(torch.tensor(nats, dtype=torch.float64).sum().exp())
        assert float(constraint.weight_RN[0, node].exp()) == pytest.approx(total, rel=1e-6)


def test_a_node_with_no_allowed_token_below_it_is_refused_where_it_is_given():
    model = tiny_model(TREE)
    cluster = int(TREE.ancestors[5, 1])
    below = [token for token in range(20) if TREE.ancestors[token, 1] == cluster]
    constraint = weights(model, suppress_tokens=below)
    draft = Draft.lay_out(torch.tensor([[1, cluster]]), torch.ones(1, 2), 1, TREE)
    with pytest.raises(ValueError, match=f"None of the tokens below node {cluster}, given for text 0, is allowed"):
        constraint.check(draft, draft.node_ids >= TREE.vocab_size)


def test_tokens_outside_the_vocabulary_and_none_at_all_are_refused():
    model = tiny_model(VocabularyTree.flat(5))
    with pytest.raises(ValueError, match=r"allowed_tokens has 5: the vocabulary has tokens 0\.\.4"):
        weights(model, allowed_tokens=[5])
    with pytest.raises(ValueError, match="leave no token at all"):
        weights(model, suppress_tokens=list(range(5)))
    assert weights(model).log_weights(None, None, None) is None
