"""Conversion: a tree model initialised with the weights of another network, where their shapes allow it.

Shape legend: V tokens, N nodes, E hidden size.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from modeling_treediff.configuration_treediff import TreeDiffConfig
from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.text.tree_tokenizer import check_tokenizer
from modeling_treediff.vocabulary_tree import VocabularyTree

from .families import FAMILIES, differing_settings
from .node_vectors import factorised_vectors, node_vectors, path_increments
from .report import ConversionReport, Part, grouped
from .sources import Source

# Part of a parameter's name -> what it is in a report; the first that fits counts.
PARTS = {"embed_nodes": "node embeddings", "self_attn": "attention", ".mlp.": "MLPs", "norm": "norms", "head": "head"}
LAYER_NUMBER = re.compile(r"\.(\d+)\.")


def convert(
    source: Source,
    tree: VocabularyTree,
    layers: int | None = None,
    **fields: Any,
) -> tuple[TreeDiffForDiffusionLM, ConversionReport]:
    """Make a model over a tree and give it the weights of a checkpoint.

    The embedding of a token is the source's; that of an internal node the mean over all tokens below it. With
    embeddings summed along the path, the table holds what each node adds to its parent. With a factorised embedding,
    what tokens add is the best product of its rank, by truncated SVD, and the report says what is lost; if the head
    shares its numbers, those of internal nodes start at random. Layers are copied where the
    source's family has the same, in weights of the same shape; all else starts at random, by torch's global generator.

    Args:
        source: the checkpoint.
        tree: a tree over its vocabulary.
        layers: number of the source's layers to keep, the first ones; by default all.
        **fields: of TreeDiffConfig, other than the sizes, which are the source's. node_embedding is "path" by default,
            which needs no factors.

    Raises:
        ValueError: the tree is not for the source's vocabulary, a size that cannot be, or a checkpoint without some of
            its weights.

    """
    check_tokenizer(tree, source.tokenizer)
    tensors = _Tensors(source.tensors)
    if fields.get("node_embedding") is None:
        fields["node_embedding"] = "path"
    model = TreeDiffForDiffusionLM.from_tree(tree, **(size_fields(source, layers) | fields))
    try:
        weights, embedding_error = _weights(source, tensors, tree, model)
    except KeyError as error:
        raise ValueError(f"{source.name} lacks the tensor {error}: its weights are not complete.") from error
    parameters = dict(model.named_parameters())
    misfits = {
        name: f"shape {tuple(tensor.shape)} there, {tuple(parameters[name].shape)} here"
        for name, tensor in weights.items()
        if tensor.shape != parameters[name].shape
    }
    with torch.no_grad():
        for name in weights.keys() - misfits.keys():
            parameters[name].copy_(weights[name])
    report = _report(source, tensors.read, model, weights.keys() - misfits.keys(), misfits)
    return model, replace(report, embedding_error=embedding_error)


class _Tensors(dict[str, torch.Tensor]):
    """Tensors by name, that note which of them were asked for."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.read.add(name)
        return super().__getitem__(name)


def size_fields(source: Source, layers: int | None = None) -> dict[str, Any]:
    """Return the fields of our config that follow from a source's config and tokenizer."""
    theirs, tokenizer = source.config, source.tokenizer
    if layers is not None and not 1 <= layers <= theirs.num_hidden_layers:
        raise ValueError(
            f"{source.name} has {theirs.num_hidden_layers} layers; {layers} cannot be taken: give 1 to "
            f"{theirs.num_hidden_layers}."
        )
    end = tokenizer.eos_token_id
    reserved = theirs.pad_token_id + 1 if theirs.model_type == "roberta" else 0  # it numbers positions from there
    fields = {
        "hidden_size": theirs.hidden_size,
        "num_hidden_layers": layers or theirs.num_hidden_layers,
        "num_attention_heads": theirs.num_attention_heads,
        # GPT-2 names it only where it is not this.
        "intermediate_size": getattr(theirs, "intermediate_size", None)
        or getattr(theirs, "n_inner", None)
        or 4 * theirs.hidden_size,
        "max_position_embeddings": theirs.max_position_embeddings - reserved,
        "initializer_range": theirs.initializer_range,
        "eos_token_id": end,
        "bos_token_id": end if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "pad_token_id": end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    }
    if (rotary := getattr(theirs, "rope_parameters", None)) is not None:
        fields["rope_theta"] = rotary["rope_theta"]
    if (epsilon := getattr(theirs, "rms_norm_eps", None)) is not None:  # that of a LayerNorm means something else
        fields["rms_norm_eps"] = epsilon
    return fields


