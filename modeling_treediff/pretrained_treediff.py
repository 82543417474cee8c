"""What all models share: they own a vocabulary tree, and are saved and loaded together with it.

In a checkpoint the tree lives as persistent integer buffers in the weights, which alone are enough to run, and as a
readable file beside them with its provenance. Loading compares both with the fingerprint in the config.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from huggingface_hub import CommitInfo, metadata_load, metadata_save
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.utils import logging

from .atomic_files import update_folder
from .configuration_treediff import TreeDiffConfig
from .hub_upload import upload_files
from .model_card_treediff import CARD_FILES, CARD_NAME, MARK, write_model_card
from .model_records_treediff import find_files
from .text.mask_token import with_mask_token
from .text.tree_tokenizer import check_tokenizer, write_tokenizer
from .vocabulary_tree import HUB_OPTIONS, TREE_WEIGHTS_NAME, VocabularyTree, find_tree_file

logger = logging.get_logger(__name__)


class TreeDiffPreTrainedModel(PreTrainedModel):
    """Base of all models. The base model, `self.base_model`, holds the tree in its buffers `table_*`."""

    config_class = TreeDiffConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TreeDiffBlock"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # For every class that is not registered for another: code is saved with the model, and transformers, taking it for
    # remote code, never asks its converter, a service elsewhere, for the safetensors that a repository lacks.
    _auto_class = "AutoModel"

    def __init__(self, config: TreeDiffConfig) -> None:
        """Start without a tree; `from_tree` or `from_pretrained` fill it in."""
        super().__init__(config)
        self._tree_metadata: dict[str, Any] = {}
        self._tree_verified = False
        self._card_files: dict[str, Path] = {}  # of the checkpoint it was loaded from

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as transformers does, but for layers that name a standard deviation of their own."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and (std := getattr(module, "initial_std", None)) is not None:
            init.normal_(module.weight, std=std)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:  # noqa: ANN401
        """Refuse: a token is a leaf of the tree."""
        raise ValueError("The vocabulary is the tree's leaves: extend the tree for it: VocabularyTree.extend.")

    # ---- the tree ---------------------------------------------------------------------------------------------

    @classmethod
    def from_tree(cls, tree: VocabularyTree, **config_kwargs: Any) -> Self:  # noqa: ANN401 -- fields of the config
        """Make a freshly initialised model over a tree.

        Args:
            tree: the vocabulary tree; its provenance is kept and saved with the model.
            **config_kwargs: fields of TreeDiffConfig that the tree does not determine.

        Raises:
            ValueError: an invalid tree or contradictory sizes.

        """
        tree.validate()
        model = cls(TreeDiffConfig.from_tree(tree, **config_kwargs))
        for name in VocabularyTree.TABLES:
            getattr(model.base_model, f"table_{name}").copy_(getattr(tree, name))
        model._tree_metadata = dict(tree.metadata)
        return model

    @property
    def tree(self) -> VocabularyTree:
        """The vocabulary tree with its provenance; its tables are the model's buffers, on their device.

        Raises:
            ValueError: on first use, if the buffers do not hold the tree that the config names: the model was made
                from a config alone.

        """
        if not self._tree_verified:
            self._verify_tree()
        return self._tree_view()

    def _tree_view(self) -> VocabularyTree:
        """Return the tree without the check: `forward` is traced and must not look at values."""
        tables = {name: getattr(self.base_model, f"table_{name}") for name in VocabularyTree.TABLES}
        return VocabularyTree(**tables, metadata=dict(self._tree_metadata))

    def _verify_tree(self) -> None:
        """Raise ValueError unless the buffers hold the tree that the config names."""
        tree = self._tree_view()
        if not tree.ancestors.any():  # all zero, but the first column of a tree is its root's id
            raise ValueError("The model has no tree yet: make it with from_tree, or load it with from_pretrained.")
        self._check_sha256("the weights", tree.validate().sha256)
        self._tree_verified = True

    # ---- persistence ------------------------------------------------------------------------------------------

    def save_pretrained(  # type: ignore[override]  # its other options are keywords here
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,  # noqa: ANN401 -- transformers' own options
    ) -> None:
        """Write weights, configs, tree, code, model card and, if given, the tokenizer, with a mask token.

        Everything slow happens in a temporary folder; then each file replaces its older version in one rename, the
        weights last. So a kill while writing leaves an older checkpoint of the same shape, in one weights file, as it
        was or as it is now. Only a kill between the renames, milliseconds, can mix an older checkpoint of another
        shape or in several shards with the new one; save those to a new folder.

        Raises:
            ValueError: the tokenizer's size is not the tree's, the buffers no longer hold the tree that the config
                names, or push_to_hub=True.

        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError(
                "save_pretrained writes the folder alone: call model.push_to_hub(repo_id, tokenizer=tokenizer), which "
                "uploads the same files in one commit."
            )
        if not is_main_process:
            return
        self._verify_tree()
        if tokenizer is not None:
            tokenizer = self.with_mask_token(tokenizer)
        target, stem = Path(save_directory), f"model.{kwargs['variant']}" if kwargs.get("variant") else "model"
        # Weights of an earlier save in other shards would be loaded instead of ours, or beside them.
        patterns = (f"{stem}.safetensors", f"{stem}-?????-of-?????.safetensors", f"{stem}.safetensors.index.json")
        stale = {file for pattern in patterns for file in target.glob(pattern)}
        with update_folder(target, written_last=lambda name: name.endswith(".safetensors")) as folder:
            with self._under_its_own_class():
                super().save_pretrained(folder, **kwargs)
            self.tree.save_pretrained(folder)
            if tokenizer is not None:
                write_tokenizer(tokenizer, folder)
            written = {file for pattern in patterns for file in folder.glob(pattern)}
            if stem == "model" and written:  # the card is about the weights that load by default
                write_model_card(self, folder, target)
            # Without weights of ours, as with an adapter alone, those that are there stay.
            stale -= {target / file.name for file in written} if written else stale
        for file in stale:
            file.unlink()

    def push_to_hub(  # type: ignore[override]  # the upload's options are keywords here
        self,
        repo_id: str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_shard_size: int | str = "50GB",
        tags: Collection[str] = (),
        **options: Any,  # noqa: ANN401
    ) -> CommitInfo:
        """Upload all that `save_pretrained` writes to a Hub repository, in one commit.

        A push that broke off leaves the repository as it was, and is repeated by calling this again. A README.md of the
        repository's that was not rendered here stays. Of several processes, call it in one alone, as transformers' own.

        Args:
            repo_id: "user/name", or "name" for the user's own; made if it does not exist.
            tokenizer: goes with the model, as in `save_pretrained`.
            max_shard_size: larger weights are divided into several files.
            tags: for the Hub's search, added to those of the rendered card.
            options: `commit_message`, `commit_description`, `private`, `token`, `revision`, `create_pr` and
                `subfolder`, as `upload_files` in `hub_upload.py` documents them.

        Returns:
            The commit, as huggingface_hub describes it.

        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, tokenizer=tokenizer, max_shard_size=max_shard_size)
            if tags and (card := Path(folder) / CARD_NAME).exists():
                data = metadata_load(card) or {}
                metadata_save(card, data | {"tags": list(dict.fromkeys([*data.get("tags", []), *tags]))})
            return upload_files(Path(folder), repo_id, card_mark=MARK, **options)

    def with_mask_token(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Return the tree's tokenizer with the root as its mask token; where it cannot have one, as it is.

        Raises:
            ValueError: the tokenizer's size is not the tree's.

        """
        check_tokenizer(self.tree, tokenizer)
        try:
            return with_mask_token(tokenizer, self.config.mask_token_id)
        except ValueError as error:
            logger.warning_once(f"The tokenizer is saved without a mask token, which `fill-mask` needs. {error}")
            return tokenizer

    @contextmanager
    def _under_its_own_class(self) -> Iterator[None]:
        """Let transformers save our code: FSDP2 gives a model a class `FSDP...` that torch makes, in torch's files."""
        sharded = type(self)
        self.__class__ = next(cls for cls in sharded.__mro__ if cls.__name__ == sharded.__name__.removeprefix("FSDP"))
        try:
            yield
        finally:
            self.__class__ = sharded

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Load as transformers does, but only safetensors; verify the tree in the weights and beside them.

        Raises:
            OSError: there are no weights, or none in safetensors.
            ValueError: damaged weights, or a tree that is not the one the config names.

        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError("Only safetensors are loaded, since a pickle can run code: leave out use_safetensors.")
        wants_info = kwargs.pop("output_loading_info", False)
        with _what_is_wrong_with(pretrained_model_name_or_path):
            options = {**kwargs, "use_safetensors": True, "output_loading_info": True}
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        model, info = loaded
        if absent := sorted(name for name in info["missing_keys"] if "table_" in name):
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} hold no vocabulary tree ({', '.join(absent)} are "
                "missing): restore the original files, or save the model again with save_pretrained."
            )
        model._verify_tree()
        hub_kwargs = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        model._read_sidecar(pretrained_model_name_or_path, hub_kwargs)
        if pretrained_model_name_or_path is not None:
            model._card_files = find_files(pretrained_model_name_or_path, CARD_FILES, **hub_kwargs)
        return (model, info) if wants_info else model

    def _read_sidecar(self, source: str | os.PathLike | None, hub_kwargs: dict[str, Any]) -> None:
        """Take the provenance from the tree's own file, if the checkpoint has one, and compare the tree in it."""
        if source is not None and find_tree_file(source, **hub_kwargs):
            sidecar = VocabularyTree.from_pretrained(source, **hub_kwargs)
            self._check_sha256(TREE_WEIGHTS_NAME, sidecar.sha256)
            self._tree_metadata = dict(sidecar.metadata)

    def _check_sha256(self, place: str, sha256: str) -> None:
        if sha256 != self.config.tree_sha256:
            raise ValueError(
                f"The vocabulary tree in {place} of {self.config.name_or_path} is not the one the model was trained "
                f"with: its sha256 is {sha256}, the config names {self.config.tree_sha256}. Restore the original files."
            )


@contextmanager
def _what_is_wrong_with(source: object) -> Iterator[None]:
    """Say in one sentence what loading weights from `source` failed at, and what to do."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"The weights in {source} are damaged ({error}). Save or download them again.") from error
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise ValueError(
            f"The weights in {source} have other sizes than its config.json names. Restore the original files."
        ) from error
    except OSError as error:
        if (name := re.search(r"(?<![-.\w])model[-.\w]*\.safetensors", str(error))) is None:
            raise
        raise OSError(
            f"{source} holds no {name[0]}, and a pickle such as pytorch_model.bin is never loaded, since it can run "
            "code: complete the files, or ask their author for safetensors."
        ) from error
