"""What the approximate cache costs."""

import sys

import pytest
import torch
from helpers.models import tiny_model

from benchmarks.generation import approximate_cache
from benchmarks.record_schema import read_record
from modeling_treediff.building.balanced import random_tree


@pytest.mark.parametrize("layers", [1, 2])
def test_it_costs_nothing_in_one_layer_whose_keys_are_those_of_tokens_alone(layers):
    model = tiny_model(random_tree(60, 8, 2, seed=0), num_hidden_layers=layers, initializer_range=0.5).double().eval()
    windows = torch.randint(0, 60, (6, 16), generator=torch.Generator().manual_seed(1))
    found = approximate_cache.compared(model, windows, 6, 0.5, torch.Generator().manual_seed(0))
    exact = found["nats_with_cache"] == pytest.approx(found["nats"], rel=1e-9)
    assert exact == (layers == 1) and (found["divergence"] < 1e-12) == (layers == 1)
    assert found["other_choice"] == 0 or layers == 2


def test_the_benchmark_writes_its_record_and_refuses_models_with_blocks(folders, tokenizer, monkeypatch, tmp_path):
    command = ["approximate_cache", str(folders / "tree"), "--windows", "4", "--output", str(tmp_path / "record.json")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(approximate_cache, "BLOCKS", (4,))
    approximate_cache.main()
    record = read_record(tmp_path / "record.json", approximate_cache.SCHEMA)
    assert [cell["written"] for cell in record["cells"]] == list(approximate_cache.SHARES)
    model = tiny_model(random_tree(len(tokenizer), 91, 2), block_size=4)
    model.save_pretrained(tmp_path / "blocks")
    command[1] = str(tmp_path / "blocks")
    with pytest.raises(SystemExit, match="is exact"):
        approximate_cache.main()


def test_the_record_holds_what_the_table_shows():
    record = read_record(approximate_cache.RECORD, approximate_cache.SCHEMA)
    shown = approximate_cache.cache_table(record)
    assert all(f"{cell['divergence']:.4f}" in shown for cell in record["cells"])
    assert not record["commit"].endswith("dirty")
