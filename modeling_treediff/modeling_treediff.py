"""The models: tree, process, backbone, head and generation put together, loaded and saved as Hugging Face models.

In a checkpoint the tree lives as persistent integer buffers in the weights, which alone are enough to run, and in a
file beside them with its provenance. Loading compares both with the fingerprint in the config.

Shape legend: B sequences, T positions, E hidden size, V tokens, N nodes, D depth of the leaves, K largest fan-out.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, ModelOutput, cached_file, can_return_tuple

from .backbone_treediff import TreeDiffBackbone, cached_positions
from .configuration_treediff import TreeDiffConfig
from .diffusion_process import check_nodes, check_tensors, checked_times, nelbo_terms, number_blocks
from .generation_treediff import TreeDiffGenerationMixin
from .likelihood_treediff import TreeDiffLikelihoodMixin
from .node_layers_treediff import HEAD_CLASSES, FactorisedEmbedding, child_cross_entropy, embed_paths
from .noise_schedules import LevelSchedule
from .vocabulary_tree import HUB_OPTIONS, TREE_WEIGHTS_NAME, Folder, VocabularyTree, find_tree_file

RENAMED_WEIGHTS = {r"(?<!tables\.)table_": "tree_tables.table_"}  # since format 2


@dataclass
class TreeDiffOutput(ModelOutput):
    """What `TreeDiffForDiffusionLM.forward` returns; the first three only with labels.

    The loss is the sum over counted positions of weight x cross-entropy, over their number: a Monte Carlo estimate of
    the bound; in training more, with config.lookahead. Logits are without meaning at leaves, and None in training mode
    with labels: they cost memory.
    """

    loss: torch.Tensor | None = None  # () nats per token
    nelbo: torch.Tensor | None = None  # (B,) the sum of each sequence, in nats, detached
    level_losses: torch.Tensor | None = None  # (D,) share of each level in the bound, coarsest first, detached
    logits: torch.Tensor | None = None  # (B, T, K) scores of the children, -inf where there is none
    hidden_states: tuple[torch.Tensor, ...] | None = None  # if asked for: the backbone's output (B, T, E)
    past_key_values: Cache | None = None  # the one that was given, with these positions


class TreeTables(nn.Module):
    """The vocabulary tree as buffers, in a module of their own so that accelerate can give them a device."""

    def __init__(self, config: TreeDiffConfig) -> None:
        super().__init__()
        self.metadata: dict[str, Any] = {"tokenizer_sha256": sha256} if (sha256 := config.tokenizer_sha256) else {}
        self.verified = False  # that the tables hold the tree which the config names
        tokens, nodes = config.vocab_size, config.num_tree_nodes
        shapes = (tokens, config.tree_depth + 1), (nodes - tokens, config.max_branching), (nodes,), (nodes,), (nodes,)
        for name, shape in zip(VocabularyTree.TABLES, shapes, strict=True):
            self.register_buffer(f"table_{name}", torch.zeros(shape, dtype=torch.long))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.verified = False
        super()._load_from_state_dict(*args, **kwargs)

    def view(self) -> VocabularyTree:
        """Return the tree, whose tables are these buffers, unchecked."""
        tables = {name: getattr(self, f"table_{name}") for name in VocabularyTree.TABLES}
        return VocabularyTree(**tables, metadata=dict(self.metadata))


class TreeDiffPreTrainedModel(PreTrainedModel):
    """Base of all models. The base model, `self.base_model`, holds the tree, in its module `tree_tables`."""

    config_class = TreeDiffConfig
    config: TreeDiffConfig
    base_model_prefix = "model"
    base_model: Any
    supports_gradient_checkpointing = True
    _no_split_modules = ["TreeDiffBlock"]
    _input_embed_layer = "embed_nodes"
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Saves the code with the model, and keeps transformers from asking an online converter for missing safetensors.
    _auto_class = "AutoModel"

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as transformers does, but for layers that name a standard deviation of their own."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Embedding) and (std := getattr(module, "initial_std", None)) is not None:
            init.normal_(module.weight, std=std)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refuse: a token is a leaf of the tree."""
        raise ValueError("Tokens are the tree's leaves: use modeling_treediff.building.extend_tree, then from_tree.")

    @classmethod
    def from_tree(cls, tree: VocabularyTree, **config_kwargs: Any) -> Self:
        """Make a new model over a tree; `config_kwargs` are further fields of TreeDiffConfig. ValueError if invalid."""
        tree.validate()
        model = cls(TreeDiffConfig.from_tree(tree, **config_kwargs))
        tables = model.base_model.tree_tables
        for name in VocabularyTree.TABLES:
            getattr(tables, f"table_{name}").copy_(getattr(tree, name))
        tables.metadata, tables.verified = dict(tree.metadata), True
        return model

    @property
    def device(self) -> torch.device:
        """The tree's device, where node ids go, also when accelerate keeps parameters elsewhere."""
        return self.base_model.tree_tables.table_depth.device

    @property
    def tree(self) -> VocabularyTree:
        """The vocabulary tree with its provenance; its tables are the model's buffers. ValueError if there is none."""
        if not (self.base_model.tree_tables.verified or torch.compiler.is_compiling()):
            self._verify_tree()
        return self.base_model.tree_tables.view()

    def _verify_tree(self) -> None:
        """Raise ValueError unless the buffers hold the tree that the config names."""
        tree = self.base_model.tree_tables.view()
        if not tree.ancestors.any():  # all zero, but the first column of a tree is its root's id
            raise ValueError("The model has no tree yet: make it with from_tree, or load it with from_pretrained.")
        self._check_sha256("the weights", tree.validate().sha256)
        self.base_model.tree_tables.verified = True

    def save_pretrained(self, save_directory: Folder, is_main_process: bool = True, **kwargs: Any) -> None:  # type: ignore[override]
        """Write weights, configs and code as transformers does, and the tree; the tokenizer is saved by itself.

        An older model in the folder is replaced when all is written. `modeling_treediff.hub.save_checkpoint`, of the
        package, also writes the tokenizer and the model card. Raises ValueError if the model has lost its tree, OSError
        if it cannot be written; then the folder stays as it was.
        """
        if kwargs.get("push_to_hub") or "tokenizer" in kwargs:
            said = "save_pretrained writes the model alone and does not push"
            raise ValueError(f"{said}: use push_to_hub, tokenizer.save_pretrained, or modeling_treediff.hub for all.")
        self._verify_tree()
        type(self.config)(**self.config.to_dict())  # which refuses values that were set since
        if self.can_generate():
            self._settings(None, {})  # type: ignore[operator]
        folder = Path(save_directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder, prefix=".", suffix=".partial") as partial:
                place = folder if kwargs.get("distributed_checkpoint") else Path(partial)  # one for all processes
                super().save_pretrained(place, is_main_process=is_main_process, **kwargs)
                if is_main_process:
                    self.tree.save_pretrained(place)
                _move_into(folder, Path(partial), weights_pattern(kwargs.get("variant")))
        except (SafetensorError, OSError) as error:
            said = f"The model could not be written to {folder}, whose files stay as they were"
            raise OSError(f"{said} ({error}): make room there, or save elsewhere.") from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, but only safetensors; verify the tree in the weights and beside them.

        Raises OSError without weights in safetensors, ValueError for weights that are damaged, missing or of no use in
        the model, and for another tree than the config's. With `ignore_mismatched_sizes` what misses starts at random.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError("Only safetensors are loaded, since a pickle can run code: leave out use_safetensors.")
        wants_info = kwargs.pop("output_loading_info", False)
        source, where = pretrained_model_name_or_path, {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        with _what_is_wrong_with(source):
            if source is not None:
                _check_shards(source, kwargs.get("variant"), where)
            needed: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
            names = RENAMED_WEIGHTS | (kwargs.get("key_mapping") or {})
            needed |= {"ignore_mismatched_sizes": True, "key_mapping": names}
            loaded: Any = super().from_pretrained(source, *args, **{**kwargs, **needed})
        model, info = loaded
        model._check_weights(source, info, anew=kwargs.get("ignore_mismatched_sizes", False))
        model._verify_tree()
        if source is not None and find_tree_file(source, **where):  # which also has the tree's provenance
            beside = VocabularyTree.from_pretrained(source, **where)
            model._check_sha256(TREE_WEIGHTS_NAME, beside.sha256)
            model.base_model.tree_tables.metadata = beside.metadata | model.base_model.tree_tables.metadata
        return (model, info) if wants_info else model

    def _check_weights(self, source: object, info: dict[str, Any], anew: bool) -> None:
        """Raise ValueError unless all weights were there, fit, and are numbers; with `anew`, only for the tree's."""
        wrong = {kind: {str(key) for key in info[f"{kind}_keys"]} for kind in ("missing", "unexpected", "mismatched")}
        wrong = {kind: {key for key in keys if not anew or "tree_tables" in key} for kind, keys in wrong.items()}
        if self.config.tie_word_embeddings and "head.nodes.weight" in dict(self.named_parameters()):
            wrong["unexpected"] |= {"head.nodes.weight, which tie_word_embeddings says is the embedding's"}
        plain = [pair for pair in self.named_parameters() if type(pair[1].data) is torch.Tensor]  # not a quantiser's
        known = [pair for pair in plain if pair[1].dtype.itemsize > 1 and not pair[1].is_meta]
        wrong["infinite or NaN"] = {name for name, weight in known if not (anew or weight.isfinite().all())}
        if found := "; ".join(f"{kind}: {', '.join(sorted(keys)[:3])}" for kind, keys in wrong.items() if keys):
            hint = "Restore the original files, or start what misses at random with ignore_mismatched_sizes=True"
            raise ValueError(f"The weights in {source} are not those of its config.json, {found}. {hint}.")

    def _check_sha256(self, place: str, sha256: str) -> None:
        if sha256 != (named := self.config.tree_sha256):
            tree = f"The vocabulary tree in {place} of {self.config.name_or_path} (sha256 {sha256})"
            raise ValueError(f"{tree} is not the one of the config ({named}). Restore the original files.")


class TreeDiffModel(TreeDiffPreTrainedModel):
    """Hidden states from node ids. It owns the tree."""

    _keys_to_ignore_on_load_unexpected = [r"^head\."]  # of a language model

    def __init__(self, config: TreeDiffConfig) -> None:
        """Allocate the network and the tree's tables; `TreeDiffForDiffusionLM.from_tree` fills the tables."""
        super().__init__(config)
        self.tree_tables = TreeTables(config)
        factorised = config.node_embedding == "factorised"
        self.embed_nodes = (
            FactorisedEmbedding(config) if factorised else nn.Embedding(config.num_tree_nodes, config.hidden_size)
        )
        self.backbone = TreeDiffBackbone(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        clean_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        block_numbers: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """(B, T) node ids in 0..N-1 and (B, T) mask, 0 at padding -> last_hidden_state (B, T, E).

        Positions with different segment_ids (B, T) do not see one another: documents packed into one window. In a model
        with blocks a position sees its own block and those before it, as they stand or as clean_ids (B, T) has them.
        past_key_values, to which all T are added, holds P positions, for blocks whole ones; masks then have P + T.
        block_numbers (B, T) of `number_blocks` are those of config.block_size unless given.
        ValueError for too many positions and, on a CPU, ids outside the tree; a GPU asserts: `generate` looks before.
        """
        check_tensors("input_ids", input_ids)
        done = 0 if past_key_values is None else cached_positions(past_key_values, input_ids, self.config)
        needed = done + input_ids.shape[1]
        if done and attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), needed)
        whole = input_ids if not done or attention_mask is None else attention_mask.long()
        beside = {"attention_mask": attention_mask, "segment_ids": segment_ids, "block_numbers": block_numbers}
        check_tensors("input_ids behind the cache" if done else "input_ids", whole, **beside)
        if (length := whole.shape[1]) > (limit := self.config.max_position_embeddings):
            raise ValueError(f"{length} positions are more than the model's {limit}: make the text shorter.")
        try:
            embeddings_BTE = self._embed(input_ids)
        except IndexError:
            check_nodes(input_ids, self.config.num_tree_nodes)
            raise
        if length != needed:
            raise ValueError(f"Masks cover {length} positions, cache and input_ids {needed}: give masks of all.")
        size = length if past_key_values is not None and self.config.block_size is None else self.config.block_size
        if block_numbers is None and size is not None:
            beside["block_numbers"] = number_blocks(whole, attention_mask, segment_ids, size)
        clean_BTE = None if clean_ids is None or beside["block_numbers"] is None else self._embed(clean_ids)
        hidden_BTE = self.backbone(embeddings_BTE, **beside, clean_BTE=clean_BTE, past=past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=hidden_BTE, past_key_values=past_key_values)

    def _embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) nodes -> (B, T, E)."""
        if self.config.node_embedding == "free":
            return self.embed_nodes(input_ids)
        if self.config.node_embedding == "path":
            return embed_paths(self.embed_nodes, input_ids, self.tree)
        return self.embed_nodes(input_ids, self.tree)


class TreeDiffLanguageModel(TreeDiffGenerationMixin, TreeDiffLikelihoodMixin, TreeDiffPreTrainedModel):  # type: ignore[misc]
    """Backbone, head and noise schedule, which both language models have; `forward` scores children."""

    output_modalities = ("text",)  # a pipeline says so of what generates
    _tied_weights_keys = {"head.nodes.weight": "model.embed_nodes.nodes.weight"}  # if the config says so
    accepts_loss_kwargs = False  # the loss is a mean over this batch: HF's Trainer is to average over accumulated ones

    def __init__(self, config: TreeDiffConfig) -> None:
        """Allocate the model; its tree is still empty. Use `from_tree` or `from_pretrained`."""
        super().__init__(config)
        self.schedule = LevelSchedule.from_config(config)
        self.model = TreeDiffModel(config)
        self.head = HEAD_CLASSES[config.head](config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the layer whose vectors the input embedding shares, for sharding and rounding; None without one."""
        return self.head.nodes if self.config.tie_word_embeddings else None

    def child_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, past_key_values: Cache | None = None
    ) -> torch.Tensor:
        """(B, T) node ids -> (B, T, K) scores of their children by slot, -inf where there is no child."""
        hidden_BTE = self.model(input_ids, attention_mask, past_key_values=past_key_values).last_hidden_state
        return self.head(hidden_BTE, input_ids, self.tree).to(input_ids.device)

    def child_cross_entropy(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, slots: torch.Tensor, level: int | None = None
    ) -> torch.Tensor:
        """(B, T, E) hidden states, (B, T) nodes, slots of true children -> (B, T) nats, 0 where a slot is -100."""
        return child_cross_entropy(self.head, hidden, input_ids, slots, self.tree, level)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        segment_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        block_numbers: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TreeDiffOutput:
        """Score the children of every position's node; with labels, also the bound. Draws no randomness.

        Args:
            input_ids: (B, T) node ids.
            attention_mask: (B, T), 0 at padding.
            labels: (B, T) clean token ids, -100 where not counted; leaves in `input_ids` count as predicted.
            timesteps: times that `input_ids` were corrupted to, needed with labels: (B,), for blocks (B, T).
            output_hidden_states: also return the backbone's output.
            segment_ids: (B, T), equal numbers for positions that see one another; None where all do.
            past_key_values: a cache of the clean blocks before `input_ids`, without labels; it keeps all positions that
                pass, so those that are not tokens yet are to be cropped off again.
            block_numbers: (B, T) of other blocks than config.block_size's, counted from 0 on in every text.
            **kwargs: switches of other models, ignored.

        Raises:
            ValueError: labels without timesteps or the reverse, timesteps of 16 bits, or ids outside the tree.
        """
        if labels is None and timesteps is not None:
            raise ValueError("`timesteps` need `labels` here: leave out label_smoothing_factor and compute_loss_func.")
        clean_ids = None
        if labels is not None:
            check_tensors("labels", labels, input_ids=input_ids)
            clean_ids = torch.where(labels >= 0, labels, input_ids)
            if past_key_values is not None:
                raise ValueError("The loss sees whole texts: leave out past_key_values, or labels.")
        seen = input_ids, attention_mask, segment_ids, clean_ids, past_key_values, block_numbers
        try:
            hidden_BTE = self.model(*seen).last_hidden_state
            if labels is not None:
                nats_BT, asked_BT = self.asked_nats(hidden_BTE, input_ids, labels)
        except IndexError as error:  # the model itself looks at input_ids
            raise ValueError(f"labels must lie in 0..{self.config.vocab_size - 1}, or be -100.") from error
        states = (hidden_BTE,) if output_hidden_states else None
        output = TreeDiffOutput(hidden_states=states, past_key_values=past_key_values)
        if labels is None or not self.training:
            output.logits = self.head(hidden_BTE, input_ids, self.tree)
        if labels is not None:
            in_blocks = self.config.block_size is not None or block_numbers is not None
            times = checked_times(timesteps, labels.shape if in_blocks else labels.shape[:1])
            beside = input_ids, times, self.tree, self.schedule
            terms_BTD, count = nelbo_terms(nats_BT, *beside), (labels >= 0).sum().clamp(min=1)
            output.loss = (terms_BTD if asked_BT is nats_BT else nelbo_terms(asked_BT, *beside)).sum() / count
            output.nelbo = terms_BTD.detach().sum(dim=(1, 2))
            output.level_losses = terms_BTD.detach().sum(dim=(0, 1)) / count
        return output


