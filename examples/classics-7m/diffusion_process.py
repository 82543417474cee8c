"""The forward process (tokens lose depth in the tree) and its exact continuous-time bound.

Source: Tree-Structured Diffusion Language Model (TDLM, arXiv 2604.03537); on the flat tree MDLM (arXiv 2406.07524).
Shape legend: B sequences, T positions, V tokens, D depth of the leaves, K largest fan-out.

Positions are independent. With alpha_k(t) = P(depth at t >= k), pi_k = alpha_k - alpha_{k+1} and the flux
f_k = -alpha_k', a token x stands at its ancestor of depth k with probability pi_k(t), and

    NELBO(x) = sum_k int_0^1 dt f_k(t) / pi_{k-1}(t) E_{z_t} sum_i 1[depth_i = k-1] (-log p(a_k(x_i) | z_t, i)).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .configuration_treediff import is_of
from .noise_schedules import LevelSchedule
from .vocabulary_tree import VocabularyTree

IGNORED_LABEL = -100
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class CorruptedBatch:
    """A batch as the model's `forward` takes it."""

    input_ids: torch.Tensor  # (B, T) node ids: ancestors of the tokens
    labels: torch.Tensor  # (B, T) clean token ids; -100 at padding and fixed positions, which the bound does not count
    timesteps: torch.Tensor  # (B,) the time each sequence was corrupted to; (B, T), of each position, for blocks


def corrupt(
    token_ids: torch.Tensor,
    tree: VocabularyTree,
    schedule: LevelSchedule,
    timesteps: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    attention_mask: torch.Tensor | None = None,
    fixed_mask: torch.Tensor | None = None,
    uniforms: torch.Tensor | None = None,
    block_numbers: torch.Tensor | None = None,
    sibling_uniforms: torch.Tensor | None = None,
) -> CorruptedBatch:
    """Draw z_t ~ q(. | x): each position stands at its token's ancestor of a depth drawn from the schedule.

    Args:
        token_ids: (B, T) clean tokens, 0..V-1; ValueError for others.
        tree: the vocabulary tree.
        schedule: the schedule of its levels.
        timesteps: (B,) or (B, T) times in [0, 1]; drawn with low discrepancy if not given, one for each block.
        generator: source of all randomness, on any device.
        attention_mask: (B, T); positions with 0 are padding, stay as they are and are not counted.
        fixed_mask: (B, T); positions with 1 (prompts) stay clean and are not counted.
        uniforms: (B, T) numbers from U[0, 1) that choose the depths, in place of the generator's.
        block_numbers: (B, T) of `number_blocks`, for models that have blocks: each gets a time of its own.
        sibling_uniforms: (B, T) numbers by which a schedule with perturbation chooses what is shown.

    """
    check_tokens(token_ids, tree, attention_mask=attention_mask, fixed_mask=fixed_mask, uniforms=uniforms)
    if timesteps is None and block_numbers is not None:
        shape = len(token_ids), int(block_numbers.max()) + 1
        times_BN = schedule.sample_times(shape[0] * shape[1], generator).view(shape).to(token_ids.device)
        timesteps = times_BN.gather(1, block_numbers)
    elif timesteps is None:
        timesteps = schedule.sample_times(len(token_ids), generator).to(token_ids.device)
    elif timesteps.numel() and not 0 <= float(timesteps.min()) <= float(timesteps.max()) <= 1:
        raise ValueError("timesteps must lie in [0, 1].")
    if uniforms is None:
        uniforms = uniform(token_ids.shape, generator, token_ids.device)
    node_ids = tree.ancestors[token_ids, _depths(uniforms, schedule, timesteps)]
    if schedule.perturbation:
        if sibling_uniforms is None:
            sibling_uniforms = uniform(token_ids.shape, generator, token_ids.device)
        node_ids = perturb(node_ids, tree, schedule.perturbation, sibling_uniforms)
    counted_BT = counted_positions(token_ids, attention_mask, fixed_mask)
    return CorruptedBatch(
        input_ids=torch.where(counted_BT, node_ids, token_ids),
        labels=torch.where(counted_BT, token_ids, IGNORED_LABEL),
        timesteps=timesteps,
    )


