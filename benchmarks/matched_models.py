"""The contenders at one size of the reference: with its parameter budget, and with its number of layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from transformers import GPT2LMHeadModel

from benchmarks.contenders import (
    AUTOREGRESSIVE,
    AUTOREGRESSIVE_TITLE,
    CONTENDERS,
    Contender,
    budget_config,
    gpt2_for_budget,
    make_model,
    reference_parameters,
    same_depth_config,
    unclustered_tree,
)
from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building.budget import count_parameters
from modeling_treediff.training import make_lean

COMPARED = ("mdlm", "mdlm-chunked", "hdlm", "tdlm-child", "tree", "tree-binomial")
BUDGET, DEPTH = "budget", "depth"  # what a model has in common with the reference
LAYERS_AND_HEADS = {768: (12, 12), 1024: (24, 16)}  # of the full sizes, by hidden size
VOCABULARIES = (30_522, 50_257, 100_277, 200_019)  # BERT, GPT-2, and those of two later tokenizers


@dataclass(frozen=True)
class Size:
    """Size of the reference, and of the windows that all contenders get."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    sequence_length: int
    rope_theta: float = 10_000.0

    @classmethod
    def full(cls, vocab_size: int, hidden_size: int) -> "Size":
        """Return one of the published sizes: windows of 512 tokens, hidden size 768 or 1,024."""
        return cls(vocab_size, hidden_size, *LAYERS_AND_HEADS[hidden_size], sequence_length=512)

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a config that neither the tree nor the contender determines."""
        return {
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.sequence_length,
            "rope_theta": self.rope_theta,
        }


@dataclass(frozen=True)
class MatchedModel:
    """A contender at a size.

    Attributes:
        contender: its name in `CONTENDERS`.
        size: of the reference.
        matched: what it has in common with the reference: its budget, its depth, or both.
        config: of the model.

    """

    contender: str
    size: Size
    matched: tuple[str, ...]
    config: TreeDiffConfig

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of it."""
        return {
            "contender": self.contender,
            "matched": list(self.matched),
            "layers": self.config.num_hidden_layers,
            "parameters": sum(count_parameters(self.config).values()),
        }

    def make(self) -> TreeDiffForDiffusionLM:
        """Return a new model, lean as training makes it, over a tree with tokens in random places."""
        model = make_model(self.config, _tree(self.config.tree_depth, self.size.vocab_size))
        make_lean(model, loss_chunk=CONTENDERS[self.contender].loss_chunk)
        return model


def matched_models(names: Sequence[str], size: Size) -> list[MatchedModel]:
    """Return the models of some contenders; what is the same model by budget and by depth comes once."""
    models = []
    parameters = reference_parameters(size.vocab_size, size.layers, **size.fields)
    for name in names:
        contender, tree = CONTENDERS[name], _tree(CONTENDERS[name].depth, size.vocab_size)
        by_budget = budget_config(contender, tree, parameters, **size.fields)
        by_depth = same_depth_config(contender, tree, size.layers, **size.fields)
        if by_budget.to_dict() == by_depth.to_dict():
            models.append(MatchedModel(name, size, (BUDGET, DEPTH), by_budget))
        else:
            models.append(MatchedModel(name, size, (BUDGET,), by_budget))
            models.append(MatchedModel(name, size, (DEPTH,), by_depth))
    return models


def make_gpt2(size: Size) -> GPT2LMHeadModel:
    """Return a new GPT-2 with the budget of the reference at this size, as it trains: without a cache."""
    parameters = reference_parameters(size.vocab_size, size.layers, **size.fields)
    config = gpt2_for_budget(
        size.vocab_size, size.sequence_length, parameters, size.hidden_size, size.heads, eos_token_id=0
    )
    config.use_cache = False
    return GPT2LMHeadModel(config)


def gpt2_facts(model: GPT2LMHeadModel) -> dict[str, Any]:
    """Return what a record says of it."""
    facts = {"contender": AUTOREGRESSIVE, "matched": [BUDGET], "layers": model.config.n_layer}
    return facts | {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def title(contender: str, matched: str = BUDGET) -> str:
    """Return how tables and figures name a contender that has the budget, or the depth, of the reference."""
    name = AUTOREGRESSIVE_TITLE if contender == AUTOREGRESSIVE else CONTENDERS[contender].title
    return name if matched == BUDGET else f"{name}, same depth"


def by_title(
    rows: Sequence[Mapping[str, Any]], kinds: Sequence[str] = (BUDGET, DEPTH)
) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of a record, which have a model's `facts`, by the title of the model.

    Models of the reference's budget and of its depth come apart, unless they are the same in all rows; `kinds` says
    which are wanted.
    """
    titles: dict[str, list[Mapping[str, Any]]] = {}
    for contender in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == contender]
        same = all(row["matched"] == [BUDGET, DEPTH] for row in own)
        for kind in kinds[:1] if same else kinds:
            if of_kind := [row for row in own if kind in row["matched"]]:
                titles[title(contender, kind)] = of_kind
    return titles


@cache
def _tree(depth: int, vocab_size: int) -> VocabularyTree:
    """Return the tree of all contenders of a depth: it has tokens in random places."""
    return unclustered_tree(Contender("", depth), vocab_size)
