"""Greedy texts, against a loop that fills one position and level at a time."""

import pytest
import torch
from helpers.models import tiny_model

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.evaluation import is_greedy

LENGTH = 12
TREES = {"flat": VocabularyTree.flat(30), "deep": random_tree(30, branching=4, depth=3, seed=1)}


@torch.no_grad()
def fill(model, tokens, given):
    """The surest open position takes its likeliest child, again and again; a sequential level ends before the next."""
    tree = model.tree
    nodes = torch.where(given, tokens, tree.root_id)
    stages = range(1, tree.tree_depth + 1) if model.config.schedule == "sequential" else [tree.tree_depth]
    for depth in stages:
        while (waiting := tree.depth[nodes] < depth).any():
            score, slot = model(nodes[None]).logits[0].softmax(dim=-1).max(dim=-1)
            place = int(score.round(decimals=4).masked_fill(~waiting, -1).argmax())
            nodes[place] = tree.children[nodes[place] - tree.root_id, slot[place]]
    return nodes


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("schedule", ["sequential", "binomial", "poisson"])
def test_greedy_texts_and_no_others_in_batches_with_padding(name, schedule):
    model = tiny_model(TREES[name], schedule=schedule)
    random = torch.Generator().manual_seed(0)
    rows, expected = [], []
    for length, prefix in [(LENGTH, 4), (7, 0), (5, 4), (LENGTH, 0), (9, 3)]:
        given = torch.arange(LENGTH) < prefix
        text = fill(model, torch.randint(30, (LENGTH,), generator=random)[:length], given[:length])
        other = text.clone()
        other[-1] = (other[-1] + 1) % 30
        for tokens, answer in ((text, True), (other, False)):
            padded = torch.cat([tokens, tokens.new_zeros(LENGTH - length)])
            rows.append((padded, (torch.arange(LENGTH) < length).long(), given.long()))
            expected.append(answer)
    batch = [torch.stack(column) for column in zip(*rows, strict=True)]
    assert is_greedy(model, *batch) == expected
    assert [is_greedy(model, *(some[None] for some in row))[0] for row in rows] == expected


@pytest.mark.parametrize("rate", [0.1, 0.9])
@pytest.mark.parametrize("name", ["wide", "deep"])
def test_greedy_texts_of_a_model_whose_nodes_are_perturbed(name, rate):
    """On the way it may stand at nodes that it revises."""
    tree = {"wide": random_tree(100, 10, 2, seed=1), "deep": random_tree(100, 5, 3, seed=1)}[name]
    model = tiny_model(tree, perturbation=rate, initializer_range=0.5)
    nodes = torch.randint(100, (16, 10), generator=torch.Generator().manual_seed(0))
    nodes[:, 6:] = tree.root_id
    settings = {"do_sample": False, "unmasking": "confidence", "num_steps": 16 * tree.tree_depth}
    texts, given = model.generate(nodes, **settings), (nodes < 100).long()
    assert is_greedy(model, texts, torch.ones_like(texts), given) == [True] * 16
    texts[:, -1] = (texts[:, -1] + 1) % 100
    assert is_greedy(model, texts, torch.ones_like(texts), given) == [False] * 16


def test_it_ends_when_no_text_can_come_out_right():
    model = tiny_model(TREES["deep"])
    given = torch.zeros(LENGTH, dtype=torch.bool)
    text = fill(model, given.long(), given)
    inputs = (torch.ones(1, LENGTH, dtype=torch.long), torch.zeros(1, LENGTH, dtype=torch.long))
    passes = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    assert is_greedy(model, text[None], *inputs) == [True] and len(passes) == 3 * LENGTH
    passes.clear()
    top = model.tree.ancestors[:, 1]
    elsewhere = torch.tensor([int((top != top[token]).nonzero()[0]) for token in text])
    assert is_greedy(model, elsewhere[None], *inputs) == [False] and len(passes) == 1
