import json
import logging

import pytest
from helpers.models import tiny_model
from helpers.vocabularies import numbered_words, word_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building import extend_tree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.cli.saved_model import load_model
from modeling_treediff.evaluation import evaluate_texts
from modeling_treediff.hub import save_checkpoint
from modeling_treediff.text import tokenizer_facts, vocabulary_sha256
from modeling_treediff.text.mask_token import with_mask_token
from modeling_treediff.text.tree_tokenizer import check_tokenizer, load_tokenizer, tokenizer_size


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


def permuted(size):
    """As many words as `numbered_words`, the first two with each other's ids."""
    words = numbered_words(size).get_vocab()
    return word_tokenizer(words | {"word0": 1, "word1": 0})


def test_the_fingerprint_is_of_ids_and_tokens_alone():
    words = numbered_words(20)
    assert vocabulary_sha256(words) == vocabulary_sha256(numbered_words(20))
    assert vocabulary_sha256(words) == vocabulary_sha256(with_mask_token(words, 20))
    assert len({vocabulary_sha256(one) for one in (words, permuted(20), numbered_words(21))}) == 3


def test_a_tokenizer_with_other_ids_is_refused_wherever_model_and_tokenizer_meet(tmp_path):
    words, other = numbered_words(20), permuted(20)
    model = tiny_model(random_tree(20, 6, 2, metadata=tokenizer_facts("words", words)))
    assert model.config.tokenizer_sha256 == vocabulary_sha256(words)
    save_checkpoint(model, tmp_path / "model", words)
    other.save_pretrained(tmp_path / "other")
    check_tokenizer(model.tree, words)
    for use in (
        lambda: check_tokenizer(model.tree, other),
        lambda: save_checkpoint(model, tmp_path / "wrong", other),
        lambda: load_model(str(tmp_path / "model"), str(tmp_path / "other")),
        lambda: evaluate_texts(model, other, ["word1 word2"]),
    ):
        with pytest.raises(ValueError, match="has other tokens at its 20 ids than the tree was built for"):
            use()
    assert not (tmp_path / "wrong").exists()


def test_the_config_knows_the_tokenizer_where_the_tree_has_no_file_of_its_own(tmp_path):
    model = tiny_model(random_tree(20, 6, 2, metadata=tokenizer_facts("words", numbered_words(20))))
    model.save_pretrained(tmp_path)
    for name in ("vocabulary_tree.safetensors", "vocabulary_tree.json"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="has other tokens"):
        check_tokenizer(TreeDiffForDiffusionLM.from_pretrained(tmp_path).tree, permuted(20))


def test_a_tree_that_does_not_know_its_tokenizer_is_warned_of(caplog):
    logging.Logger.warning_once.cache_clear()  # said once in a process
    check_tokenizer(VocabularyTree.flat(20), permuted(20))
    assert "does not record which token has which id" in caplog.text


def test_an_extended_tree_is_for_another_tokenizer():
    tree = random_tree(20, 6, 2, metadata=tokenizer_facts("words", numbered_words(20)))
    assert "tokenizer_sha256" not in extend_tree(tree, 1).metadata
    facts = tokenizer_facts("more words", numbered_words(21))
    assert extend_tree(tree, 1, facts).metadata["tokenizer_sha256"] == vocabulary_sha256(numbered_words(21))


FOREIGN = """
from transformers import PreTrainedTokenizer

class ForeignTokenizer(PreTrainedTokenizer):
    def get_vocab(self):
        return {"a": 0, "b": 1}
    @property
    def vocab_size(self):
        return 2
    def _tokenize(self, text, **kwargs):
        return list(text)
    def _convert_token_to_id(self, token):
        return {"a": 0, "b": 1}.get(token)
    def _convert_id_to_token(self, index):
        return "ab"[index]
"""


def test_code_of_others_runs_where_it_is_trusted_alone(tmp_path):
    (tmp_path / "foreign_tokens.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{FOREIGN}")
    config = {"tokenizer_class": "ForeignTokenizer"} | {
        "auto_map": {"AutoTokenizer": ["foreign_tokens.ForeignTokenizer", None]}
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(
        OSError, match="brings code of its own. If you trust its authors, run it by --trust-remote-code"
    ):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()
    assert load_tokenizer(str(tmp_path), trust_remote_code=True).get_vocab() == {"a": 0, "b": 1}
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("saved", ["a model, as a merged adapter is", "a tree", "nothing"])
def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path, saved):
    tokenizer, tree = numbered_words(30), random_tree(30, branching=6, depth=2)
    model = tiny_model(tree)
    if saved.startswith("a model"):
        model.save_pretrained(tmp_path)
    elif saved == "a tree":
        tree.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=f"from {tmp_path}: this folder has none. Save .*`save_checkpoint` saves both"):
        load_tokenizer(str(tmp_path))
    if saved.startswith("a model"):
        with pytest.raises(OSError, match="this folder has none"):
            load_model(str(tmp_path))
        save_checkpoint(model, tmp_path, tokenizer)
        assert len(load_model(str(tmp_path))[1]) == 31
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(OSError, match="No tokenizer could be loaded from (?!.*has none)"):
        load_tokenizer(str(tmp_path))
