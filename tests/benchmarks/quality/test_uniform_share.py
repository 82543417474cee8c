"""The uniform share of the benchmark is the mixture that it names, and measured beside MDLM with the same."""

import argparse
import json
import math

import numpy as np
import pytest
import torch
from helpers.models import tiny_model

from benchmarks.quality import ablation_table, ablations, uniform_share
from benchmarks.quality import record as quality_record
from modeling_treediff.building import random_tree
from modeling_treediff.training.memory import make_lean


@pytest.mark.parametrize("head", ["child", "node", "leaf"])
def test_training_has_the_mixture(head):
    tree = random_tree(40, 7, 2)
    model = tiny_model(tree, head=head)
    nodes = torch.arange(tree.root_id, tree.num_nodes)[None]
    hidden = model.model(nodes).last_hidden_state
    probability = model.child_logits(nodes).softmax(dim=-1)
    children = (tree.children >= 0).sum(dim=1)
    with uniform_share.sharing(0.3):
        make_lean(model)
        for slot in range(tree.max_branching):
            slots = torch.where(slot < children, slot, -100)[None]
            found = model.child_cross_entropy(hidden, nodes, slots)
            expected = -torch.log(0.7 * probability[..., slot] + 0.3 / children)
            torch.testing.assert_close(found, torch.where(slots >= 0, expected, 0.0), rtol=1e-4, atol=1e-6)
        assert torch.autograd.grad(found.sum(), hidden)[0].any()


def test_the_runs_are_put_into_one_table(packed, tmp_path, monkeypatch):
    """A text's ratio is to MDLM with the same seed, trained and measured with the same share."""
    monkeypatch.setattr(ablations.PackedData, "load", lambda _: packed)
    monkeypatch.setattr(ablations, "SHARES", (0.0, 0.5))
    monkeypatch.setattr(ablation_table, "RESULTS", tmp_path)
    for part, names in {"unseen": ("mdlm", "closed"), "shares": ("mdlm-shared-0.05", "shared-0.05")}.items():
        folders = {name: tmp_path / part / f"{name}-seed0" for name in names}
        for name, folder in folders.items():
            ablations.run(name, argparse.Namespace(form="tiny", embeddings="", seed=0, part=part), folder)
        flat, tree = (json.loads((folder / "run.json").read_text())["shares"] for folder in folders.values())
        runs = quality_record.read_runs(tmp_path / part)
        ablations.collect(tmp_path / f"ablations_{part}.json", runs, [(name, 0) for name in names])
        lines = ablation_table.shares_table(ablation_table.read_part(part)).splitlines()
        for of_flat, of_tree in zip(flat, tree, strict=True):
            gap = np.subtract(*(np.mean(row["texts"]["other"]["windows"]) for row in (of_tree, of_flat)))
            assert any(f"; {math.exp(gap):.3f} (" in line and f"| {of_tree['share']:g} |" in line for line in lines)
    broken = json.loads((tmp_path / "ablations_unseen.json").read_text())
    del broken["runs"][1]["shares"][0]["texts"]
    (tmp_path / "ablations_unseen.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="lacks"):
        ablation_table.read_part("unseen")
