"""The backbone: every position sees every other and knows its place; padding changes nothing."""

import pytest
import torch
from helpers.attentions import ATTENTIONS, uncompiled
from helpers.models import TREES, corrupted, tiny_model
from helpers.untraced import untraced


@untraced
@uncompiled
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_changes_nothing_on_either_side(attention):
    model = tiny_model(TREES[1])
    nodes = torch.randint(0, model.config.num_tree_nodes, (1, 6), generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(1, 4, dtype=torch.long)
    padded = torch.cat([torch.cat([nodes, padding], 1), torch.cat([padding, nodes], 1)])
    mask = torch.tensor([[1] * 6 + [0] * 4, [0] * 4 + [1] * 6])
    with torch.no_grad():  # on a CPU flex attention has no backward
        alone = model(nodes).logits
        model.set_attn_implementation(attention)
        logits = model(padded, attention_mask=mask).logits
    for one in (logits[:1, :6], logits[1:, 4:]):
        torch.testing.assert_close(one, alone, rtol=1e-4, atol=1e-5)


def test_every_position_sees_every_other():
    model = tiny_model(TREES[1])
    nodes = torch.full((1, 6), model.config.mask_token_id)
    before = model(nodes).logits
    for place in range(6):
        changed = nodes.clone()
        changed[0, place] = 3
        other = [index for index in range(6) if index != place]
        assert ((model(changed).logits - before)[0, other].nan_to_num().abs().amax(-1) > 1e-6).all()


def test_the_place_of_a_token_matters():
    model = tiny_model(TREES[1])
    nodes = torch.full((1, 6), model.config.mask_token_id)
    nodes[0, 2] = 5
    forward = model(nodes).logits
    nodes[0, 2], nodes[0, 3] = model.config.mask_token_id, 5
    others = [0, 1, 4, 5]  # they hold the same nodes in both texts
    assert ((model(nodes).logits - forward)[0, others].nan_to_num().abs().amax(-1) > 1e-5).all()


def test_activation_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(TREES[1]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        batch = corrupted(model)
        model(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)
