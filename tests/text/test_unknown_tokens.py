"""Unknown tokens: counted in any vocabulary, and warned of wherever a text is learned, counted or measured."""

import numpy as np
import pytest
from helpers.eight_words import FLAT, make_tokenizer, uniform_model
from helpers.processes import SAMPLE
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from modeling_treediff.cli.build_tree import count_tokens
from modeling_treediff.cli.evaluate import as_table
from modeling_treediff.cli.train import text_facts
from modeling_treediff.evaluation import evaluate_texts, tokenize_texts
from modeling_treediff.text import Corpus, tokenize_documents, unknown_tokens
from modeling_treediff.text.unknown_tokens import count_unknown, unknown_note
from modeling_treediff.training import DataOptions, open_training_data

CYRILLIC = "Мы не знаем этого языка"


def unigram():
    """Of Latin letters alone, as SentencePiece's are of the text that they were learned from."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((chr(letter), -3.0) for letter in range(97, 123))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize(
    ("tokenizer", "text", "unknown"),
    [
        (unigram(), CYRILLIC, 5),
        (unigram(), "a known text", 0),
        (make_tokenizer(), "a strange word, b", 3),
        (AutoTokenizer.from_pretrained(SAMPLE), CYRILLIC, 0),  # bytes; its <|endoftext|> is called unknown, too
        (ByT5Tokenizer(), CYRILLIC, 0),
    ],
)
def test_they_are_counted_in_any_vocabulary(tokenizer, text, unknown):
    row = tokenize_documents([text], tokenizer)
    assert count_unknown(row, tokenizer) == text_facts(row, tokenizer)["num_unknown"] == unknown
    note = unknown_note(unknown, len(row))
    assert note.startswith(f"{unknown} of {len(row)} tokens (") if unknown else note == ""


def test_the_table_and_the_json_of_a_measurement_say_it():
    tokenizer, console = make_tokenizer(), Console(width=400, record=True, quiet=True)
    results = {
        name: evaluate_texts(uniform_model(FLAT), tokenizer, [text], num_samples=2)
        for name, text in (("known.txt", "a b the é"), ("strange.txt", "a strange word"))
    }
    console.quiet = False
    with console.capture() as shown:
        console.print(as_table(results, "any"))
    rows = [line for line in shown.get().splitlines() if line.startswith("│")]
    assert [" * " in row for row in rows] == [False, True]
    assert f"* strange.txt: {unknown_note(2, 4)}." in " ".join(shown.get().split()) and "* known" not in shown.get()
    facts = {name: result.to_dict() for name, result in results.items()}
    assert facts["known.txt"]["warning"] is None and facts["strange.txt"]["num_unknown"] == 2
    assert facts["strange.txt"]["warning"] == unknown_note(2, 4)


@pytest.mark.parametrize("use", ["train", "build-tree", "measure"])
def test_whoever_uses_a_text_is_warned(tmp_path, use, monkeypatch):
    said = []
    monkeypatch.setattr(unknown_tokens.logger, "warning_once", said.append)
    tokenizer, texts = make_tokenizer(), ["a strange word", "the b c d"] * 20
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    if use == "train":
        options = DataOptions(sequence_length=4, cache_folder=tmp_path / "cache")
        for _ in range(2):  # made, and found again
            open_training_data(Corpus(tmp_path / "text.txt"), tokenizer, options)
        assert len(said) == 2 and "text.txt: 40 of 180 tokens" in said[1]
    elif use == "build-tree":
        count_tokens(texts, tokenizer, len(tokenizer))
        assert "40 of 140 tokens" in said[0]
    else:
        assert np.bincount(tokenize_texts(texts, tokenizer))[tokenizer.unk_token_id] == 40 and "40 of 180" in said[0]
