"""Layers that know the tree: vectors of nodes at the input, scores of their children at the output; no diffusion.

Sources: TDLM (arXiv 2604.03537); HDLM (Next Semantic Scale Prediction via Hierarchical Diffusion Language Models);
factorised embeddings: ALBERT (arXiv 1909.11942).
Shape legend: B sequences, T positions, n = B T, E hidden size, V tokens, I internal nodes, N = V + I nodes, P = I - 1,
D depth of the leaves, K largest fan-out, R rank of the head or the embedding, G blocks, C positions per block.

Every head maps (B, T, E) hidden states and (B, T) nodes to logits (B, T, K), the children by their slots: -inf where
there is no child; numbers without meaning at leaves, -inf where the root has no child, so that a softmax is finite
there, too. `level` is the depth of all nodes that are no leaves, where it is one: it saves what others would need. All
parameters are those of Linear and Embedding layers, so that transformers' own initialisation reaches them;
`initial_std` on one of them asks for another standard deviation than the config's.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from transformers.integrations.accelerate import force_accelerate_hooks

from .configuration_treediff import TreeDiffConfig
from .diffusion_process import sibling_log_likelihood
from .vocabulary_tree import VocabularyTree

LARGEST_BLOCK = 32


def embed_paths(embedding: nn.Module, input_ids: torch.Tensor, tree: VocabularyTree) -> torch.Tensor:
    """(B, T) nodes -> (B, T, E): the sum of the vectors of a node and of all its ancestors, of (N, E) vectors.

    Tokens share what their clusters know; the root's vector gives attention a constant for positional patterns.
    """
    level_D = torch.arange(tree.tree_depth + 1, device=input_ids.device)
    node_BT1 = input_ids[..., None]
    depth_BT1, above_BTD = tree.depth[node_BT1], tree.ancestors[tree.representative[input_ids]]
    path_BTD = torch.where(level_D < depth_BT1, above_BTD, node_BT1)
    # One lookup, since each adds up gradients of the whole table. NEFTune scales noise by the shape (B, T D, E).
    vector_BTDE = embedding(path_BTD.flatten(1)).unflatten(1, path_BTD.shape[1:])
    return (vector_BTDE * (level_D <= depth_BT1)[..., None]).sum(dim=2)


class FactorisedEmbedding(nn.Module):
    """R numbers v for each node but the root, one projection W (R -> E), and a free vector u for each internal node.

    A node's vector is W v of its own, and the sum of u over its internal ancestors and, if it is internal, itself. So
    with R < E there is no (V, E) table. On the flat tree it is ALBERT's, plus the root's vector.
    """

    def __init__(self, config: TreeDiffConfig) -> None:
        super().__init__()
        rank = config.embedding_rank or config.head_rank
        self.nodes = nn.Embedding(config.num_tree_nodes - 1, rank)  # with rows as in `NodeHead`, which may share it
        self.nodes.initial_std = rank**-0.5  # so that W v starts as large as u
        self.projection = nn.Linear(rank, config.hidden_size, bias=False)
        self.internal = nn.Embedding(config.num_tree_nodes - config.vocab_size, config.hidden_size)

    @property
    def weight(self) -> torch.Tensor:
        """The table v, by the name under which sharding looks for what the head may share."""
        return self.nodes.weight

    def forward(self, input_ids: torch.Tensor, tree: VocabularyTree) -> torch.Tensor:
        """(B, T) nodes -> (B, T, E)."""
        above_BT = tree.ancestors[input_ids.clamp(max=tree.root_id - 1), -2]
        internal_BT = torch.where(input_ids < tree.root_id, above_BT, input_ids) - tree.root_id
        row_BT = input_ids - (input_ids > tree.root_id).long()
        is_root_BT1 = (input_ids == tree.root_id)[..., None]
        vector_BTR = self.nodes(row_BT.clamp(max=tree.num_nodes - 2)).masked_fill(is_root_BT1, 0)
        return F.embedding(internal_BT, self._sum_paths(tree)) + self.projection(vector_BTR)

    def _sum_paths(self, tree: VocabularyTree) -> torch.Tensor:
        """Return the (I, E) sums of u; made once for all positions, none of which then needs the (D, E) of its path."""
        path_ID = tree.ancestors[tree.representative[tree.root_id :], :-1] - tree.root_id
        on_path_ID = torch.arange(tree.tree_depth, device=path_ID.device) <= tree.depth[tree.root_id :, None]
        return (self.internal(path_ID * on_path_ID) * on_path_ID[..., None]).sum(dim=1)


class ChildHead(nn.Module):
    """K scores per level of the tree, shared by all parents of that level (TDLM). On the flat tree, MDLM's head.

    The score of a node is that of its slot: logits[b, i] = W_d h[b, i] + b_d with d the depth of the node there.
    """

    def __init__(self, config: TreeDiffConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Linear(config.hidden_size, config.max_branching) for _ in range(config.tree_depth)
        )

    def forward(
        self, hidden_BTE: torch.Tensor, input_ids_BT: torch.Tensor, tree: VocabularyTree, level: int | None = None
    ) -> torch.Tensor:
        """(B, T, E) hidden states, (B, T) nodes -> (B, T, K)."""
        logits_BTK = _project_by_depth(self.levels, hidden_BTE, tree.depth[input_ids_BT], level)
        return _mask_missing(logits_BTK, input_ids_BT, tree)


class NodeHead(nn.Module):
    """An output vector A and a bias b of its own for every node but the root: logits = <P_d h, A_child> + b_child.

    Unlike in `ChildHead`, a score does not depend on the number of the slot that a child happens to take; P_d is shared
    by all parents of depth d. Below the root each position has its own children, whose vectors would be (n, K, R)
    numbers: positions are sorted by parent and cut into blocks of one parent, (G, K, R) with G < n / C + P.
    """

    def __init__(self, config: TreeDiffConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Linear(config.hidden_size, config.head_rank, bias=False) for _ in range(config.tree_depth)
        )
        self.nodes = nn.Linear(config.head_rank, config.num_tree_nodes - 1)
        # With the usual small weights on both sides of the product all scores would start, and for long stay, at 0.
        self.nodes.initial_std = config.head_rank**-0.5

    @force_accelerate_hooks("nodes")  # whose weights are used without its forward
    def forward(
        self, hidden_BTE: torch.Tensor, input_ids_BT: torch.Tensor, tree: VocabularyTree, level: int | None = None
    ) -> torch.Tensor:
        """(B, T, E) hidden states, (B, T) nodes -> (B, T, K)."""
        query_BTR = _project_by_depth(self.levels, hidden_BTE, tree.depth[input_ids_BT], level)
        # The root, V, has no row; missing children, -1, take any.
        row_IK = (tree.children - (tree.children > tree.root_id).long()).clamp(min=0)
        inner_BT, logits_BTK = input_ids_BT > tree.root_id, query_BTR.new_zeros(())
        if not level:
            logits_BTK = F.linear(query_BTR, self.nodes.weight[row_IK[0]], self.nodes.bias[row_IK[0]])
        if level != 0 and len(row_IK) > 1:
            parent_BT = torch.where(inner_BT, input_ids_BT - tree.root_id - 1, len(row_IK) - 1)
            inner_nK = self._score_in_blocks(query_BTR.flatten(0, -2), parent_BT.flatten(), row_IK[1:])
            logits_BTK = torch.where(inner_BT[..., None], inner_nK.unflatten(0, input_ids_BT.shape), logits_BTK)
        return _mask_missing(logits_BTK, input_ids_BT, tree)

    def _score_in_blocks(self, query_nR: torch.Tensor, parent_n: torch.Tensor, row_PK: torch.Tensor) -> torch.Tensor:
        """(n, R) queries, (n,) parents, P for none -> (n, K) scores of the rows row_PK[parent]; arbitrary for none."""
        blocks = group_by_parent(parent_n, len(row_PK))
        row_GK = row_PK[blocks.parent_G]
        query_GCR = query_nR.index_select(0, blocks.source_GC.flatten()).unflatten(0, blocks.source_GC.shape)
        # An embedding's gradient adds up repeated rows faster than that of an index.
        vector_GKR = F.embedding(row_GK, self.nodes.weight.to(query_nR.dtype))
        bias_GK1 = F.embedding(row_GK, self.nodes.bias[:, None])
        logits_GCK = torch.baddbmm(bias_GK1.mT, query_GCR, vector_GKR.mT)
        return logits_GCK.flatten(0, 1).index_select(0, blocks.place_n)


class LeafHead(nn.Module):
    """V scores; a node's is the logsumexp over the leaves below it (HDLM). On the flat tree the same as `ChildHead`.

    So a cluster's probability is the sum of its tokens'. It takes O(n V) numbers in fp32.
    """

    def __init__(self, config: TreeDiffConfig) -> None:
        super().__init__()
        self.tokens = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(
        self, hidden_BTE: torch.Tensor, input_ids_BT: torch.Tensor, tree: VocabularyTree, level: int | None = None
    ) -> torch.Tensor:
        """(B, T, E) hidden states, (B, T) nodes -> (B, T, K)."""
        score_BTN, child_IK = self.tokens(hidden_BTE), tree.children.clamp(min=0)
        if len(child_IK) == 1:
            return score_BTN.index_select(-1, child_IK[0])
        score_BTV = _at_least_fp32(score_BTN)
        score_BTN = torch.cat([score_BTV, subtree_logsumexp(score_BTV, tree)], dim=-1)
        logits_BTK = score_BTN.gather(-1, child_IK[(input_ids_BT - tree.root_id).clamp(min=0)])
        return _mask_missing(logits_BTK, input_ids_BT, tree)


TreeHead = ChildHead | NodeHead | LeafHead
HEAD_CLASSES: dict[str, type[TreeHead]] = {"child": ChildHead, "node": NodeHead, "leaf": LeafHead}


def child_cross_entropy(
    head: TreeHead,
    hidden: torch.Tensor,
    input_ids: torch.Tensor,
    slots: torch.Tensor,
    tree: VocabularyTree,
    level: int | None = None,
) -> torch.Tensor:
    """Return the cross-entropy of the true child at every position: (B, T) nats, in fp32 at least.

    Dense identity: F.cross_entropy(head(hidden, input_ids, tree), slots), 0 where the slot is -100, for (B, T, E)
    hidden states, (B, T) nodes and the (B, T) slots of the true children; `level` is the depth of all nodes, if it is
    one.
    """
    logits_nK = _at_least_fp32(head(hidden.flatten(0, -2), input_ids.flatten(), tree, level))
    return F.cross_entropy(logits_nK, slots.flatten(), reduction="none").view_as(slots)


def perturbed_cross_entropy(
    head: TreeHead,
    hidden: torch.Tensor,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    tree: VocabularyTree,
    rate: float,
) -> torch.Tensor:
    """Return what the bound charges where inner nodes are shown perturbed at a rate: (B, T) nats, in fp32 at least.

    The reverse process leaves a node at depth d for one at d + 1 that is drawn, perturbed, below the true node of depth
    d. So this is -log p(the true node | what is shown there) - log p(its true child), where the child is shown
    perturbed, too, unless it is a token: the divergence of the two distributions of what is shown. Of the first choice
    the head gives the odds as the rest of the text has them, which are multiplied by the likelihood of what is shown.
    At rate 0 this is `child_cross_entropy`.

    Args:
        head: any of the above.
        hidden: (B, T, E) hidden states.
        input_ids: (B, T) nodes that are shown.
        labels: (B, T) tokens; -100 where not counted.
        tree: the vocabulary tree.
        rate: of the perturbation.

    """
    shown_n, label_n, hidden_nE = input_ids.flatten(), labels.flatten(), hidden.flatten(0, -2)
    depth_n = tree.depth[shown_n]
    counted_n = (label_n >= 0) & (depth_n < tree.tree_depth)
    token_n, depth_n = label_n.clamp(min=0), depth_n.clamp(max=tree.tree_depth - 1)
    true_n, child_n = tree.ancestors[token_n, depth_n], tree.ancestors[token_n, depth_n + 1]
    parent_n = tree.ancestors[token_n, (depth_n - 1).clamp(min=0)]

    # Of a position that is not counted, what it should show: a token's own slots may be none of that node's.
    like_nK = sibling_log_likelihood(torch.where(counted_n, shown_n, true_n), tree, rate)
    parent_log_nK, log_nK = (
        _at_least_fp32(head(hidden_nE, node_n, tree)).log_softmax(dim=-1) for node_n in (parent_n, true_n)
    )
    odds_nK = parent_log_nK + like_nK
    revised_n = F.cross_entropy(odds_nK, tree.child_slot[true_n], reduction="none").masked_fill(depth_n == 0, 0)

    is_there_nK = tree.children[true_n - tree.root_id] >= 0
    others_n1 = is_there_nK.sum(dim=-1, keepdim=True) - 1
    perturbed_n1 = (others_n1 > 0) & (depth_n + 1 < tree.tree_depth)[:, None]
    wrong_n1 = torch.where(perturbed_n1, rate / others_n1.clamp(min=1), 0.0).to(log_nK)
    right_n1 = torch.where(perturbed_n1, 1 - rate, 1.0).to(log_nK)
    shown_nK = (right_n1 - wrong_n1) * log_nK.exp() + wrong_n1
    is_true_nK = torch.arange(log_nK.shape[1], device=log_nK.device) == tree.child_slot[child_n][:, None]
    target_nK = torch.where(is_true_nK, right_n1, wrong_n1) * is_there_nK
    # log p is the more exact where nothing is perturbed, and -inf only where nothing is asked.
    log_shown_nK = torch.where(perturbed_n1, shown_nK.clamp(min=torch.finfo(log_nK.dtype).tiny).log(), log_nK)
    charged_nK = torch.special.entr(target_nK) + target_nK * log_shown_nK.masked_fill(target_nK == 0, 0)
    return torch.where(counted_n, revised_n - charged_nK.sum(dim=-1), 0).view_as(labels)


def mix_uniform(log_probs: torch.Tensor, nodes: torch.Tensor, tree: VocabularyTree, share: float) -> torch.Tensor:
    """(n,) or (n, K) log-probabilities of children of (n,) nodes -> log((1 - share) p + share / number of children)."""
    uniform_n = (share / (tree.children[nodes - tree.root_id] >= 0).sum(dim=-1).to(log_probs.dtype)).log()
    return torch.logaddexp(log_probs + math.log1p(-share), uniform_n[(...,) + (None,) * (log_probs.ndim - 1)])


@dataclass(frozen=True)
class ParentBlocks:
    """Positions in blocks of equal size and one parent each."""

    parent_G: torch.Tensor  # the parent of each block
    source_GC: torch.Tensor  # the position that stands at each place; surplus places repeat others and are not read
    place_n: torch.Tensor  # where among the G * C places each position stands; anywhere if it has no parent


def group_by_parent(parent_n: torch.Tensor, num_parents: int) -> ParentBlocks:
    """Sort positions by parent, 0..P-1 or P for none, and cut them into blocks; all shapes follow from n and P."""
    count = len(parent_n)
    size = min(max(-(-count // num_parents), 1), LARGEST_BLOCK)
    # Each of the parents that occur leaves at most size - 1 places of its last block empty.
    num_blocks = (count + (size - 1) * min(num_parents, count)) // size
    sorted_n, order_n = parent_n.sort(stable=True)
    arange = partial(torch.arange, device=parent_n.device)
    first_P1 = torch.searchsorted(sorted_n, arange(num_parents + 1))
    end_P = ((first_P1.diff() + size - 1) // size).cumsum(0)
    start_P = F.pad(end_P, (1, -1))
    block_G = arange(num_blocks)
    parent_G = torch.searchsorted(end_P, block_G, right=True).clamp(max=num_parents - 1)
    rank_G = first_P1[parent_G] + (block_G - start_P[parent_G]) * size
    rank_GC = (rank_G[:, None] + arange(size)).clamp(max=count - 1)
    known_n = sorted_n.clamp(max=num_parents - 1)
    sorted_place_n = start_P[known_n] * size + arange(count) - first_P1[known_n]
    place_n = torch.empty_like(order_n).scatter_(0, order_n, sorted_place_n.clamp(max=num_blocks * size - 1))
    return ParentBlocks(parent_G, order_n[rank_GC], place_n)


def subtree_logsumexp(score_BTV: torch.Tensor, tree: VocabularyTree) -> torch.Tensor:
    """(B, T, V) scores of the leaves -> (B, T, I): each internal node's logsumexp over the leaves below it.

    The root, whose value nobody needs, gets -inf. Stable: each node's largest leaf is subtracted first.
    """
    shape = (*score_BTV.shape[:-1], len(tree.children))
    largest_BTI = score_BTV.new_full(shape, -torch.inf)
    node_levels = (tree.ancestors[:, 1:-1] - tree.root_id).unbind(1)
    for node_V in node_levels:
        largest_BTI.scatter_reduce_(-1, node_V.expand_as(score_BTV), score_BTV.detach(), "amax")
    largest_BTI = largest_BTI.masked_fill(largest_BTI.isneginf(), 0)
    total_BTI = score_BTV.new_zeros(shape)
    for node_V in node_levels:
        total_BTI = total_BTI.index_add(-1, node_V, (score_BTV - largest_BTI[..., node_V]).exp())
    empty_BTI = total_BTI == 0  # the logarithm's gradient is not finite there
    return (total_BTI.masked_fill(empty_BTI, 1).log() + largest_BTI).masked_fill(empty_BTI, -torch.inf)


def _project_by_depth(
    levels: nn.ModuleList, hidden_BTE: torch.Tensor, depth_BT: torch.Tensor, level: int | None
) -> torch.Tensor:
    """Apply to each position the layer of its node's depth, the first also to leaves; with `level` all get that one."""
    result: torch.Tensor = levels[level or 0](hidden_BTE)
    if level is not None:
        return result
    for depth, layer in enumerate(levels[1:], start=1):
        result = torch.where((depth_BT == depth)[..., None], layer(hidden_BTE), result)
    return result


def _mask_missing(logits_BTK: torch.Tensor, input_ids_BT: torch.Tensor, tree: VocabularyTree) -> torch.Tensor:
    """Put -inf where a position's node has no child; at leaves, where the root has none."""
    if tree.children.shape == (1, tree.vocab_size):  # the flat tree: nothing is missing, and a mask would be as large
        return logits_BTK
    row_BT = (input_ids_BT - tree.root_id).clamp(min=0)
    return logits_BTK.masked_fill((tree.children < 0)[row_BT], -torch.inf)


def _at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
