"""Layers of every family are the source's where they agree."""

import pytest
import torch
from helpers.foreign_checkpoints import FIELDS, attention_of, count, save_foreign_checkpoint

from modeling_treediff.conversion import FAMILIES, convert, load_source


def parameters_of(parts):
    return sum(part.parameters for part in parts)


@pytest.mark.parametrize("kind", FIELDS)
def test_layers_are_the_sources_where_they_agree(checkpoints, sample_tree, kind):
    folder, original = checkpoints(kind)
    model, report = convert(load_source(str(folder)), sample_tree)
    for index, layer in enumerate(model.model.backbone.layers):
        ours = [getattr(layer.self_attn, f"{name}_proj").weight for name in "qkvo"]
        for copy, theirs in zip(ours, attention_of(kind, original, index), strict=True):
            assert torch.equal(copy, theirs)
    # Every parameter of the model is accounted for once, and so is every one of the source.
    assert parameters_of(report.copied + report.new) == count(model.parameters())
    whole = kind in ("llama", "mistral", "qwen2")
    assert {part.part for part in report.new} == ({"head"} if whole else {"MLPs", "norms", "head"})
    attention = 2 * sum(
        16 * 4 * heads for heads in (4, 4, *[original.config.to_dict().get("num_key_value_heads", 4)] * 2)
    )
    biases = count(tensor for name, tensor in original.named_parameters() if name.endswith("bias"))
    embeddings = original.get_input_embeddings().weight.numel()
    expected = biases if whole else count(original.parameters()) - embeddings - attention
    assert parameters_of(report.left_out) == expected


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_llama_without_its_causal_mask_is_our_backbone(tmp_path, tokenizer, sample_tree, heads):
    """Also with grouped queries. The reference is transformers' LlamaModel under a mask that hides nothing."""
    original = save_foreign_checkpoint(tmp_path, tokenizer, "llama", num_key_value_heads=heads)
    model = convert(load_source(str(tmp_path)), sample_tree)[0].eval()
    token_ids = torch.randint(sample_tree.vocab_size, (3, 11), generator=torch.Generator().manual_seed(0))
    nothing_hidden = torch.zeros(3, 1, 11, 11)
    with torch.no_grad():
        ours = model.model(token_ids).last_hidden_state
        theirs = original(token_ids, attention_mask=nothing_hidden, use_cache=False).last_hidden_state
        causal = original(token_ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    assert (ours - causal).abs().max() > 0.1  # the mask does matter


def test_heads_of_another_size_are_not_copied_and_the_rest_is(tmp_path, tokenizer, sample_tree):
    original = save_foreign_checkpoint(tmp_path, tokenizer, "llama", head_dim=8)
    model, report = convert(load_source(str(tmp_path)), sample_tree)
    notes = {part.note for part in report.new if part.part == "attention"}
    assert notes == {"shape (32, 16) there, (16, 16) here", "shape (16, 32) there, (16, 16) here"}
    assert torch.equal(model.model.backbone.layers[1].mlp.up_proj.weight, original.layers[1].mlp.up_proj.weight)
    assert model.nelbo(torch.arange(32).view(2, 16), num_samples=4).value > 0


def test_every_family_is_tested():
    assert FAMILIES.keys() == FIELDS.keys()
