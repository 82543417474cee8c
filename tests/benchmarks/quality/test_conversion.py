"""What a converted checkpoint is worth: arms, record and table."""

import json
import lzma
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.processes import SAMPLE

from benchmarks.places import RESULTS
from benchmarks.quality import conversion
from benchmarks.quality.conversion_table import RECORDS
from modeling_treediff.conversion import load_source
from modeling_treediff.text import read_documents


def test_the_arms_differ_in_what_is_copied_alone(checkpoints, sample_tree):
    source, args = load_source(str(checkpoints("llama")[0])), SimpleNamespace(seed=3, layers=None, block_size=4)
    random, embeddings, converted = (
        dict(conversion.make(arm, source, sample_tree, args).named_parameters()) for arm in conversion.ARMS
    )
    for name, tensor in converted.items():
        assert torch.equal(tensor, embeddings[name]) == (name.startswith(("head", "model.embed_nodes")))
        assert torch.equal(random[name], embeddings[name]) == (name != "model.embed_nodes.weight")
    blocks = conversion.make("converted" + conversion.BLOCKS, source, sample_tree, args)
    assert blocks.config.block_size == 4 and all(
        torch.equal(tensor, converted[name]) for name, tensor in blocks.named_parameters()
    )


def test_the_benchmark_records_what_its_table_shows(checkpoints, tmp_path, monkeypatch, capsys):
    text = next(iter(read_documents(SAMPLE / "validation.txt.xz")))
    for part, piece in (("train", text[:8000]), ("validation", text[8000:12000])):
        (tmp_path / f"{part}.txt.xz").write_bytes(lzma.compress(piece.encode()))
    monkeypatch.setattr(conversion, "SAMPLE", tmp_path)
    monkeypatch.setattr(conversion, "POINTS", 2)
    record = tmp_path / "record.json"
    options = ["--name", "tiny", "--tree", SAMPLE, "--steps", 4, "--sequence-length", 16, "--record", record]
    options += ["--block-size", 4]
    monkeypatch.setattr(sys, "argv", ["conversion", *map(str, [checkpoints("gpt2")[0], *options])])
    conversion.main()
    facts = json.loads(record.read_text())
    assert [point["step"] for point in facts["arms"]["random"]["curve"]] == [2, 4]
    shown = capsys.readouterr().out
    assert len(facts["arms"]) == 6
    assert all(f"{figures['nelbo']:.3f} ± " in shown for figures in facts["arms"].values())
    gain = facts["arms"]["random in blocks"]["nelbo"] - facts["arms"]["converted in blocks"]["nelbo"]
    (line,) = (line for line in shown.splitlines() if line.startswith("| all that is copied, in blocks of 4 |"))
    assert line.endswith(f"| {gain:+.3f} |")
    del facts["arms"]["converted"]["nelbo"]
    with pytest.raises(ValueError, match="conversion.arms.converted lacks nelbo"):
        conversion.conversion_table(facts)


@pytest.mark.parametrize("file", [*RECORDS, RESULTS / "conversion_smollm2.json"], ids=lambda file: file.stem)
def test_the_recorded_runs_are_of_one_clean_commit_each(file):
    record = json.loads(file.read_text())
    table = conversion.conversion_table(record)
    gain = record["arms"]["random"]["nelbo"] - record["arms"]["converted"]["nelbo"]
    assert f"| {gain:+.3f} |" in table and not record["commit"].endswith("dirty")
