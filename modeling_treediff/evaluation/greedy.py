"""Greedy decoding of a given text: whether a model reproduces it.

Shape legend: B sequences, T positions.
"""

import torch

from modeling_treediff import GenerationStep, TreeDiffForDiffusionLM, TreeDiffGenerationConfig


class _AllWrong(Exception):
    """No text of a batch can still become its reference."""


def is_greedy(
    model: TreeDiffForDiffusionLM, token_ids: torch.Tensor, attention_mask: torch.Tensor, fixed_mask: torch.Tensor
) -> list[bool]:
    """Return for each text whether greedy filling of its free positions reproduces it.

    All of them are open at first; in each pass the one position and level that the model is surest of takes its
    likeliest child. The order is the model's own, so a text may be greedy though its parts, each given what is to its
    left, are not. Ends early when no text of the batch can come out right any more.

    Args:
        model: the model.
        token_ids: (B, T) tokens.
        attention_mask: (B, T), 0 at padding.
        fixed_mask: (B, T), 1 at tokens that are given.

    """
    tree, config = model.tree, model.config
    open_BT = (attention_mask != 0) & (fixed_mask == 0)

    def give_up(step: GenerationStep) -> None:
        right_BT = tree.ancestors[token_ids, tree.depth[step.node_ids]] == step.node_ids
        if model.schedule.perturbation:  # where nodes above the tokens are revised
            right_BT |= step.node_ids >= tree.vocab_size
        if not (right_BT | ~open_BT).all(dim=1).any():
            raise _AllWrong

    # As many passes as the longest text could need: then each text takes one position and level in each.
    settings = TreeDiffGenerationConfig(
        do_sample=False, unmasking="confidence", num_steps=config.tree_depth * config.max_position_embeddings
    )
    nodes_BT = token_ids.masked_fill(open_BT, config.mask_token_id)
    try:
        filled_BT = model.generate(nodes_BT, attention_mask, settings, callback=give_up)
    except _AllWrong:
        return [False] * len(token_ids)
    return ((filled_BT == token_ids) | ~open_BT).all(dim=1).tolist()
