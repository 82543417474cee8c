import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from modeling_treediff.building.balanced import random_tree
from modeling_treediff.text.tree_tokenizer import check_tokenizer, tokenizer_size


def test_a_tokenizer_with_holes_in_its_ids_needs_a_leaf_for_each():
    letters = {letter: index for index, letter in enumerate("abcd")} | {"far": 8}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(letters)))
    assert (len(tokenizer), tokenizer_size(tokenizer)) == (5, 9)
    check_tokenizer(random_tree(9, 3, 2), tokenizer)
    for size in (5, 8, 10):
        with pytest.raises(ValueError, match=f"{size} leaves but the tokenizer has 9"):
            check_tokenizer(random_tree(size, 4, 2), tokenizer)
    tokenizer.add_tokens(["added"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer_size(tokenizer) == 1 + max(tokenizer.convert_tokens_to_ids(["added", "<pad>", "far"]))
    assert tokenizer_size(ByT5Tokenizer()) == len(ByT5Tokenizer())
