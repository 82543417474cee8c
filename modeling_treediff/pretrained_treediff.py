"""What all models share: they own a vocabulary tree, and are saved and loaded together with it.

In a checkpoint the tree lives as persistent integer buffers in the weights, which alone are enough to run, and as a
readable file beside them with its provenance. Loading compares both with the fingerprint in the config.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_treediff import TreeDiffConfig
from .vocabulary_tree import HUB_OPTIONS, TREE_WEIGHTS_NAME, VocabularyTree, find_tree_file


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

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as transformers does, but for layers that name a standard deviation of their own."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and (std := getattr(module, "initial_std", None)) is not None:
            init.normal_(module.weight, std=std)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:  # noqa: ANN401
        """Refuse: a token is a leaf of the tree."""
        raise ValueError(
            "The vocabulary is the leaves of the tree: extend it (modeling_treediff.building.extend_tree), then make a "
            "model over it with from_tree."
        )

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
        **kwargs: Any,  # noqa: ANN401 -- transformers' own options
    ) -> None:
        """Write weights, configs and code as transformers does, and the tree.

        The tokenizer is saved by itself. `modeling_treediff.hub.save_checkpoint`, of the package, also writes the
        model card, removes weights of an earlier save in other shards, and replaces an older model only when all is
        written.

        Raises:
            ValueError: the buffers no longer hold the tree that the config names; push_to_hub=True, or a tokenizer.

        """
        if kwargs.get("push_to_hub") or "tokenizer" in kwargs:
            raise ValueError(
                "save_pretrained writes the model into a folder: push it with model.push_to_hub(repo_id), save its "
                "tokenizer with tokenizer.save_pretrained(folder), or do all with modeling_treediff.hub."
            )
        self._verify_tree()
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.tree.save_pretrained(save_directory)

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
        model._read_sidecar(
            pretrained_model_name_or_path, {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        )
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
