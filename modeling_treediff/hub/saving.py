"""Saving a complete checkpoint: weights, tree, code, tokenizer and card in one folder, atomically."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_treediff.files.atomic_files import update_folder
from modeling_treediff.modeling_treediff import TreeDiffPreTrainedModel
from modeling_treediff.text.mask_token import with_mask_token
from modeling_treediff.text.tree_tokenizer import check_tokenizer, write_tokenizer
from modeling_treediff.vocabulary_tree import VocabularyTree

from .card import write_card
from .records import is_weights, weights_files
from .retired_code import retired_code

logger = logging.get_logger(__name__)


def save_checkpoint(
    model: TreeDiffPreTrainedModel,
    folder: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    is_main_process: bool = True,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    max_shard_size: int | str = "50GB",
) -> None:
    """Write weights, configs, tree, code, model card and, if given, the tokenizer, with a mask token.

    Everything slow happens in a temporary folder; then each file replaces its older version in one rename, the weights
    last. So a kill while writing leaves an older checkpoint of the same shape, in one weights file, as it was or as it
    is now. Only a kill between the renames, milliseconds, can mix an older checkpoint of another shape or in several
    shards with the new one; save those to a new folder.

    Args:
        model: any model of ours; a body without a head has no card, one with an adapter saves the adapter alone.
        folder: where to; made if it is not there.
        tokenizer: of the model's tree.
        is_main_process: the others write nothing.
        state_dict: the weights, where the model's own are sharded over processes.
        max_shard_size: larger weights are divided into several files.

    Raises:
        ValueError: the tokenizer's size is not the tree's, or the buffers no longer hold the tree that the config
            names. Nothing is written.

    """
    if not is_main_process:
        return
    if tokenizer is not None:
        tokenizer = tokenizer_with_mask(tokenizer, model.tree)
    if state_dict is not None:  # a gathered one has what is shared once for each name
        state_dict = {name: one for name, one in state_dict.items() if name not in model.all_tied_weights_keys}
    target = Path(folder)
    # Weights of an earlier save in other shards would be loaded instead of ours, or beside them.
    stale = weights_files(target)
    older_code = retired_code({file.name for file in target.glob("*.py")})
    with update_folder(target, written_last=is_weights) as staged:
        try:
            with _under_its_own_class(model):
                model.save_pretrained(staged, state_dict=state_dict, max_shard_size=max_shard_size)
        except OSError as error:  # names the temporary folder, which nobody knows
            raise OSError(str(error).replace(str(staged), str(target))) from error
        if tokenizer is not None:
            write_tokenizer(tokenizer, staged, model.config.max_position_embeddings)
        written = weights_files(staged)  # none where an adapter alone is saved: those that are there stay
        if written and model.can_generate():
            write_card(model, staged, target)
    for name in older_code | stale - written if written else ():
        (target / name).unlink()


def tokenizer_with_mask(tokenizer: PreTrainedTokenizerBase, tree: VocabularyTree) -> PreTrainedTokenizerBase:
    """Return a tree's tokenizer with the root as its mask token; where it cannot have one, as it is, with a warning.

    Raises:
        ValueError: the tokenizer's size is not the tree's.

    """
    check_tokenizer(tree, tokenizer)
    try:
        return with_mask_token(tokenizer, tree.root_id)
    except ValueError as error:
        logger.warning_once(f"The tokenizer is saved without a mask token, which `fill-mask` needs. {error}")
        return tokenizer


@contextmanager
def _under_its_own_class(model: TreeDiffPreTrainedModel) -> Iterator[None]:
    """Let transformers save our code: FSDP2 gives a model a class `FSDP...` that torch makes, in torch's files."""
    sharded = type(model)
    model.__class__ = next(cls for cls in sharded.__mro__ if cls.__name__ == sharded.__name__.removeprefix("FSDP"))
    try:
        yield
    finally:
        model.__class__ = sharded
