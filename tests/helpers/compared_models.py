"""A tree model and a flat one with the tokenizer of the sample, and a text on which they are compared."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from helpers.models import tiny_model
from helpers.processes import SAMPLE
from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.evaluation import analyze_errors
from modeling_treediff.hub import save_checkpoint
from modeling_treediff.text import read_documents

SIZES = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "initializer_range": 0.5}


def compared_models() -> dict[str, TreeDiffForDiffusionLM]:
    trees = {"tree": VocabularyTree.from_pretrained(SAMPLE), "flat": VocabularyTree.flat(8192)}
    return {name: tiny_model(tree, **SIZES) for name, tree in trees.items()}


def compared_texts() -> list[str]:
    return [read_documents(SAMPLE / "validation.txt.xz")[0][:2500].strip()]


def save_compared(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save both models with their tokenizer, and the text as text.txt."""
    for name, model in compared_models().items():
        save_checkpoint(model, folder / name, tokenizer)
    (folder / "text.txt").write_text(compared_texts()[0], encoding="utf-8")
    return folder


def compared_errors(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What `analyze_errors` finds, with seed 1."""
    models = compared_models()
    return analyze_errors(models["tree"], tokenizer, compared_texts(), reference=models["flat"], seed=1)
