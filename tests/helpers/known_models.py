"""Models whose probabilities are known exactly, over a tokenizer of eight words."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.models import tiny_model
from modeling_treediff import VocabularyTree

WORDS = ["<eos>", "<unk>", "a", "b", "c", "d", "é", "the"]  # 8 tokens: a complete tree of depth 3
TEXTS = ["a b the é", "c d a", "the the b c d é a"]


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


def constant_model(tree, scores):
    """The scores (D, K) of the children do not depend on the text."""
    model = tiny_model(tree, head="child")
    with torch.no_grad():
        for level, score in zip(model.head.levels, scores, strict=True):
            level.weight.zero_()
            level.bias.copy_(score)
    return model


FLAT = VocabularyTree.flat(len(WORDS))
BINARY = VocabularyTree.random(len(WORDS), branching=2, depth=3)
