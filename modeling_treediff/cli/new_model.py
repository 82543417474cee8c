"""The config of a new model, from a tree and what the command line says of its sizes."""

import math
from typing import Any

from modeling_treediff.building.budget import budget_config
from modeling_treediff.vocabulary_tree import VocabularyTree

from .options.model import SEQUENCE_LENGTH, Model, Process


def model_fields(
    tree: VocabularyTree, model: Model, process: Process, eos_token_id: int | None = None
) -> dict[str, Any]:
    """Return the fields of the config over the tree, with the layers asked for or those the budget pays."""
    length = SEQUENCE_LENGTH if model.sequence_length is None else model.sequence_length
    base = model.rope_theta
    if base is None:
        base = usual_rope_theta(length, model.hidden_size // model.num_attention_heads)
    fields: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "max_position_embeddings": length,
        "rope_theta": base,
        **vars(process),
        "eos_token_id": eos_token_id,
        "bos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
    }
    if model.num_hidden_layers is not None:
        return fields | {"num_hidden_layers": model.num_hidden_layers}
    config = budget_config(tree, model.num_parameters, **fields)
    return fields | {name: getattr(config, name) for name in ("num_hidden_layers", "intermediate_size")}


def usual_rope_theta(length: int, head_width: int) -> float:
    """Return the least power of ten, from 100 on, that is neither below the length nor below `least_rope_theta`."""
    return 10.0 ** max(2, math.ceil(math.log10(max(length, least_rope_theta(length, head_width)))))


def least_rope_theta(length: int, head_width: int) -> float:
    """Return the least base of which the slowest pair of features goes at most half around within a window.

    With a smaller one it no longer tells a distance to the left from one to the right: distances lie in (-length,
    length), and a turn takes 2 pi base^(1 - 2 / width of a head) positions. A head of width 2 has no slower pair.
    """
    return (length / math.pi) ** (head_width / (head_width - 2)) if head_width > 2 else 0.0
