"""Tables of the ablations, and the default that they decided."""

import itertools

import numpy as np
import pytest

from benchmarks.quality import ablation_table, ablations, training
from benchmarks.quality import record as quality_record
from modeling_treediff import TreeDiffConfig
from modeling_treediff.building.balanced import random_tree


def test_trees_are_every_source_in_every_order_and_the_table_has_them_all():
    runs = ablations.wanted_runs("trees")
    first = [ablations.VARIANTS[name] for name, seed in runs if seed == 0]
    pairs = [(variant.source, variant.order) for variant in first]
    assert sorted(pairs) == sorted(itertools.product(ablations.SOURCES, ablations.ORDERS))
    assert {name for name, _ in runs}.isdisjoint({name for name, _ in ablations.wanted_runs("choices")} - {"base"})
    nats = np.random.default_rng(0).uniform(5, 6, (len(runs), 40))
    shown = [
        {"variant": name, "seed": seed, "difference": quality_record.estimate(own - nats[0])}
        | quality_record.estimate(own)
        for (name, seed), own in zip(runs, nats, strict=True)
    ]
    record = {"protocol": training.plain({"steps": 1, "batch_size": 1, "sequence_length": 1}), "learning_rate": 1.0}
    record |= {"trained_with": {"device": "", "commit": "", "versions": {"torch": ""}}, "runs": shown}
    cells = [cell for line in ablation_table.trees_table(record).splitlines()[2:7] for cell in line.split(" | ")[1:]]
    for index, (source, order) in enumerate(pairs):
        cell = cells[list(ablations.SOURCES).index(source) * 3 + list(ablations.ORDERS).index(order)]
        assert cell.startswith(f"{nats[index].mean():.3f}")
        assert (f"({(nats[index] - nats[0]).mean():+.3f} ±" in cell) == (index > 0)
    record["runs"] = shown[:-2]
    with pytest.raises(ValueError, match="ablations_trees lacks trees: frequency, aligned"):
        ablation_table.trees_table(record)


def test_the_default_is_the_candidate_that_predicted_best():
    best, *_ = ablation_table.ranked_candidates(ablation_table.read_part("candidates"))
    config = TreeDiffConfig.from_tree(random_tree(20, 5, 2))
    fields = ablations.VARIANTS[best].contender.fields
    assert {name: getattr(config, name) for name in fields} == dict(fields)
    heads = [TreeDiffConfig.from_tree(random_tree(20, 20, depth)).head for depth in (1, 2, 3)]
    assert heads == ["child", "node", "child"]
