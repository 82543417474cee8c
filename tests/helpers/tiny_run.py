"""A training run of a second on random tokens: a function for tests, a script for what needs processes of its own.

python tests/helpers/tiny_run.py FOLDER '{"max_steps": 20, "save_every": 2}' [--resume]
"""

import contextlib
import functools
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.text import TokenWindows
from modeling_treediff.training import TrainingConfig, train

VOCABULARY, LENGTH = 64, 8


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), eos_token="w0")


def tiny_tree(seed: int = 0) -> VocabularyTree:
    return random_tree(VOCABULARY, 8, 2, seed=seed)


def ragged_windows(count: int = 30, seed: int = 0) -> TokenWindows:
    """Windows of 1 to 8 tokens and padding: batches have different numbers of labels."""
    random = np.random.default_rng(seed)
    token_ids = random.integers(0, VOCABULARY, (count, LENGTH)).astype(np.int32)
    lengths = random.integers(1, LENGTH + 1, count)
    return TokenWindows(token_ids, attention_mask=(np.arange(LENGTH) < lengths[:, None]).astype(np.int32))


def tiny_network(tree: VocabularyTree, **fields) -> TreeDiffForDiffusionLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    return TreeDiffForDiffusionLM.from_tree(tree, **({"initializer_range": 0.2} | sizes | fields))


def tiny_run(
    folder,
    resume=False,
    windows=None,
    tree=None,
    tokenizer=None,
    model=None,
    model_fields=None,
    draw=False,
    held_out=6,
    **settings,
):
    """Train; return the final parameters, the losses of all steps and the result."""
    windows = windows if windows is not None else ragged_windows()
    settings = {"max_steps": 6, "batch_size": 4, "warmup_steps": 2, "save_every": 2, "validate_every": 0} | settings
    model = model or tiny_network(tree or tiny_tree(), **(model_fields or {}))
    config = TrainingConfig(output_dir=Path(folder), **settings)
    picture = contextlib.nullcontext() if draw else mock.patch("modeling_treediff.training.run.loop.draw_curves")
    with picture:  # half a second of a run of one
        result = train(model, tokenizer or tiny_tokenizer(), windows, windows[:held_out], config, resume)
    return TreeDiffForDiffusionLM.from_pretrained(folder).state_dict(), losses(folder), result


def logged(folder) -> list[dict]:
    file = Path(folder) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def losses(folder) -> list[float]:
    return [line["loss"] for line in logged(folder)]


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


if __name__ == "__main__":
    folder, settings, *options = sys.argv[1:]
    tiny_run(folder, "--resume" in options, **json.loads(settings))
