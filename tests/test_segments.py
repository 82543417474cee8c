"""Documents packed into one window and kept apart: each is as if it were alone."""

import pytest
import torch
from helpers.attentions import ATTENTIONS, uncompiled
from helpers.models import tiny_model

LENGTHS = (7, 1, 5, 3)


@pytest.fixture
def tokens(tree):
    return torch.randint(0, tree.num_nodes, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def segments():
    return torch.repeat_interleave(torch.tensor([-1, 1, 9, 4 + 2**31]), torch.tensor(LENGTHS)).expand(2, -1)


def hidden(model, tokens, **masks):
    with torch.no_grad():
        return model.model(tokens, **masks).last_hidden_state


@uncompiled
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_hidden_states_of_a_document_are_those_of_the_document_alone(tree, tokens, segments, attention):
    """Rotary positions are relative, so where in the window it stands does not matter."""
    model = tiny_model(tree, attn_implementation=attention)
    packed = hidden(model, tokens, segment_ids=segments)
    alone = torch.cat([hidden(model, document) for document in tokens.split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(hidden(model, tokens), alone, atol=0.1)


@uncompiled
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_beside_segments(tree, tokens, segments, attention):
    """Also where all of a segment is padding: no position becomes NaN, and the others are not touched."""
    model = tiny_model(tree, attn_implementation=attention)
    mask = torch.ones_like(tokens)
    mask[:, -5:] = 0  # the last document, and two tokens of the one before
    padded = hidden(model, tokens, segment_ids=segments, attention_mask=mask)
    documents = tokens[:, :-5].split((7, 1, 3), dim=1)
    alone = torch.cat([hidden(model, document) for document in documents], dim=1)
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[:, :-5], alone, rtol=1e-5, atol=1e-5)


def test_one_segment_is_no_segment(tree, tokens):
    model = tiny_model(tree)
    torch.testing.assert_close(
        hidden(model, tokens, segment_ids=torch.full_like(tokens, 3)), hidden(model, tokens), rtol=1e-5, atol=1e-5
    )


def test_gradients_stay_within_a_document(tree, tokens, segments):
    model = tiny_model(tree)
    embeddings = torch.randn(2, sum(LENGTHS), 32, requires_grad=True)
    model.model.backbone(embeddings, segment_ids=segments)[:, 8:13].square().sum().backward()
    assert (embeddings.grad[:, 8:13] != 0).all() and (embeddings.grad[:, :8] == 0).all()
    assert (embeddings.grad[:, 13:] == 0).all()


def test_the_loss_and_the_bound_see_the_segments(tree, segments):
    model = tiny_model(tree)
    tokens = torch.randint(0, tree.vocab_size, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    noised, times = tree.ancestors[tokens, 1], torch.full((2,), 0.5)
    inputs = {"labels": tokens, "timesteps": times}
    packed = model(noised, **inputs, segment_ids=segments)
    alone = torch.cat([model(document).logits for document in noised.split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(packed.logits, alone, rtol=1e-4, atol=1e-4)
    assert abs(packed.loss - model(noised, **inputs).loss) > 1e-3

    def bound(**masks):
        return model.nelbo(tokens, num_samples=3, generator=torch.Generator().manual_seed(0), **masks).value

    assert bound(segment_ids=torch.zeros_like(tokens)) == pytest.approx(bound(), rel=1e-5)
    assert abs(bound(segment_ids=segments) - bound()) > 1e-3


def test_attention_that_would_ignore_segments_is_refused(tree, tokens, segments):
    model = tiny_model(tree)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2 cannot keep segments or blocks apart"):
        hidden(model, tokens, segment_ids=segments)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_segments_do_not_break_the_graph(tree, tokens, segments, attention):
    model = tiny_model(tree)
    expected = hidden(model, tokens, segment_ids=segments)
    model.set_attn_implementation(attention)
    compiled = torch.compile(model.model, backend="eager", fullgraph=True)
    with torch.no_grad():
        result = compiled(tokens, segment_ids=segments).last_hidden_state
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
