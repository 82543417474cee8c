"""The mask in a tokenizer: where it may stand, where not, and that nothing else changes."""

import logging
from collections import Counter

import pytest
import torch
from helpers.models import tiny_model
from helpers.processes import REPOSITORY, SAMPLE
from helpers.vocabularies import word_tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer

from modeling_treediff import VocabularyTree
from modeling_treediff.evaluation import evaluate_texts
from modeling_treediff.hub import save_checkpoint, tokenizer_with_mask
from modeling_treediff.text import encode_documents, tokenize_documents
from modeling_treediff.text.mask_token import nodes_with_gaps, with_mask_token
from modeling_treediff.text.tree_tokenizer import check_tokenizer, tokenizer_size
from modeling_treediff.training.data.chat import chat_windows

TEXT = "We must pay it."
TOKENIZERS = {
    "sample": lambda: AutoTokenizer.from_pretrained(SAMPLE),
    "bert": lambda: AutoTokenizer.from_pretrained(REPOSITORY / "tree_artifacts" / "bert-base-uncased"),
    "bytes": ByT5Tokenizer,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_mask_is_the_root_and_all_else_stays(kind, tmp_path):
    tokenizer = TOKENIZERS[kind]()
    size, before = tokenizer_size(tokenizer), (tokenizer.mask_token, tokenizer(TEXT)["input_ids"])
    masked = with_mask_token(tokenizer, size)
    assert (masked.mask_token_id, tokenizer_size(masked)) == (size, size)
    assert masked(TEXT)["input_ids"] == before[1]
    assert (tokenizer.mask_token, len(tokenizer), tokenizer(TEXT)["input_ids"]) == (before[0], size, before[1])
    assert with_mask_token(masked, size) is masked
    masked.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.mask_token_id, tokenizer_size(loaded)) == (size, size)
    assert loaded("We <|mask|> it")["input_ids"] == masked("We <|mask|> it")["input_ids"]
    for accepted in (tokenizer, masked, loaded):
        check_tokenizer(VocabularyTree.flat(size), accepted)
    loaded.add_tokens(["another one"])
    with pytest.raises(ValueError, match=f"{size} leaves"):
        check_tokenizer(VocabularyTree.flat(size), loaded)


@pytest.mark.parametrize("kind", ["sample", "bert"])
def test_a_word_replaced_by_the_mask_is_one_open_position(kind):
    """Also where words begin with their space: it goes with the mask, as it goes with the word."""
    tokenizer = TOKENIZERS[kind]()
    masked = with_mask_token(tokenizer, len(tokenizer))
    ids = tokenizer("We must pay it.")["input_ids"]
    place = ids.index(tokenizer(" pay", add_special_tokens=False)["input_ids"][0])
    ids[place] = masked.mask_token_id
    assert masked("We must <|mask|> it.")["input_ids"] == ids


@pytest.mark.parametrize("text", ["We must ____ our ________.", "_ people_", "We_ must pay _ it", "no gap"])
@pytest.mark.parametrize("kind", ["sample", "bert"])
def test_a_text_with_gaps_is_tokenised_once_with_masks(kind, text):
    """With and without a mask token in the tokenizer; words that bring their space along double none."""
    tokenizer = TOKENIZERS[kind]()
    root = len(tokenizer)
    masked, pay = with_mask_token(tokenizer, root), tokenizer(" pay", add_special_tokens=False)["input_ids"]
    nodes = nodes_with_gaps(text, tokenizer, root)
    assert nodes == nodes_with_gaps(text, masked, root)
    assert nodes == masked(text.replace("_", "<|mask|>"), add_special_tokens=False)["input_ids"]
    assert nodes.count(root) == text.count("_")
    filled = tokenizer.decode([one for node in nodes for one in (pay if node == root else [node])])
    assert "  " not in filled and filled.count("pay") == text.count("_") + text.count("pay")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Dear Sir,\n\n____ we are\n\n____ of it.", "Dear Sir,\n\n we are\n\n of it."),
        ("\t_ a\t_\r\n_", "\t a\t\r\n"),
        ("if a:\n    _ b  _", "if a:\n    b "),
    ],
)
@pytest.mark.parametrize("kind", ["sample", "bytes"])
def test_line_breaks_tabs_and_indentation_before_gaps_stay(kind, text, kept):
    """Bytes keep all of a text; where words begin with their space, one space goes with the gap."""
    tokenizer = TOKENIZERS[kind]()
    root = len(tokenizer)
    for one in (tokenizer, with_mask_token(tokenizer, root)):
        given = [node for node in nodes_with_gaps(text, one, root) if node != root]
        said = tokenizer.decode(given, clean_up_tokenization_spaces=False)
        assert said == (kept if kind == "sample" else text.replace("_", ""))


