"""Bad words of several tokens, for texts whose positions become tokens in any order and level by level.

A text in the making allows at each position the tokens below its node. It is *possible* if it can still become a text
without any of the words. `BadWords.closed_symbols` names the tokens that would make it impossible, so that nothing ever
has to be taken back; `BadWords.held_back` does the same for positions that move in one pass and do not know of each
other.

Reading a text from left to right, all that counts of what was read is its longest end that begins a word: the state of
an automaton (Aho and Corasick, 1975). Of what a position may become, only tokens of the words matter, its *symbols*;
a position that may also become another token is *free*. A free position separates: with that token in its place no
word goes across, whatever stands on either side. So states are followed through the runs between free positions alone.

Shape legend: B texts, T positions, n candidates among them, r some of them, V tokens, N nodes, D depth of the leaves,
A symbols, Q states of the automaton.
"""

from collections.abc import Sequence

import numpy as np
import torch

from modeling_treediff.vocabulary_tree import VocabularyTree


class BadWords:
    """The words, compiled for one tree and one choice of allowed tokens.

    Tokens that are there already are left as they are, also where they hold a word of their own. Padding is part of no
    word.
    """

    def __init__(self, words: Sequence[Sequence[int]], tree: VocabularyTree, allowed_V: torch.Tensor) -> None:
        """Compile the words.

        Args:
            words: token ids of each word.
            tree: the vocabulary, on the device where all masks will be.
            allowed_V: (V,) bool, the tokens that may be written at all.

        Raises:
            ValueError: a word is empty or has an id that is no token.

        """
        for word in words:
            if not word or not all(0 <= token < tree.vocab_size for token in word):
                raise ValueError(
                    f"The bad word {list(word)} must hold token ids from 0 to {tree.vocab_size - 1}, at least one."
                )
        device = tree.ancestors.device
        tokens = sorted({token for word in words for token in word})
        symbol = {token: index for index, token in enumerate(tokens)}
        table, ends = _automaton([[symbol[token] for token in word] for word in words], len(tokens))
        self.tree = tree
        self.token_A = torch.tensor(tokens, dtype=torch.long, device=device)
        self.next_QA = torch.from_numpy(table).to(device)
        self.ends_Q = torch.tensor(ends, dtype=torch.long, device=device)  # length of the longest word ending there
        self.allowed_A = allowed_V[self.token_A]
        other_count_N = torch.zeros(tree.num_nodes, dtype=torch.long, device=device)
        other_V = allowed_V.index_fill(0, self.token_A, False)
        other_count_N.index_add_(0, tree.ancestors.flatten(), other_V.long().repeat_interleave(tree.tree_depth + 1))
        self.free_N = other_count_N > 0
        self.free_N[: tree.vocab_size] = True
        self.free_N[self.token_A] = False

    def check(self, node_ids_BT: torch.Tensor, real_BT: torch.Tensor) -> None:
        """Raise ValueError if a text cannot be finished without a bad word; once, before the first pass."""
        states_BTQ = self._states_after(node_ids_BT, real_BT, self._given(node_ids_BT))
        impossible = (~states_BTQ[:, 1:-1].any(dim=-1)).nonzero()
        if len(impossible):
            text, position = impossible[0].tolist()
            raise ValueError(
                f"Text {text} cannot be filled up to position {position} without a bad word: allow more tokens, or "
                "leave out some of the bad words."
            )

    def closed_symbols(
        self, node_ids_BT: torch.Tensor, real_BT: torch.Tensor, candidates_BT: torch.Tensor
    ) -> torch.Tensor:
        """Return which symbols (n, A) below each candidate's node must not be taken, though they are allowed.

        With such a token in its place, no text without bad words can be written. Every candidate of a possible text
        keeps at least one token; the answer for others (`check`) means nothing.

        Args:
            node_ids_BT: (B, T) the text now.
            real_BT: (B, T) bool, False at padding.
            candidates_BT: (B, T) bool, the n positions, at internal nodes, asked about.

        """
        given_BT = self._given(node_ids_BT)
        before_nQ = self._states_after(node_ids_BT, real_BT, given_BT)[:, :-2][candidates_BT]
        behind_nQ = self._states_possible(node_ids_BT, real_BT, given_BT)[:, 2:][candidates_BT]
        node_n, given_n = node_ids_BT[candidates_BT], given_BT[candidates_BT]
        row, state = before_nQ.nonzero(as_tuple=True)
        reached = self.next_QA[state].long()
        clean = behind_nQ[row].gather(1, reached) & (self.ends_Q[reached] <= given_n[row, None])
        closed_nA = self._symbols(node_n)
        entry, symbol = (clean & closed_nA[row]).nonzero(as_tuple=True)
        closed_nA[row[entry], symbol] = False
        return closed_nA

    def held_back(
        self, before_BT: torch.Tensor, after_BT: torch.Tensor, moved_BT: torch.Tensor, real_BT: torch.Tensor
    ) -> torch.Tensor:
        """Return which of the moved positions (B, T) must not move yet, so that each text stays possible.

        Where a run of positions has become impossible, its last moved position stays at its old node, until the rest
        is possible. The first moved position of a text always moves if its child was not `closed`.

        Args:
            before_BT: (B, T) the text before the pass.
            after_BT: (B, T) the text if all moved.
            moved_BT: (B, T) bool.
            real_BT: (B, T) bool, False at padding.

        """
        given_BT = self._given(before_BT)
        place_T = torch.arange(before_BT.shape[1], device=before_BT.device)
        moving_BT = moved_BT.clone()
        while True:
            now_BT = torch.where(moving_BT, after_BT, before_BT)
            possible_BT = self._states_after(now_BT, real_BT, given_BT)[:, :-1].any(dim=-1)
            ends_BT = possible_BT[:, :-1] & ~possible_BT[:, 1:]
            last_BT = torch.where(moving_BT, place_T, -1).cummax(dim=1).values
            text, place = (ends_BT & (last_BT >= 0)).nonzero(as_tuple=True)
            if not len(text):
                return moved_BT & ~moving_BT
            moving_BT[text, last_BT[text, place]] = False

    def _given(self, node_ids_BT: torch.Tensor) -> torch.Tensor:
        """Return how many tokens in a row (B, T) end here; words no longer than that are there already."""
        return _run_lengths(node_ids_BT < self.tree.vocab_size)

    def _symbols(self, node_r: torch.Tensor) -> torch.Tensor:
        """Return which symbols (r, A) the nodes may become: allowed ones below them, or the one that they are."""
        below_rA = self.tree.ancestors[self.token_A][:, self.tree.depth[node_r]].T == node_r[:, None]
        return below_rA & (self.allowed_A | (node_r < self.tree.vocab_size)[:, None])

    def _states_after(self, node_ids_BT: torch.Tensor, real_BT: torch.Tensor, given_BT: torch.Tensor) -> torch.Tensor:
        """Return the states (B, T+2, Q) that each position can leave behind, with a separator at both ends.

        Behind a free position that is state 0 alone, which allows all that any other state allows.
        """
        tight_BT = real_BT & ~self.free_N[node_ids_BT]
        node, given, rank = (_padded(table).flatten() for table in (node_ids_BT, given_BT, _run_lengths(tight_BT)))
        states = torch.zeros(len(rank), len(self.ends_Q), dtype=torch.bool, device=rank.device)
        states[rank == 0, 0] = True
        for step in range(1, int(rank.max()) + 1):
            place = (rank == step).nonzero()[:, 0]
            row, state = states[place - 1].nonzero(as_tuple=True)
            reached = self.next_QA[state].long()
            allowed = self._symbols(node[place])[row] & (self.ends_Q[reached] <= given[place[row], None])
            entry, symbol = allowed.nonzero(as_tuple=True)
            states[place[row[entry]], reached[entry, symbol]] = True
        return states.view(len(node_ids_BT), -1, len(self.ends_Q))

    def _states_possible(
        self, node_ids_BT: torch.Tensor, real_BT: torch.Tensor, given_BT: torch.Tensor
    ) -> torch.Tensor:
        """Return the states (B, T+2, Q) from which each position and those behind it can be passed."""
        tight_BT = real_BT & ~self.free_N[node_ids_BT]
        rank_BT = _run_lengths(tight_BT.flip(1)).flip(1)
        node, given, rank = (_padded(table).flatten() for table in (node_ids_BT, given_BT, rank_BT))
        states = (rank == 0)[:, None].repeat(1, len(self.ends_Q))
        for step in range(1, int(rank.max()) + 1):
            place = (rank == step).nonzero()[:, 0]
            row, symbol = self._symbols(node[place]).nonzero(as_tuple=True)
            reached = self.next_QA.T[symbol].long()
            allowed = states[place[row] + 1].gather(1, reached) & (self.ends_Q[reached] <= given[place[row], None])
            entry, state = allowed.nonzero(as_tuple=True)
            states[place[row[entry]], state] = True
        return states.view(len(node_ids_BT), -1, len(self.ends_Q))


