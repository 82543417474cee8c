"""A step on fake tensors allocates what a real one does."""

import pytest
import torch
from helpers.models import SMALL_CONFIG, tiny_model

from modeling_treediff import TreeDiffConfig, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.training.memory import make_lean
from modeling_treediff.training.memory.ledger import BLOCK
from modeling_treediff.training.memory.plan import plan_memory


def test_what_a_model_is_made_of_is_counted_exactly():
    plan = plan_memory(SMALL_CONFIG, 2, 16, ema=True)
    parameters = [4 * parameter.numel() for parameter in tiny_model_of(SMALL_CONFIG).parameters()]
    rounded = sum(-(-size // BLOCK) * BLOCK for size in parameters)
    tables = plan.timeline["parameters"] - rounded
    assert (0 <= tables).all() and tables.max() <= 8 * (300 * 3 + 20 * 18 + 4 * 320) + 8 * BLOCK
    assert (plan.timeline["EMA"] == rounded).all()
    rest = plan.timeline["optimizer state"] - 2 * rounded - BLOCK * len(parameters)  # a count of steps for each
    assert (0 <= rest).all() and rest.max() <= 4 * BLOCK
    assert plan.timeline["gradients"].max() == rounded and plan.timeline["gradients"][0] == 0


def tiny_model_of(config):
    tree = random_tree(config.vocab_size, config.max_branching, config.tree_depth)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "head")
    return tiny_model(tree, **{name: getattr(config, name) for name in sizes})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_activations_are_what_autograd_keeps(attention):
    """Independent count on a real model: the storages that saved-tensor hooks see, parameters and inputs apart."""
    model = tiny_model_of(SMALL_CONFIG).train()
    model.set_attn_implementation(attention)
    make_lean(model)
    batch = corrupt(torch.zeros(8, 64, dtype=torch.long), model.tree, model.schedule)
    kept, known = {}, {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.model.backbone(model.model._embed(batch.input_ids))
    del hidden
    real = sum(storage.nbytes() for storage in kept.values())
    plan = plan_memory(SMALL_CONFIG, 8, 64, precision="fp32", attn_implementation=attention)
    assert abs(plan.timeline["activations"].max() - real) <= 0.03 * real


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 10**9}, "batch_size must be at most 1,048,576"),
        ({"accumulation": 10**9}, "accumulation must be at most"),
        ({"processes": 10**9}, "processes must be at most"),
        ({"model_config": TreeDiffConfig(num_hidden_layers=10**6)}, "1000000 layers are not planned"),
        ({"recompute_mlp": -1}, "recompute_mlp must not be negative, got -1"),
        ({"loss_chunk": 0}, "loss_chunk must be at least 1"),
        ({"lean": False, "loss_chunk": 8}, "Only a lean step"),
        ({"precision": "int8"}, "Unknown precision 'int8'; known: fp32, bf16, fp16"),
        ({"sequence_length": 200}, "200 tokens are longer than the model's 128 positions"),
    ],
)
def test_impossible_steps_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan_memory(**({"model_config": SMALL_CONFIG, "batch_size": 2, "sequence_length": 16} | changes))