def test_gaps_are_open_also_where_the_tokenizer_cannot_have_the_root_as_its_mask():
    """Its new token gets the id of another one, or is one of its own words."""
    assert nodes_with_gaps("_a_b__", word_tokenizer({"<eos>": 0, "a": 3, "b": 8}), 9) == [9, 3, 9, 8, 9, 9]
    assert nodes_with_gaps("_b", word_tokenizer({"<eos>": 0, "<|mask|>": 1, "b": 2}), 3) == [3, 2]


def test_tokens_filled_in_for_masks_are_read_as_text():
    tree = VocabularyTree.from_pretrained(SAMPLE)
    model = tiny_model(tree)
    tokenizer = tokenizer_with_mask(AutoTokenizer.from_pretrained(SAMPLE), tree)
    ids = tokenizer("We must <|mask|> it.", return_tensors="pt")["input_ids"]
    filled = model.generate(ids, generator=torch.Generator().manual_seed(0))
    assert (filled != ids).sum() == 1 and filled.max() < tree.vocab_size
    text = tokenizer.decode(filled[0])
    assert text.startswith("We must") and text.endswith(" it.") and "mask" not in text


def test_where_the_root_cannot_be_a_token_the_tokenizer_is_saved_as_it_is(tmp_path, caplog):
    holes = word_tokenizer({"<eos>": 0, "a": 1, "b": 8})
    taken = word_tokenizer({"<eos>": 0, "<|mask|>": 1, "b": 2})
    for number, tokenizer in enumerate((holes, taken)):
        size = tokenizer_size(tokenizer)
        with pytest.raises(ValueError, match=f"the tree's root has {size}"):
            with_mask_token(tokenizer, size)
        model = tiny_model(VocabularyTree.flat(size))
        logging.getLogger("transformers").addHandler(caplog.handler)
        try:
            save_checkpoint(model, tmp_path / str(number), tokenizer)
        finally:
            logging.getLogger("transformers").removeHandler(caplog.handler)
        assert "saved without a mask token" in caplog.text
        caplog.clear()
        loaded = AutoTokenizer.from_pretrained(tmp_path / str(number))
        assert (loaded.mask_token, tokenizer_size(loaded)) == (None, size)


def test_a_tokenizer_of_another_size_is_no_trees():
    with pytest.raises(ValueError, match="20 leaves"):
        tokenizer_with_mask(word_tokenizer({"<eos>": 0, "a": 1}), VocabularyTree.flat(20))


def test_a_saved_models_tokenizer_is_saved_with_the_next(tmp_path):
    tokenizer = word_tokenizer({"<eos>": 0, "a": 1, "b": 2})
    model = tiny_model(VocabularyTree.flat(3))
    for name in ("first", "second"):
        save_checkpoint(model, tmp_path / name, tokenizer)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert (tokenizer.mask_token_id, len(tokenizer)) == (3, 4)


def test_texts_to_learn_or_measure_must_not_hold_the_mask():
    """With the tree's own tokenizer these are characters like any others; with a saved model's, a clear error."""
    plain = AutoTokenizer.from_pretrained(SAMPLE)
    plain.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    model = tiny_model(VocabularyTree.from_pretrained(SAMPLE))
    masked, texts = tokenizer_with_mask(plain, model.tree), [TEXT, "a <|mask|> b"]
    row = {"prompt": texts[1], "completion": TEXT}
    uses = [
        ("Document 1 ", lambda tokenizer: tokenize_documents(texts, tokenizer)),
        ("Document 1 ", lambda tokenizer: evaluate_texts(model, tokenizer, texts)),
        ("Document 1 ", lambda tokenizer: list(encode_documents(tokenizer, texts))),
        ("Row 7 ", lambda tokenizer: list(chat_windows(row, 7, tokenizer, 30, False, Counter()))),
    ]
    for place, use in uses:
        use(plain)
        with pytest.raises(ValueError, match=rf"{place}.*contains <\|mask\|>, which .* take it out of the text"):
            use(masked)
