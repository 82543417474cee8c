"""Costs of a training step beside the bound of the model that it trains."""

import math

import pytest
from helpers.contenders import TINY

from benchmarks.quality import trade_off_table, trade_offs
from benchmarks.quality.variants import NODE, VARIANTS

MODELS = ("mdlm", NODE, "own-64")


@pytest.fixture(scope="module")
def record():
    rows = trade_offs.measure(MODELS, 500, TINY, turns=2)
    sizes = {"batch_size": TINY.batch_size, "sequence_length": TINY.sequence_length}
    return sizes | {"commit": "1234567", "device": "a CPU", "rows": rows}


@pytest.fixture
def embeddings():
    runs = [
        {"variant": name, "seed": seed, "title": VARIANTS[name].title, "further": {"validation": {"nats": nats + seed}}}
        for name, nats in zip(MODELS, (6.0, 5.5, 5.0), strict=True)
        for seed in (0, 1)
    ]
    protocol = {"steps": 2500, "batch_size": 16, "sequence_length": 64}
    return {"trained_with": {"commit": "7654321"}, "protocol": protocol, "runs": runs}


def test_every_way_to_train_is_planned_as_it_is_taken(record):
    """Less is kept for backward where MLPs are computed twice."""
    rows = {(row["variant"], row["way"]): row for row in record["rows"]}
    assert len(rows) == len(record["rows"]) == 4 + 2 * (len(MODELS) - 1)
    assert rows["own-64", "recompute"]["peak_bytes"] < rows["own-64", "lean"]["peak_bytes"]
    assert rows["own-64", "lean"]["layers"] == rows[NODE, "lean"]["layers"]
    assert rows["mdlm", "lean"]["ratio"] == 1
    assert all(row["tokens_per_second"] > 0 for row in rows.values())


def test_the_table_has_ratios_to_mdlm(record, embeddings):
    lines = trade_off_table.budgets_table(record, embeddings).splitlines()
    flat, path, factorised = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:5])
    assert flat[2:] == ["1.00", "1.00", "1.00", "1.000"]
    assert path[-1] == f"{math.exp(-0.5):.3f}" and factorised[-1] == f"{math.exp(-1.0):.3f}"
    assert "after 2.56M tokens" in lines[-1]
    sizes = {row["variant"]: row["parameters"] for row in record["rows"]}
    assert factorised[2] == f"{sizes['own-64'] / sizes['mdlm']:.2f}"


def test_the_figure_has_all_models(record, embeddings, tmp_path, monkeypatch):
    monkeypatch.setattr(trade_off_table, "MODELS", MODELS)
    trade_off_table.draw(record, embeddings, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
