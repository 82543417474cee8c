"""Measuring as people do it; once in a fresh process."""

import json
import math

import pytest
from helpers.models import tiny_model
from helpers.processes import SAMPLE, last_line, run_here, run_treediff
from transformers import AutoTokenizer, GPT2Config

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.evaluation import WindowProtocol, evaluate_texts
from modeling_treediff.hub import save_checkpoint
from modeling_treediff.text import read_documents


def evaluate(*arguments):
    return run_here("evaluate", *arguments)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SAMPLE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    model = tiny_model(VocabularyTree.from_pretrained(SAMPLE), num_hidden_layers=1, initializer_range=0.02)
    save_checkpoint(model, folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    documents = [document[:600] for document in read_documents(SAMPLE / "validation.txt.xz")[:2]]
    (folder / "first.txt").write_text("\n\n".join(document.replace("\n", " ") for document in documents), "utf-8")
    (folder / "second.jsonl").write_text(json.dumps({"body": "Fellow citizens of the Senate: peace."}) + "\n", "utf-8")
    return [folder / "first.txt", folder / "second.jsonl"]


def test_a_row_per_text_the_protocol_and_json(checkpoint, texts, tokenizer, tmp_path):
    settings = ["--samples", "4", "--sequence-length", "16", "--stride", "8", "--seed", "5", "--batch-size", "16"]
    settings += ["--text-column", "body", "--json", tmp_path / "result.json"]
    ran = run_treediff("evaluate", checkpoint, *texts, *settings, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert (
        record["seed"] == 5
        and "modeling_treediff.cli.main evaluate" in record["command"]
        and record["versions"]["torch"]
    )
    assert [row["text"] for row in record["texts"]] == [text.name for text in texts]
    model = TreeDiffForDiffusionLM.from_pretrained(checkpoint)
    documents = read_documents(texts[0])
    protocol = WindowProtocol(16, 8)
    expected = evaluate_texts(model, tokenizer, documents, protocol, num_samples=4, seed=5, batch_size=16)
    assert record["texts"][0]["nelbo"] == pytest.approx(expected.nelbo, rel=1e-5)
    model.config.uniform_share = 0.2
    shared = evaluate_texts(model, tokenizer, documents, protocol, num_samples=4, seed=5, batch_size=16)
    assert run_here("evaluate", checkpoint, texts[0], *settings, "--uniform-share", "0.2").returncode == 0
    of_share = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert of_share["texts"][0]["nelbo"] == pytest.approx(shared.nelbo, rel=1e-5) != pytest.approx(expected.nelbo)
    assert (record["uniform_share"], of_share["uniform_share"]) == (0.0, 0.2)
    for row in record["texts"]:
        assert row["protocol"]["stride"] == 8 and row["num_unknown"] == 0
        assert row["bits_per_byte"] == pytest.approx(row["nelbo"] * row["num_tokens"] / math.log(2) / row["num_bytes"])
        assert sum(row["level_losses"]) == pytest.approx(row["nelbo"])
        assert f"{row['nelbo']:.3f} ±" in ran.stdout and f"{row['bits_per_byte']:.3f} ±" in ran.stdout
        assert f"≤ {row['perplexity']:.4g}" in ran.stdout
    stated = " ".join(ran.stdout.split())
    assert "windows of 16 tokens, stride 8, each but the first given its first 8 tokens" in stated
    assert ran.stderr == ""  # no bar where nobody watches
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_flat_model_a_limit_and_a_tokenizer_of_its_own(texts, tmp_path):
    model = tiny_model(VocabularyTree.flat(8192), num_hidden_layers=1)
    model.save_pretrained(tmp_path / "flat")
    ran = evaluate(tmp_path / "flat", texts[0], "--tokenizer", SAMPLE, "--limit", "1", "--json", tmp_path / "one.json")
    assert ran.returncode == 0, ran.stderr
    (row,) = json.loads((tmp_path / "one.json").read_text("utf-8"))["texts"]
    assert row["num_texts"] == 1 and len(row["level_losses"]) == 1
    assert row["num_bytes"] == len(read_documents(texts[0])[0].encode())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.txt"], "There is no text file missing.txt."),
        (["{text}", "--limit", "0"], "--limit must be at least 1"),
        (["{text}", "--stride", "17"], "stride must lie in 1..16"),
        (["{text}", "--sequence-length", "32"], "longer than the model's 16 positions"),
        (["{text}", "--samples", "0"], "at least 1"),
        (["{text}", "--uniform-share", "1"], "--uniform-share must be at least 0 and less than 1"),
        (["{text}", "--json", "no/such/folder/result.json"], "no/such/folder"),
        (["{text}", "--tokenizer", "{folder}"], "they do not belong"),
    ],
)
def test_bad_input_is_one_line(checkpoint, texts, tmp_path, tokenizer, arguments, message):
    if "{folder}" in arguments:
        larger = AutoTokenizer.from_pretrained(SAMPLE)
        larger.add_tokens(["one more"])
        larger.save_pretrained(tmp_path)
        message = "tokenizer has 8193"
    ran = evaluate(checkpoint, *(argument.format(text=texts[0], folder=tmp_path) for argument in arguments))
    assert last_line(ran).startswith("treediff evaluate: error: ") and message in last_line(ran)
    assert ran.returncode == (2 if any(word in message for word in ("--limit", "no/such", "--uniform")) else 1)


def test_what_is_no_model_of_this_kind_is_one_line(texts, tmp_path):
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    GPT2Config().save_pretrained(other)
    for folder, message in ((empty, str(empty)), (other, "is a gpt2 model")):
        ran = evaluate(folder, texts[0])
        assert ran.returncode == 1 and ran.stderr.count("\n") == 0
        assert last_line(ran).startswith("treediff evaluate: error: ") and message in last_line(ran)