class TreeDiffForDiffusionLM(TreeDiffLanguageModel):
    """The diffusion language model: node ids in, child scores, the bound and text out."""


class TreeDiffForMaskedLM(TreeDiffLanguageModel):
    """The same model, whose `forward` gives distributions over tokens: for `pipeline("fill-mask")`."""

    _auto_class = "AutoModelForMaskedLM"

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TreeDiffOutput:
        """Return `token_log_probs` as logits (B, T, V); with labels, what the diffusion model's `forward` returns."""
        if labels is not None or timesteps is not None:
            return super().forward(input_ids, attention_mask, labels, timesteps, segment_ids=segment_ids, **kwargs)
        for name in ("past_key_values", "block_numbers"):
            if kwargs.get(name) is not None:
                raise ValueError(f"Distributions over tokens are those of whole texts: leave out {name}.")
        return TreeDiffOutput(logits=self.token_log_probs(input_ids, attention_mask, segment_ids))


def weights_pattern(variant: str | None = None) -> re.Pattern[str]:
    """Return the pattern of the names of a model's weights: one file, or shards and their index."""
    part = re.escape(f".{variant}") if variant else ""
    return re.compile(rf"model{part}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{part}\.json")


def _move_into(folder: Path, partial: Path, weights: re.Pattern[str]) -> None:
    """Move all files from a subfolder into its folder, weights last, and set aside older weights in other files."""
    new = sorted(os.listdir(partial), key=lambda name: (weights.fullmatch(name) is not None, name))
    if blocked := [name for name in new if (folder / name).is_dir()]:
        raise IsADirectoryError(f"{folder / blocked[0]} is a folder")
    stale = set(filter(weights.fullmatch, os.listdir(folder) if any(map(weights.fullmatch, new)) else ())) - set(new)
    for name in new:
        os.replace(partial / name, folder / name)
    for name in stale:
        os.replace(folder / name, partial / name)