def _automaton(words: list[list[int]], num_symbols: int) -> tuple[np.ndarray, list[int]]:
    """Return the next state (Q, A) by state and symbol, and the longest word that ends in each state (0 for none)."""
    edges: list[dict[int, int]] = [{}]
    ends = [0]
    for word in words:
        state = 0
        for symbol in word:
            if symbol not in edges[state]:
                edges[state][symbol] = len(edges)
                edges.append({})
                ends.append(0)
            state = edges[state][symbol]
        ends[state] = len(word)
    table = np.zeros((len(edges), num_symbols), dtype=np.int32)
    shorter = [0] * len(edges)  # the state of the longest proper end of what was read that begins a word
    waiting = [0]
    for state in waiting:  # in the order of their lengths; grows on the way
        table[state] = table[shorter[state]]
        ends[state] = ends[state] or ends[shorter[state]]
        for symbol, longer in edges[state].items():
            shorter[longer] = int(table[state, symbol])  # still that of the shorter state; 0 at the beginning
            table[state, symbol] = longer
            waiting.append(longer)
    return table, ends


def _run_lengths(mask_BT: torch.Tensor) -> torch.Tensor:
    """Return the length of the run of True that ends at each position (B, T)."""
    place_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    return place_T - torch.where(mask_BT, 0, place_T).cummax(dim=1).values


def _padded(table_BT: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(table_BT, (1, 1))
