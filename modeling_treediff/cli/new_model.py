"""The config of a new model, from a tree and what the command line says of its sizes."""

from typing import Any

from modeling_treediff.building.budget import budget_config
from modeling_treediff.vocabulary_tree import VocabularyTree

from .options.model import SEQUENCE_LENGTH, Model, Process


def model_fields(
    tree: VocabularyTree, model: Model, process: Process, eos_token_id: int | None = None
) -> dict[str, Any]:
    """Return the fields of the config over the tree, with the layers asked for or those the budget pays."""
    length = SEQUENCE_LENGTH if model.sequence_length is None else model.sequence_length
    fields: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "max_position_embeddings": length,
        "rope_theta": model.rope_theta,
        **vars(process),
        "eos_token_id": eos_token_id,
        "bos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
    }
    if model.num_hidden_layers is not None:
        return fields | {"num_hidden_layers": model.num_hidden_layers}
    config = budget_config(tree, model.num_parameters, **fields)
    return fields | {name: getattr(config, name) for name in ("num_hidden_layers", "intermediate_size")}
