import functools
import itertools
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.untraced import untraced

from modeling_treediff import VocabularyTree
from modeling_treediff.constraints.bad_words import BadWords

PADDING = 0  # what stands at padding is of no account: let it be a token of many words


@dataclass
class Case:
    """A random request, small enough to list every text."""

    tree: VocabularyTree
    words: list[list[int]]
    allowed: list[int]
    start: torch.Tensor  # (B, T) nodes
    real: torch.Tensor  # (B, T)

    @property
    def allowed_V(self) -> torch.Tensor:  # noqa: N802 -- a shape
        return torch.isin(torch.arange(self.tree.vocab_size), torch.tensor(self.allowed))

    @property
    def bad_words(self) -> BadWords:
        return BadWords(self.words, self.tree, self.allowed_V)


def random_case(seed: int, batch: int = 2) -> Case:
    draw = random.Random(seed)
    vocab, branching, depth = draw.choice([(3, 3, 1), (3, 2, 2), (4, 2, 2), (5, 3, 3), (5, 5, 1), (5, 2, 3)])
    paths = draw.sample(list(itertools.product(range(branching), repeat=depth)), vocab)  # many nodes have one child
    tree = VocabularyTree.from_paths(np.array(paths), branching)
    tokens = range(draw.randint(2, vocab))  # with few tokens in the words, they overlap and repeat
    words = [draw.choices(tokens, k=draw.choice([1, 2, 2, 2, 2, 2, 3, 3, 3, 4, 7])) for _ in range(draw.randint(1, 10))]
    allowed = draw.sample(range(vocab), draw.choice([vocab, vocab, vocab - 1]))
    length = draw.randint(2, 5)
    nodes = range(tree.num_nodes)
    weights = [3 * tree.num_nodes if node == tree.root_id else 1 for node in nodes]
    start = torch.tensor([draw.choices(nodes, weights, k=length) for _ in range(batch)])
    real = torch.ones(batch, length, dtype=torch.bool)
    real[0, : draw.choice([0, 0, 1])] = False
    real[-1, length - draw.choice([0, 0, 1]) :] = False
    return Case(tree, words, allowed, torch.where(real, start, PADDING), real)


def tokens_below(case: Case, node: int) -> list[int]:
    """What a position at this node may become."""
    if node < case.tree.vocab_size:
        return [node]
    return [token for token in case.allowed if node in case.tree.ancestors[token].tolist()]


def settled_positions(case: Case, nodes: list[int], real: list[bool]) -> list[bool]:
    return [is_real and node < case.tree.vocab_size for node, is_real in zip(nodes, real, strict=True)]


def clean_texts(case: Case, nodes: list[int], real: list[bool], settled: list[bool] | None = None) -> list[tuple]:
    """Every text that the nodes allow, without a word but those that lie in settled positions alone."""
    choices = [tokens_below(case, node) if is_real else [None] for node, is_real in zip(nodes, real, strict=True)]
    settled = settled or settled_positions(case, nodes, real)

    def clean(text: tuple) -> bool:
        return not any(
            list(text[at : at + len(word)]) == word and not all(settled[at : at + len(word)])
            for word in case.words
            for at in range(len(text) - len(word) + 1)
        )

    return [text for text in itertools.product(*choices) if clean(text)]


@functools.cache
def possible_cases(count: int) -> list[Case]:
    cases = (random_case(seed) for seed in itertools.count())
    possible = (
        case
        for case in cases
        if all(map(lambda *row: clean_texts(case, *row), case.start.tolist(), case.real.tolist()))
    )
    return list(itertools.islice(possible, count))


def closed_slots(bad_words: BadWords, allowed_V, node_ids, real, candidates) -> torch.Tensor:
    """(n, K): no allowed token lies below the child that is not closed."""
    tree, closed_nA = bad_words.tree, bad_words.closed_symbols(node_ids, real, candidates)
    open_nV = allowed_V.repeat(len(closed_nA), 1)
    open_nV[:, bad_words.token_A] &= ~closed_nA
    children_nK = tree.children[node_ids[candidates] - tree.vocab_size]
    below_nKV = (tree.ancestors.T[:, None, None] == children_nK[..., None]).any(dim=0)
    return ~(below_nKV & open_nV[:, None]).any(dim=-1)


def inner(case: Case, nodes: torch.Tensor) -> torch.Tensor:
    return (nodes >= case.tree.vocab_size) & case.real


