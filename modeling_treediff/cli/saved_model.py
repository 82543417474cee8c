"""Saved models as the subcommands load them: config, model and tokenizer, from a folder or the Hub."""

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM
from modeling_treediff.files.sources import check_source, refuse_adapter
from modeling_treediff.text.tree_tokenizer import check_tokenizer, load_tokenizer


def load_config(source: str) -> TreeDiffConfig:
    """Return a model's config.

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
    return config


def load_model(
    source: str,
    tokenizer: str | None = None,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> tuple[TreeDiffForDiffusionLM, PreTrainedTokenizerBase]:
    """Return a model and its tokenizer or the one of another name; errors as of `load_config`.

    The model runs no code but this package's; `trust_remote_code` is for the tokenizer.

    Raises:
        ValueError: also for a tokenizer that is not the tree's.

    """
    load_config(source)
    model = TreeDiffForDiffusionLM.from_pretrained(source, dtype=dtype)
    vocabulary = load_tokenizer(check_source(tokenizer or source, "tokenizer"), trust_remote_code)
    check_tokenizer(model.tree, vocabulary)
    return model.to(device), vocabulary