def corrupt_level(
    token_ids: torch.Tensor,
    counted: torch.Tensor,
    level: torch.Tensor,
    timesteps: torch.Tensor,
    tree: VocabularyTree,
    schedule: LevelSchedule,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Corrupt for an estimate of one level's share in the bound; some position always stands just above that level.

    With t drawn from the flux f_k and one position, drawn evenly, put at depth k-1, a pattern has its probability
    under q(. | x) times m / (N pi_{k-1}), m the number of positions at depth k-1 and N of all counted ones. So N times
    the mean of anything over these m positions has the expectation of f_k / pi_{k-1} times its sum under q.

    Args:
        token_ids: (B, T) clean tokens.
        counted: (B, T) bool, the others stay clean; at least one per sequence.
        level: (B,) the level k, 1..D, of each sequence.
        timesteps: (B,) times drawn from the flux of that level, see `loss_times`.
        tree: the vocabulary tree.
        schedule: the schedule of its levels.
        generator: source of the randomness, on any device.

    Returns:
        (B, T) node ids, and (B, T) bool: the positions at depth k-1, one at least.
    """
    depth_BT = _depths(uniform(token_ids.shape, generator, token_ids.device), schedule, timesteps)
    place_BT = uniform(token_ids.shape, generator, token_ids.device).masked_fill(~counted, -1)
    above_B1 = (level - 1)[:, None]
    depth_BT = depth_BT.scatter(1, place_BT.argmax(dim=1, keepdim=True), above_B1)
    node_ids = tree.ancestors[token_ids, depth_BT]
    if schedule.perturbation:
        node_ids = perturb(node_ids, tree, schedule.perturbation, uniform(node_ids.shape, generator, node_ids.device))
    return torch.where(counted, node_ids, token_ids), (depth_BT == above_B1) & counted


def perturb(node_ids: torch.Tensor, tree: VocabularyTree, rate: float, uniforms: torch.Tensor) -> torch.Tensor:
    """Replace nodes between root and tokens, of any shape, by another child of their parent, all alike, at a rate.

    `uniforms`, one number from U[0, 1) for each, say whether and by which. On a tree of depth 2 this is HDLM's noise,
    whose xi is 1 - rate. An only child stays.
    """
    children, is_there = siblings(node_ids, tree)
    slot = torch.arange(children.shape[-1], device=node_ids.device)
    is_other = is_there & (slot != tree.child_slot[node_ids][..., None])
    index = (uniforms / rate * is_other.sum(dim=-1)).long()[..., None]
    chosen = (is_other & (is_other.cumsum(dim=-1) - 1 == index)).long().argmax(dim=-1, keepdim=True)
    moves = (node_ids > tree.root_id) & (uniforms < rate) & is_other.any(dim=-1)
    return torch.where(moves, children.gather(-1, chosen)[..., 0], node_ids)


def siblings(node_ids: torch.Tensor, tree: VocabularyTree) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes of any shape -> (..., K) the children of their parents, those of the root for the root, and which exist."""
    above = (tree.depth[node_ids] - 1).clamp(min=0)
    children = tree.children[tree.ancestors[tree.representative[node_ids], above] - tree.root_id]
    return children, children >= 0


def sibling_log_likelihood(node_ids: torch.Tensor, tree: VocabularyTree, rate: float) -> torch.Tensor:
    """(n,) nodes that are shown -> (n, K): log-probability of it if the child in that slot of their parent is meant."""
    _, is_there_nK = siblings(node_ids, tree)
    others_n1 = is_there_nK.sum(dim=-1, keepdim=True) - 1
    wrong_n1 = torch.where(others_n1 > 0, rate / others_n1.clamp(min=1), 0.0).log()
    right_n1 = torch.where(others_n1 > 0, math.log1p(-rate), 0.0)
    own_nK = torch.arange(is_there_nK.shape[-1], device=node_ids.device) == tree.child_slot[node_ids][:, None]
    return torch.where(own_nK, right_n1, wrong_n1).masked_fill(~is_there_nK, -torch.inf)


def check_tokens(token_ids: torch.Tensor, tree: VocabularyTree, **beside: torch.Tensor | None) -> None:
    """Raise ValueError unless these are (B, T) leaves of the tree, and the masks beside them have that shape."""
    check_tensors("token_ids", token_ids, **beside)
    hint = " Is this the tokenizer the tree was built for?"
    _check_range(token_ids, tree.ancestors.shape[0], "Token ids", "the tree's leaves", hint)


def check_nodes(node_ids: torch.Tensor, num_nodes: int, **beside: torch.Tensor | None) -> None:
    """Raise ValueError unless these are (B, T) node ids below num_nodes, and the masks beside them have that shape."""
    check_tensors("input_ids", node_ids, **beside)
    _check_range(node_ids, num_nodes, "input_ids", "nodes of the tree")


def check_tensors(name: str, ids: torch.Tensor, **beside: torch.Tensor | None) -> None:
    """Raise ValueError unless these are (B, T) whole numbers and the others have that shape; reads no values."""
    for place, value in ((name, ids), *beside.items()):
        if not isinstance(value, torch.Tensor) and (value is not None or place == name):
            raise ValueError(f"{place} must be a tensor, got {type(value).__name__}.")
        if value is not None and value.shape != ids.shape:
            raise ValueError(f"{place} {tuple(value.shape)} and {name} {tuple(ids.shape)} differ in shape.")
    if ids.dtype not in (torch.int64, torch.int32) or ids.ndim != 2 or not len(ids):
        got = f"{ids.dtype} of shape {tuple(ids.shape)}"
        raise ValueError(f"{name} must be whole numbers of shape (batch, length), at least one text, got {got}.")


def checked_times(timesteps: torch.Tensor | None, shape: torch.Size) -> torch.Tensor:
    """Return the times of a batch; ValueError unless they have this shape, in numbers of 32 bits or more."""
    if not isinstance(timesteps, torch.Tensor) or timesteps.shape != shape:
        said = f"The loss needs `timesteps` of shape {tuple(shape)} beside `labels`"
        raise ValueError(f"{said}, as of corrupt(...), with block_numbers for a model that has blocks.")
    if not timesteps.is_floating_point() or timesteps.dtype.itemsize < 4:
        hint = "leave inputs as they are (FSDP2: MixedPrecisionPolicy(cast_forward_inputs=False))"
        raise ValueError(f"timesteps arrive as {timesteps.dtype}, too coarse for the weights: {hint}.")
    return timesteps


def _check_range(ids: torch.Tensor, count: int, name: str, what: str, hint: str = "") -> None:
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise ValueError(f"{name} must lie in 0..{count - 1} ({what}), got {int(ids.min())}..{int(ids.max())}.{hint}")


def counted_positions(
    token_ids: torch.Tensor, attention_mask: torch.Tensor | None, fixed_mask: torch.Tensor | None
) -> torch.Tensor:
    """Return (B, T) bool: what is neither padding nor given."""
    real_BT = torch.ones_like(token_ids) if attention_mask is None else attention_mask
    return real_BT.bool() if fixed_mask is None else real_BT.bool() & ~fixed_mask.bool()


def uniform(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """Draw from U[0, 1) in float64 on the generator's device and move there (float32 where float64 is lacking)."""
    source = generator.device if generator is not None else device
    dtype = torch.float32 if "mps" in (source.type, device.type) else torch.float64
    return torch.rand(shape, generator=generator, device=source, dtype=dtype).to(device)


def uniform_at(where_BT: torch.Tensor, generator: Generators, *shape: int) -> torch.Tensor:
    """Return (B, T, *shape) from U[0, 1) where asked for, else 0; of each text alone if it has its own generator."""
    counts = where_BT.sum(dim=1).tolist()
    if generator is None or isinstance(generator, torch.Generator):
        drawn = uniform((sum(counts), *shape), generator, where_BT.device)
    elif len(generator) != len(counts):
        raise ValueError(f"{len(generator)} generators for {len(counts)} texts: give one, or one for each text.")
    else:
        pairs = zip(generator, counts, strict=True)
        drawn = torch.cat([uniform((count, *shape), source, where_BT.device) for source, count in pairs])
    result = drawn.new_zeros(*where_BT.shape, *shape)
    result[where_BT] = drawn
    return result


def _depths(uniforms: torch.Tensor, schedule: LevelSchedule, timesteps: torch.Tensor) -> torch.Tensor:
    """Return each position's depth (B, T) at its time, from its number in [0, 1)."""
    return (uniforms[..., None] < by_position(schedule.alpha, timesteps)[..., 1:]).sum(-1)


def by_position(of_times: Callable[[torch.Tensor], torch.Tensor], timesteps: torch.Tensor) -> torch.Tensor:
    """Return a function of times, (n,) -> (n, X), beside positions: (B,) -> (B, 1, X), (B, T) -> (B, T, X)."""
    shape = (*timesteps.shape, 1)[:2]
    return of_times(timesteps.flatten()).view(*shape, -1)


def number_blocks(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, segment_ids: torch.Tensor | None, block_size: int
) -> torch.Tensor:
    """Return the number (B, T) of each position's block, from 0 on; padding, which has none, is in block 0.

    Every text, or segment of a window, begins with a block of its own; its last block may be shorter.
    """
    if not is_of(block_size, int) or block_size < 1:
        raise ValueError(f"block_size must be a whole number, at least 1, got {block_size!r}.")
    real_BT = torch.ones_like(input_ids) if attention_mask is None else (attention_mask != 0).long()
    order_BT = real_BT.cumsum(dim=1) - real_BT
    if segment_ids is not None:
        begins_BT = torch.ones_like(real_BT, dtype=torch.bool)
        begins_BT[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
        order_BT = order_BT - torch.where(begins_BT, order_BT, 0).cummax(dim=1).values
    return (((order_BT % block_size == 0) & (real_BT != 0)).cumsum(dim=1) - 1).clamp(min=0) * real_BT


def child_slots(input_ids: torch.Tensor, labels: torch.Tensor, tree: VocabularyTree) -> torch.Tensor:
    """(B, T) nodes, tokens below them or -100 -> (B, T) slots of the children on the way, -100 where there is none."""
    depth_BT = tree.depth[input_ids]
    child_BT = tree.ancestors[labels.clamp(min=0), (depth_BT + 1).clamp(max=tree.tree_depth)]
    return torch.where((labels >= 0) & (depth_BT < tree.tree_depth), tree.child_slot[child_BT], IGNORED_LABEL)


def nelbo_terms(
    nats: torch.Tensor, input_ids: torch.Tensor, timesteps: torch.Tensor, tree: VocabularyTree, schedule: LevelSchedule
) -> torch.Tensor:
    """Return each position's term of the bound, weight x cross-entropy of the true child, in the column of its level.

    Dense identity: sum over positions = sum_k f_k/pi_{k-1} sum_i 1[depth_i = k-1] (-log softmax(logits_i)[slot of
    a_k(x_i)]).

    Args:
        nats: (B, T) cross-entropies of the true children, 0 where not counted.
        input_ids: (B, T) nodes.
        timesteps: (B,) or (B, T) times that they were corrupted to.
        tree: the vocabulary tree.
        schedule: the schedule that corrupted them.

    Returns:
        (B, T, D) nats, non-zero at most at [b, i, depth of node i].
    """
    at_level = F.one_hot(tree.depth[input_ids].clamp(max=schedule.depth - 1), schedule.depth)
    return nats[..., None] * at_level * by_position(schedule.weight, timesteps)
