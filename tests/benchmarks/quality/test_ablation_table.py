"""Tables of the ablations, and the default that they decided."""

import itertools

import numpy as np
import pytest

from benchmarks.quality import ablation_table, ablations, training, variants
from benchmarks.quality import record as quality_record
from modeling_treediff import TreeDiffConfig
from modeling_treediff.building.balanced import random_tree


def test_trees_are_every_source_in_every_order_and_the_table_has_them_all():
    runs = ablations.wanted_runs("trees")
    first = [variants.VARIANTS[name] for name, seed in runs if seed == 0]
    pairs = [(variant.source, variant.order) for variant in first]
    assert sorted(pairs) == sorted(itertools.product(variants.SOURCES, variants.ORDERS))
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
        cell = cells[list(variants.SOURCES).index(source) * 3 + list(variants.ORDERS).index(order)]
        assert cell.startswith(f"{nats[index].mean():.3f}")
        assert (f"({(nats[index] - nats[0]).mean():+.3f} ±" in cell) == (index > 0)
    record["runs"] = shown[:-2]
    with pytest.raises(ValueError, match="ablations_trees lacks trees: frequency, aligned"):
        ablation_table.trees_table(record)


def test_training_times_stand_beside_the_default_with_their_differences():
    nats = np.random.default_rng(0).uniform(5, 6, (2, 2, 40))  # of two variants, in the bound and at single words
    (bound, word), (own_bound, own_word) = ([quality_record.estimate(one) for one in rows] for rows in nats)
    gaps = [quality_record.estimate(own - base) for own, base in zip(nats[1], nats[0], strict=True)]
    shared = {"seed": 0, "num_hidden_layers": 6, "level_losses": [3.0, 2.0]}
    runs = [
        shared | {"variant": variants.NODE, "title": "x", "further": {"a word": word}} | bound,
        shared
        | {"variant": "times-0.01", "title": "from 0.01", "difference": gaps[0]}
        | {"further": {"a word": own_word | {"difference": gaps[1]}}}
        | own_bound,
    ]
    record = {"protocol": training.plain({"steps": 1, "batch_size": 1, "sequence_length": 1}), "learning_rate": 1.0}
    record |= {"trained_with": {"device": "", "commit": "", "versions": {"torch": ""}}, "runs": runs[::-1]}
    lines = ablation_table.times_table(record).splitlines()
    assert "the default" in lines[2] and lines[2].count("–") == 2
    assert lines[3].startswith("| from 0.01 |")
    assert all(f"{gap['nats']:+.3f} ±" in lines[3] for gap in gaps)
    assert "nothing of other seeds, of which there is one." in lines[-1]


@pytest.mark.parametrize(("part", "name"), [("blocks", "blocks-4"), ("perturbed", "perturbed-0.1")])
def test_what_is_changed_stands_beside_the_default_with_its_ratios(part, name):
    """Both seeds of the default and of a variant, on two texts."""
    texts, runs = ("validation", "other"), []
    nats = {key: np.random.default_rng(0).uniform(5, 6, 40) + (key == name) / 8 for key in (variants.NODE, name)}
    for variant, seed in itertools.product(nats, (0, 1)):
        gap = quality_record.estimate(nats[variant] - nats[variants.NODE])
        further = {text: quality_record.estimate(nats[variant]) | {"difference": gap} for text in texts}
        title, own = variants.VARIANTS[variant].title, quality_record.estimate(nats[variant])
        runs.append({"variant": variant, "seed": seed, "title": title, "further": further} | own)
    assert (name, 0) in ablations.wanted_runs(part) and part in ablation_table.SCHEMAS
    record = {"protocol": training.plain({"steps": 1, "batch_size": 1, "sequence_length": 1}), "learning_rate": 1.0}
    record |= {"trained_with": {"device": "", "commit": "", "versions": {"torch": ""}}, "runs": runs}
    lines = ablation_table.changed_table(record).splitlines()
    assert lines[2].startswith("| tree | 0 |") and lines[2].endswith("| 1 | 1 |")
    assert lines[4].startswith(f"| {variants.VARIANTS[name].title} | 0 |")
    assert lines[4].count(f"{np.exp(1 / 8):.3f} (") == 2


def test_process_and_head_of_the_default_are_those_of_the_candidate_that_predicted_best():
    best, *_ = ablation_table.ranked_candidates(ablation_table.read_part("candidates"))
    config = TreeDiffConfig.from_tree(random_tree(20, 5, 2))
    fields = variants.VARIANTS[best].contender.fields
    assert (config.schedule, config.head) == (fields["schedule"], fields["head"])
    heads = [TreeDiffConfig.from_tree(random_tree(20, 20, depth)).head for depth in (1, 2, 3)]
    assert heads == ["child", "node", "child"]