def _weights(
    source: Source, tensors: Mapping[str, torch.Tensor], tree: VocabularyTree, model: TreeDiffForDiffusionLM
) -> tuple[dict[str, torch.Tensor], float]:
    """Return what the source has for the model, by the names of the model's parameters, and what embeddings lose.

    Raises KeyError for what the source lacks.
    """
    config, vector_NE = model.config, node_vectors(source.token_vectors(), tree)
    if config.node_embedding != "free":
        vector_NE = path_increments(vector_NE, tree)
    weights, error = {"weight": vector_NE}, 0.0
    if config.embedding_rank is not None:
        new_PR = model.model.embed_nodes.weight.detach()[tree.vocab_size :]
        factors = factorised_vectors(vector_NE[: tree.vocab_size], config.embedding_rank)
        # Scores of internal nodes, whose vectors these are where they are shared, must not all start at 0.
        internal_PR = new_PR if config.tie_word_embeddings else torch.zeros_like(new_PR)
        weights = {"nodes.weight": torch.cat([factors.tokens, internal_PR]), "projection.weight": factors.projection}
        weights["internal.weight"], error = vector_NE[tree.vocab_size :], factors.error
    named = {f"model.embed_nodes.{name}": weight for name, weight in weights.items()}
    return named | dict(_layers(source, tensors, config)), error


def _layers(
    source: Source, tensors: Mapping[str, torch.Tensor], config: TreeDiffConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    family = FAMILIES[source.config.model_type]
    for index in range(config.num_hidden_layers):
        for name, weight in family.layer(tensors, source.config, index).items():
            yield f"model.backbone.layers.{index}.{name}", weight
    if family.norm is not None:
        yield "model.backbone.norm.weight", tensors[family.norm]


def _part(name: str) -> str:
    return next(part for piece, part in PARTS.items() if piece in name)


def _report(
    source: Source, read: set[str], model: TreeDiffForDiffusionLM, copied: set[str], misfits: dict[str, str]
) -> ConversionReport:
    """Return what became of all parameters; `read` are the source's tensors, `copied` and `misfits` the model's."""
    parts = {
        name: Part(_part(name), tensor.numel(), misfits.get(name, "")) for name, tensor in model.named_parameters()
    }
    return ConversionReport(
        source=source.name,
        commit=source.commit,
        weights_sha256=source.weights_sha256,
        model_type=source.config.model_type,
        source_layers=source.config.num_hidden_layers,
        layers=model.config.num_hidden_layers,
        tree_sha256=model.tree.sha256,
        copied=grouped(part for name, part in parts.items() if name in copied),
        new=grouped(part for name, part in parts.items() if name not in copied),
        left_out=grouped(_left_out(source, read, model.config.num_hidden_layers)),
    )


def _left_out(source: Source, read: set[str], layers: int) -> Iterator[Part]:
    """Yield the source's tensors that the model has no place for, and settings that it does not follow."""
    for name, tensor in source.tensors.items():
        number = LAYER_NUMBER.search(name)
        if name in read or name == source.embeddings:
            continue
        if number and int(number[1]) >= layers:
            yield Part("further layers", tensor.numel(), f"only the first {layers} are taken")
            continue
        kinds = ((part, why) for piece, part, why in FAMILIES[source.config.model_type].left_out if piece in name)
        part, why = next(kinds, (name, "there is nothing of the kind here"))
        yield Part(part, tensor.numel(), why)
    for setting, why in differing_settings(source.config):
        yield Part(setting, 0, why)
