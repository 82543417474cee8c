"""The reference checkpoint is what was trained, rounded; its record is of the rounded weights."""

import lzma
import sys

import torch
from helpers.cards import record
from helpers.processes import SAMPLE, run_here
from safetensors.torch import load_file

from benchmarks.quality.packed_data import spread
from benchmarks.quality.reference import NOVELS, WINDOWS, WORKS, documents, main, save_rounded
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.text import Corpus, read_documents
from modeling_treediff.text.documents import split_documents
from modeling_treediff.text.tree_tokenizer import load_tokenizer
from modeling_treediff.training import DataOptions, open_training_data


def test_novels_become_chapters_of_unwrapped_paragraphs(tmp_path):
    for name in WORKS:
        (tmp_path / f"{name}.txt.xz").write_bytes(lzma.compress(f"Of {name}.\n\nMore.\n".encode()))
    lines = "\n".join(["some words"] * 60)
    novel = f"A NOVEL\n\nCHAPTER I\n\nCHAPTER II\n\nCHAPTER I\n\n{lines}\n\nEnd.\n"
    (tmp_path / f"{NOVELS}.txt.xz").write_bytes(lzma.compress(novel.encode()))
    *works, chapter = documents(tmp_path)
    assert works == [text for name in WORKS for text in (f"Of {name}.", "More.")]
    assert chapter == "CHAPTER I\n" + " ".join(["some words"] * 60) + "\nEnd."


def test_the_held_out_documents_are_those_that_training_does_not_see(tmp_path, monkeypatch):
    text, held_out = tmp_path / "text.txt", tmp_path / "held" / "held_out.txt"
    text.write_text("\n\n".join(f"Document {number}." for number in range(1, 101)), "utf-8")
    monkeypatch.setattr(sys, "argv", ["reference", "held-out", str(text), str(held_out)])
    main()
    assert read_documents(held_out) == [f"Document {number}." for number in (20, 40, 60, 80, 100)]
    training, _ = split_documents(read_documents(text), DataOptions.hold_out_every)
    assert not {*training} & {*read_documents(held_out)}


def test_the_saved_model_is_the_trained_one_in_bf16_and_its_record_is_of_these_weights(tmp_path):
    text, trained, saved = tmp_path / "text.txt", tmp_path / "trained", tmp_path / "saved"
    text.write_text("\n\n".join(document[:2000] for document in read_documents(SAMPLE / "validation.txt.xz")), "utf-8")
    sizes = ["--hidden-size", "16", "--heads", "2", "--layers", "1", "--sequence-length", "16", "--batch-size", "4"]
    steps = ["--max-steps", "2", "--warmup-steps", "1", "--save-every", "0", "--hold-out-every", "5"]
    assert run_here("train", "--text", text, "--output", trained, *sizes, *steps).returncode == 0
    save_rounded(trained, text, saved)
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, saved))
    model = TreeDiffForDiffusionLM.from_pretrained(saved)
    for name, tensor in before.items():
        rounded = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert torch.equal(after[name], rounded) and after[name].dtype == rounded.dtype
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    measured, tokenizer = record(saved), load_tokenizer(str(saved))
    _, validation = open_training_data(Corpus(text), tokenizer, DataOptions(16, hold_out_every=5))
    bound = model.nelbo(spread(validation, WINDOWS), generator=torch.Generator().manual_seed(0))
    assert bound.value == measured["nelbo"] != record(trained)["nelbo"]
    assert f"{bound.value:.3f} ± " in (saved / "README.md").read_text("utf-8")
