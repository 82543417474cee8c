"""A checkpoint with its records, as training and evaluation leave it; a Hub in this process."""

import shutil

import pytest
from helpers.hub_double import hub_in_this_process
from helpers.processes import SAMPLE, run_here

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.text import read_documents

SIZES = ["--hidden-size", "16", "--heads", "2", "--layers", "1", "--sequence-length", "16", "--batch-size", "4"]


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """A checkpoint with its records, as the scripts make them."""
    folder = tmp_path_factory.mktemp("card")
    documents = [document[:2000] for document in read_documents(SAMPLE / "validation.txt.xz")]
    (folder / "corpus.txt").write_text("\n\n".join(documents), "utf-8")
    (folder / "other.txt").write_text(documents[0][:600].replace("\n", " "), "utf-8")
    training = ["--text", folder / "corpus.txt", "--hold-out-every", "5", "--output", folder / "model"]
    steps = [
        "--max-steps",
        "2",
        "--warmup-steps",
        "1",
        "--save-every",
        "0",
        "--license",
        "Apache-2.0",
        "--language",
        "en",
    ]
    ran = run_here("train", *training, *SIZES, *steps)
    assert ran.returncode == 0, ran.stderr
    assert "± " in (folder / "model" / "README.md").read_text("utf-8")
    where = ["--json", folder / "model" / "evaluation.json"]
    texts = [folder / "other.txt", folder / "corpus.txt"]
    ran = run_here("evaluate", folder / "model", *texts, "--limit", "1", *where)
    assert ran.returncode == 0, ran.stderr
    return folder / "model"


@pytest.fixture
def checkpoint(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "model")


@pytest.fixture
def loaded(checkpoint):
    return TreeDiffForDiffusionLM.from_pretrained(checkpoint)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_in_this_process(monkeypatch, tmp_path / "home") as double:
        yield double
