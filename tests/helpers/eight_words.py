"""A vocabulary of eight words: texts whose tokens can be counted by hand, and a model that knows nothing."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree

from .models import tiny_model

WORDS = ["<eos>", "<unk>", "a", "b", "c", "d", "é", "the"]  # 8 tokens: a complete tree of depth 3
TEXTS = ["a b the é", "c d a", "the the b c d é a"]
FLAT = VocabularyTree.flat(len(WORDS))
BINARY = random_tree(len(WORDS), branching=2, depth=3)


def make_tokenizer(eos="<eos>"):
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=eos, unk_token="<unk>")


def uniform_model(tree):
    """Every child of a node is equally likely, whatever the head: all parameters are 0."""
    model = tiny_model(tree)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model