@pytest.mark.parametrize("first_seed", range(0, 600, 100))
def test_a_slot_is_closed_exactly_if_no_clean_text_lies_beyond_it(first_seed):
    seen = set()
    for seed in range(first_seed, first_seed + 100):
        case = random_case(seed)
        candidates = inner(case, case.start)
        closed = iter(closed_slots(case.bad_words, case.allowed_V, case.start, case.real, candidates).tolist())
        possible = []
        for nodes, real, is_candidate in zip(*(x.tolist() for x in (case.start, case.real, candidates)), strict=True):
            texts = clean_texts(case, nodes, real)
            possible.append(bool(texts))
            for position in np.flatnonzero(is_candidate):
                row = next(closed)
                if not texts:
                    continue
                reachable = {text[position] for text in texts}
                for slot, child in enumerate(case.tree.children[nodes[position] - case.tree.vocab_size].tolist()):
                    expected = child < 0 or not reachable.intersection(tokens_below(case, child))
                    assert row[slot] == expected, (seed, position, slot)
                    seen.add((row[slot], child >= case.tree.vocab_size))
        assert next(closed, None) is None
        if all(possible):
            case.bad_words.check(case.start, case.real)
        else:
            with pytest.raises(ValueError, match=f"Text {possible.index(False)} cannot be filled"):
                case.bad_words.check(case.start, case.real)
    assert seen == {(False, False), (False, True), (True, False), (True, True)}  # leaves and inner nodes, open or not


def test_with_room_everywhere_only_decided_neighbours_close():
    """The dense identity of the usual case: a token is banned where it would complete a word among decided tokens."""
    tree = VocabularyTree.from_paths(np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]), 2)
    words, allowed_V = [[0, 1], [1, 0], [0, 0, 2], [2, 2], [1, 2, 1]], torch.tensor([True] * 4 + [False, True])
    pair = int(tree.ancestors[2, 2])  # 2 and 3; the words know 0, 1 and 2
    sole = int(tree.ancestors[0, 2])  # 0 alone
    root = tree.root_id
    draw = random.Random(0)
    bad_words, length, banned_somewhere = BadWords(words, tree, allowed_V), 9, 0
    for _ in range(200):
        nodes = draw.choices([0, 1, 2, 3, sole, pair, root], [3, 3, 3, 1, 2, 2, 3], k=length)
        decided = [0 if node == sole else node if node < 6 else None for node in nodes]
        spans = [
            slice(at, at + len(word)) for word in words for at in range(length) if decided[at:][: len(word)] == word
        ]
        if any(sole in nodes[span] for span in spans):
            continue  # a word that cannot but be written
        node_ids, real = torch.tensor([nodes]), torch.ones(1, length, dtype=torch.bool)
        candidates = (node_ids == pair) | (node_ids == root)
        closed = closed_slots(bad_words, allowed_V, node_ids, real, candidates)
        for row, position in zip(closed.tolist(), np.flatnonzero(candidates[0]), strict=True):
            banned = set()
            for token in range(6):
                there = [*decided[:position], token, *decided[position + 1 :]]
                spans = ((at, word) for word in words for at in range(length))
                if any(there[at : at + len(word)] == word and at <= position < at + len(word) for at, word in spans):
                    banned.add(token)
            banned_somewhere += len(banned)
            for slot, child in enumerate(tree.children[nodes[position] - 6].tolist()):
                below = [token for token in (0, 1, 2, 3, 5) if child in tree.ancestors[token].tolist()]
                assert row[slot] == (child < 0 or banned.issuperset(below))
    assert banned_somewhere > 100


def random_pass(case: Case, node_ids: torch.Tensor, draw: random.Random, greedy: bool) -> tuple[torch.Tensor, ...]:
    """Let positions take children that are not closed: any positions any children, or all the first; (after, moved)."""
    candidates = inner(case, node_ids)
    closed = closed_slots(case.bad_words, case.allowed_V, node_ids, case.real, candidates)
    slots = [np.flatnonzero(~row) for row in closed.numpy()]
    chosen = torch.tensor([row[0] if greedy else draw.choice(row) for row in slots])
    after = node_ids.clone()
    after[candidates] = case.tree.children[node_ids[candidates] - case.tree.vocab_size, chosen]
    moved = candidates & (torch.tensor([[draw.random() < 0.6 for _ in row] for row in node_ids]) | greedy)
    return after, moved


