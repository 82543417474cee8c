"""Checkpoints to start from: config, tensors and tokenizer. Only safetensors are read, and no code is run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import extract_commit_hash, get_checkpoint_shard_files

from modeling_treediff.files.fingerprints import file_sha256
from modeling_treediff.files.sources import refuse_adapter
from modeling_treediff.text.tree_tokenizer import load_tokenizer, most_rows, tokenizer_size

from .families import FAMILIES


@dataclass(frozen=True)
class Source:
    """A checkpoint.

    Attributes:
        name: Hub id, or the folder's name.
        commit: of the Hub repository; None for a folder.
        weights_sha256: of each file of its weights.
        config: its config.
        tensors: its parameters by name, in fp32, without heads.
        embeddings: name of its input embeddings.
        tokenizer: its tokenizer, with a token that ends documents.

    """

    name: str
    commit: str | None
    weights_sha256: dict[str, str]
    config: PreTrainedConfig
    tensors: dict[str, torch.Tensor]
    embeddings: str
    tokenizer: PreTrainedTokenizerBase

    def token_vectors(self) -> torch.Tensor:
        """Return the embeddings of the tokenizer's V tokens, (V, E); many checkpoints have some rows more.

        Raises:
            ValueError: they have fewer, or far more.

        """
        if self.embeddings not in self.tensors:
            raise ValueError(f"{self.name} lacks the tensor {self.embeddings}: its weights are not complete.")
        vector_VE, size = self.tensors[self.embeddings], tokenizer_size(self.tokenizer)
        if not size <= len(vector_VE) <= most_rows(size):
            raise ValueError(
                f"{self.name} has embeddings for {len(vector_VE)} tokens, but its tokenizer has {size}: files of the "
                "tokenizer are missing or another's, or tokens were added without embeddings for them."
            )
        return vector_VE[:size]


def load_source(name: str, trust_remote_code: bool = False, **hub_kwargs: Any) -> Source:
    """Read a checkpoint of one of the `FAMILIES` from a folder or the Hub.

    Args:
        name: folder or Hub id.
        trust_remote_code: let the tokenizer run the code of its own repository.
        hub_kwargs: `revision`, `subfolder`, `cache_dir`, `token`, `local_files_only`, as in transformers.

    Raises:
        OSError: there is no such checkpoint, or it lacks its config, weights in safetensors, or tokenizer.
        ValueError: an adapter, another architecture, or damaged files.

    """
    try:
        facts, _ = PreTrainedConfig.get_config_dict(name, **hub_kwargs)
    except (OSError, ValueError) as error:
        raise OSError(f"{name} is neither a folder nor a Hub repository that can be read: {error}") from error
    if not facts:
        refuse_adapter(name, **hub_kwargs)
        raise OSError(f"{name} has no config.json: it is no checkpoint.")
    kind = facts.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{name} is a model of type {kind!r}; those that can be converted: {', '.join(FAMILIES)}.")
    tokenizer = load_tokenizer(name, trust_remote_code, **hub_kwargs)
    model, missing = _load_model(name, hub_kwargs)
    files = _weight_files(name, hub_kwargs)
    embedding = model.get_input_embeddings().weight
    return Source(
        name=Path(name).resolve().name if Path(name).is_dir() else name,
        commit=extract_commit_hash(str(files[0]), None),
        weights_sha256={file.name: file_sha256(file) for file in files},
        config=model.config,
        tensors={key: tensor.detach() for key, tensor in model.named_parameters() if key not in missing},
        embeddings=next(key for key, tensor in model.named_parameters() if tensor is embedding),
        tokenizer=with_end_of_document(tokenizer),
    )


def _load_model(name: str, hub_kwargs: dict[str, Any]) -> tuple[Any, set[str]]:
    """Return the model without its head, in fp32, and the names of the tensors that the checkpoint lacks."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a report on heads and poolers, which are not needed
    try:
        model, info = AutoModel.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **hub_kwargs,
        )
    except OSError as error:
        raise OSError(f"No weights in safetensors could be read from {name}, and pickles are not: {error}") from error
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"The weights in {name} are damaged or not those of its config.json: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    return model, set(info["missing_keys"])


def _weight_files(name: str, hub_kwargs: dict[str, Any]) -> list[Path]:
    """Return the local paths of the weights, whole or in shards."""
    whole = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    if whole is not None:
        return [Path(whole)]
    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, **hub_kwargs)
    shards, _ = get_checkpoint_shard_files(name, index, **hub_kwargs)
    return [Path(shard) for shard in shards]


def with_end_of_document(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer that ends documents: BERT's has no such token, but one that separates texts."""
    if tokenizer.eos_token is None:
        if tokenizer.sep_token is None:
            raise ValueError("The tokenizer has neither eos_token nor sep_token; documents need one between them.")
        tokenizer.eos_token = tokenizer.sep_token
    return tokenizer


def check_same_vocabulary(tokenizer: PreTrainedTokenizerBase, of_tree: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the tree's tokenizer calls an id otherwise than the checkpoint's: their vocabularies differ.

    Ids beyond those of the smaller one do not count: `check_tokenizer` compares the sizes.
    """
    shared = list(range(min(len(tokenizer), len(of_tree))))
    names = (some.convert_ids_to_tokens(shared) for some in (tokenizer, of_tree))
    for token_id, (here, there) in enumerate(zip(*names, strict=True)):
        if here != there:
            raise ValueError(
                f"The tree is for another vocabulary: it calls token {token_id} {there!r}, the checkpoint {here!r}. "
                "Build one from the checkpoint: `treediff build-tree --tokenizer CHECKPOINT --embeddings CHECKPOINT`."
            )
