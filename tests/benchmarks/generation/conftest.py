"""Tiny models, a judge and a text, and a run of the benchmark over them."""

import json
import sys

import pytest
import torch
from helpers.models import SEQUENTIAL, tiny_model
from helpers.processes import SAMPLE
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.generation import quality
from modeling_treediff import VocabularyTree
from modeling_treediff.evaluation import GenerativePerplexity
from modeling_treediff.text import read_documents

LENGTH = 8


@pytest.fixture(scope="session")
def judge(tokenizer):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    return GenerativePerplexity(GPT2LMHeadModel(GPT2Config(initializer_range=0.3, **sizes)).eval(), tokenizer)


@pytest.fixture(scope="session")
def folders(tokenizer, judge, tmp_path_factory):
    """Saved: two models over one tokenizer, a judge, and a text."""
    folder = tmp_path_factory.mktemp("benchmark")
    tree = VocabularyTree.from_pretrained(SAMPLE)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    # One level after the other: as many passes as steps.
    models = {
        "tree": tiny_model(tree, **SEQUENTIAL, **special),
        "flat": tiny_model(VocabularyTree.flat(tree.vocab_size), **special),
    }
    for name, model in {**models, "judge": judge.model}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "text.txt").write_text(next(iter(read_documents(SAMPLE / "validation.txt.xz")))[:4000], "utf-8")
    return folder


@pytest.fixture
def run(folders, tmp_path, monkeypatch):
    """Run the benchmark; returns its record."""

    def run_with(*arguments, models=("tree",), passes=("2", "4"), texts=3):
        command = ["quality", *(f"{name}={folders / name}" for name in models)]
        command += ["--judge", str(folders / "judge"), "--text", str(folders / "text.txt"), "--length", str(LENGTH)]
        command += ["--texts", str(texts), "--batch-size", "2", "--passes", *passes, *arguments]
        command += ["--record", str(tmp_path / "record.json"), "--figure", str(tmp_path / "images" / "figure.png")]
        monkeypatch.setattr(sys, "argv", command)
        quality.main()
        return json.loads((tmp_path / "record.json").read_text("utf-8"))

    return run_with