@untraced
@pytest.mark.parametrize(("greedy", "climbs"), [(False, 5), (True, 0)])
def test_any_loop_ends_in_a_clean_text_and_holds_back_only_what_it_must(greedy, climbs):
    held, restricted = 0, 0
    for seed, case in enumerate(possible_cases(200)):
        draw, bad_words, node_ids = random.Random(seed), case.bad_words, case.start
        climbs_left = climbs
        while inner(case, node_ids).any():
            after, moved = random_pass(case, node_ids, draw, greedy)
            back = bad_words.held_back(node_ids, after, moved, case.real)
            kept = moved & ~back
            assert not (back & ~moved).any()
            assert torch.equal(kept.any(dim=1), moved.any(dim=1))  # every text that moves at all goes on
            together, node_ids = torch.where(moved, after, node_ids), torch.where(kept, after, node_ids)
            for text, real in enumerate(case.real.tolist()):
                settled = settled_positions(case, case.start[text].tolist(), real)
                assert clean_texts(case, node_ids[text].tolist(), real, settled)
                possible_together = clean_texts(case, together[text].tolist(), real, settled)
                assert bool(back[text].any()) != bool(possible_together)
                held += int(back[text].sum())
            if climbs_left:
                climbs_left -= 1
                up = (node_ids != case.start) & torch.tensor([[draw.random() < 0.3 for _ in row] for row in node_ids])
                node_ids = torch.where(up, case.tree.parent[node_ids], node_ids)
        for text, start, real in zip(node_ids.tolist(), case.start.tolist(), case.real.tolist(), strict=True):
            texts = clean_texts(case, start, real)
            assert tuple(token if is_real else None for token, is_real in zip(text, real, strict=True)) in texts
            restricted += len(texts) < np.prod([len(tokens_below(case, node)) for node in start])
    assert held > 10 and restricted > 150


def test_two_positions_do_not_write_a_word_together():
    tree = VocabularyTree.flat(4)
    bad_words = BadWords([[1, 2, 1]], tree, torch.ones(4, dtype=torch.bool))
    real = torch.ones(3, 6, dtype=torch.bool)
    before = torch.full((3, 6), tree.root_id)
    before[1, 2] = 2
    after = torch.tensor([[1, 2, 1, 2, 1, 2], [3, 1, 2, 1, 3, 3], [1, 2, 3, 1, 2, 2]])
    moved = before == tree.root_id
    back = bad_words.held_back(before, after, moved, real)
    # 1 2 _ 2 1 2: the third waits, and with it gone nothing else has to.
    assert back.int().tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_words_reach_into_the_prompt_but_not_across_padding():
    tree = VocabularyTree.flat(4)
    allowed_V = torch.tensor([True, True, True, False])
    bad_words = BadWords([[1, 2], [3, 3]], tree, allowed_V)
    root = tree.root_id
    node_ids = torch.tensor([[3, 3, 1, root], [root, 2, 1, root], [1, root, 1, root]])
    real = torch.ones_like(node_ids, dtype=torch.bool)
    real[1, 1:3] = False
    real[2, 0] = False
    bad_words.check(node_ids, real)  # the prompt may hold a bad word, and a token that is not allowed
    closed = closed_slots(bad_words, allowed_V, node_ids, real, node_ids == root)
    expected = [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1]]
    assert closed.int().tolist() == expected


def test_a_choice_that_leaves_a_neighbour_nothing_is_closed():
    """Two tokens that must alternate: with 0 at one place, all even places are 0, however far away."""
    tree = VocabularyTree.flat(3)
    allowed_V = torch.tensor([True, True, False])
    bad_words = BadWords([[0, 0], [1, 1]], tree, allowed_V)
    node_ids = torch.full((1, 7), tree.root_id)
    node_ids[0, 0] = 0
    closed = closed_slots(bad_words, allowed_V, node_ids, torch.ones(1, 7, dtype=torch.bool), node_ids == tree.root_id)
    assert closed.tolist() == [[position % 2 == 1, position % 2 == 0, True] for position in range(1, 7)]


def test_without_words_only_what_is_not_allowed_is_closed(tree):
    allowed_V = torch.rand(100, generator=torch.Generator().manual_seed(0)) < 0.2
    node_ids = torch.arange(tree.vocab_size, tree.num_nodes)[:, None]
    real = torch.ones_like(node_ids, dtype=torch.bool)
    below_NV = (tree.ancestors.T[..., None] == torch.arange(tree.num_nodes)).any(dim=0).T  # (N, V)
    expected = ~(below_NV & allowed_V).any(dim=1)[tree.children] | (tree.children < 0)
    for words in ([], [[3] * 3000]):  # the second fits nowhere
        assert torch.equal(closed_slots(BadWords(words, tree, allowed_V), allowed_V, node_ids, real, real), expected)


@pytest.mark.parametrize("word", [[], [1, 100], [-1, 2]])
def test_impossible_words_are_refused(tree, word):
    with pytest.raises(ValueError, match=r"bad word \[.*from 0 to 99"):
        BadWords([[1, 2], word], tree, torch.ones(100, dtype=torch.bool))
