"""Saved models as the subcommands load them: config, model and tokenizer, from a folder or the Hub."""

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM
from modeling_treediff.files.sources import check_source, refuse_adapter
from modeling_treediff.text.tree_tokenizer import check_tokenizer, load_tokenizer


def load_config(source: str, **changes: Any) -> TreeDiffConfig:
    """Return a model's config, with other values of fields that no weight depends on, where they are not None.

    Raises:
        OSError: nothing is there.
        ValueError: it is an adapter, or a model of another kind.

    """
    try:
        config = AutoConfig.from_pretrained(check_source(source, "saved model"), trust_remote_code=False)
    except ValueError:
        refuse_adapter(source)
        raise
    if not isinstance(config, TreeDiffConfig):
        raise ValueError(f"{source} is a {config.model_type} model, not one of {TreeDiffConfig.model_type}.")
    if changes := {name: value for name, value in changes.items() if value is not None}:
        TreeDiffConfig(**config.to_dict() | changes)  # which refuses impossible ones
        config.update(changes)
    return config


def load_model(
    source: str,
    tokenizer: str | None = None,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **changes: Any,
) -> tuple[TreeDiffForDiffusionLM, PreTrainedTokenizerBase]:
    """Return a model and its tokenizer or the one of another name; config, changes and errors as of `load_config`.

    The model runs no code but this package's; `trust_remote_code` is for the tokenizer.

    Raises:
        ValueError: also for a tokenizer that is not the tree's.

    """
    config = load_config(source, **changes)
    model = TreeDiffForDiffusionLM.from_pretrained(source, dtype=dtype)
    if config.block_size != model.config.block_size:
        model.generation_config.block_length, model.generation_config.approximate_cache = None, False
    model.config.update({name: getattr(config, name) for name in changes})
    vocabulary = load_tokenizer(check_source(tokenizer or source, "tokenizer"), trust_remote_code)
    check_tokenizer(model.tree, vocabulary)
    return model.to(device), vocabulary