def _check_shards(source: Folder, variant: str | None, where: dict[str, Any]) -> None:
    """Raise ValueError if there is an index of shards that is damaged, or names a file that is no safetensors."""
    name = f"model.safetensors.index.{variant}.json" if variant else SAFE_WEIGHTS_INDEX_NAME
    index = cached_file(os.fspath(source), name, _raise_exceptions_for_missing_entries=False, **where)
    if index is None:
        return
    try:
        facts = json.loads(Path(index).read_text(encoding="utf-8"))
        shards = facts["weight_map"].values()
        next(iter(shards)), facts["metadata"].keys()
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"{index} is damaged: it has no weight_map. Restore the original file.") from error
    if others := [name for name in shards if not re.fullmatch(r"[^/\\]+\.safetensors", str(name))]:
        raise ValueError(f"{index} names {others[0]}: only safetensors are loaded, since a pickle can run code.")


@contextmanager
def _what_is_wrong_with(source: object) -> Iterator[None]:
    """Raise in one sentence what loading weights from `source` failed at, and what to do."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        wrong = f"The weights in {source} are damaged, or not those of its config.json ({error})"
        raise ValueError(f"{wrong}. Save or download them again.") from error
    except OSError as error:
        if (name := re.search(r"(?<![-.\w])model[-.\w]*\.safetensors", str(error))) is None:
            raise
        pickles = "a pickle such as pytorch_model.bin is never loaded, since it can run code"
        hint = "complete the files, or ask their author for safetensors"
        raise OSError(f"{source} holds no {name[0]}, and {pickles}: {hint}.") from error
