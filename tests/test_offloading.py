"""Weights kept elsewhere by accelerate: the same scores, texts and bounds, whatever fits into memory."""

import accelerate
import pytest
import torch
from helpers.models import TREES, tiny_model
from helpers.untraced import untraced

from modeling_treediff import TreeDiffForDiffusionLM, TreeDiffForMaskedLM

FAMILY = [
    (TREES[0], {"head": "node"}),
    (TREES[1], {"head": "node"}),
    (TREES[1], {"head": "child", "node_embedding": "free"}),
    (TREES[2], {"head": "leaf"}),
    (TREES[0], {"head": "leaf"}),
    (TREES[2], {"head": "child", "node_embedding": "factorised"}),
    (TREES[1], {"head": "node", "node_embedding": "factorised", "tie_word_embeddings": True}),
]


def answers(model):
    """Scores, a text, and the bound of a text."""
    nodes = torch.arange(20, model.config.num_tree_nodes).repeat(8)[None, :8]
    with torch.no_grad():
        scores = model(nodes).logits
    text = model.generate(max_new_tokens=5, num_steps=4, generator=torch.Generator().manual_seed(1))
    bound = model.nelbo(torch.arange(8)[None], num_samples=3, generator=torch.Generator().manual_seed(1))
    return scores, text, bound.value


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@untraced
@pytest.mark.parametrize(("tree", "fields"), FAMILY)
def test_part_of_a_model_stays_on_disk(tree, fields, tmp_path):
    model = tiny_model(tree, **fields)
    model.save_pretrained(tmp_path / "model")
    size = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    for share in (0.75, 0.3, 0.05):
        memory = {"device_map": "auto", "max_memory": {"cpu": int(share * size)}, "offload_folder": tmp_path / "rest"}
        loaded = TreeDiffForDiffusionLM.from_pretrained(tmp_path / "model", **memory)
        assert "disk" in loaded.hf_device_map.values() and loaded.device == torch.device("cpu")
        assert_same(answers(loaded), answers(model))
    loaded.save_pretrained(tmp_path / "again")
    assert_same(answers(TreeDiffForDiffusionLM.from_pretrained(tmp_path / "again")), answers(model))
    masked = TreeDiffForMaskedLM.from_pretrained(tmp_path / "model", **memory)
    nodes = torch.full((1, 3), tree.root_id)
    torch.testing.assert_close(masked.token_log_probs(nodes), model.token_log_probs(nodes), rtol=1e-4, atol=1e-5)


@untraced
@pytest.mark.parametrize(("tree", "fields"), FAMILY)
def test_weights_come_from_elsewhere_for_each_layer(tree, fields, tmp_path):
    expected = answers(tiny_model(tree, **fields))
    for offload in (accelerate.cpu_offload, lambda model: accelerate.disk_offload(model, str(tmp_path / "rest"))):
        model = tiny_model(tree, **fields)
        offload(model)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert_same(answers(model), expected)
