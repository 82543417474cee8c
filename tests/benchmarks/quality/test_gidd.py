"""GIDD's noise and bound against the definition, enumeration and MDLM's."""

import itertools
import math

import pytest
import torch
from helpers.models import tiny_model
from torch.distributions import Categorical, kl_divergence

from benchmarks.quality import gidd
from modeling_treediff import VocabularyTree

V, T = 3, 2
NOISE = gidd.HybridNoise(V, 0.3)


def dense(noise, times):
    """(n,) times -> (n, V, V + 1): what is shown for each token, the mask last; by the paper's equations."""
    c = 2 * noise.share / (1 - noise.share) * (times * (1 - times)).sqrt()
    alpha, shown = (1 - times) / (1 + c), torch.zeros(len(times), noise.vocab_size + 1, dtype=times.dtype)
    shown[:, :-1] = (c / (1 + c) / noise.vocab_size)[:, None]
    shown[:, -1] = times / (1 + c)
    kept = torch.eye(noise.vocab_size, noise.vocab_size + 1, dtype=times.dtype)
    return alpha[:, None, None] * kept + shown[:, None]


def exact_bound(noise, log_probs_of, texts_probability, points=400):
    """The bound in nats per text: a sum over all texts and drafts, a quadrature that is finest at both ends of time."""
    place = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    angles, slope = math.pi / 2 * place.square() * (3 - 2 * place), math.pi * 3 * place * (1 - place)
    times, total = angles.sin().square(), 0.0
    slope = slope * 2 * angles.sin() * angles.cos()
    q = dense(noise, times)
    for draft in itertools.product(range(V + 1), repeat=T):
        shown = torch.tensor([draft]).expand(points, T)
        log_probs = log_probs_of(shown, q)
        for text, p in texts_probability.items():
            tokens = torch.tensor([text]).expand(points, T)
            terms = noise.divergences(log_probs, tokens, shown, times) * noise.bound_weights(tokens, shown, times)
            probability = p * math.prod(q[:, x, z] for x, z in zip(text, draft, strict=True))
            total += float((probability * terms.sum(dim=1) * slope).mean())
    return total


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_bound_of_the_best_network_is_the_entropy_of_the_data(share):
    noise = gidd.HybridNoise(V, share)
    torch.manual_seed(0)
    texts = list(itertools.product(range(V), repeat=T))
    data = dict(zip(texts, torch.rand(len(texts), dtype=torch.float64).softmax(0).tolist(), strict=True))
    table = torch.tensor(list(data.values()), dtype=torch.float64).view(V, V)

    def given_the_others(shown, q):
        """Not given what is shown at the position itself, which the divergences take account of."""
        first, second = q[:, :, shown[0, 0]], q[:, :, shown[0, 1]]
        both = torch.stack([torch.einsum("xy,ny->nx", table, second), torch.einsum("xy,nx->ny", table, first)], dim=1)
        return both.log().log_softmax(dim=-1)

    entropy = -sum(p * math.log(p) for p in data.values())
    assert exact_bound(noise, given_the_others, data) == pytest.approx(entropy, rel=1e-4)


def test_a_windows_bound_is_estimated_without_bias():
    """Of an untrained model; the mean of 20,000 estimates, within four standard errors."""
    torch.manual_seed(0)
    model = tiny_model(VocabularyTree.flat(V), max_position_embeddings=T).eval()
    noise, text = gidd.HybridNoise(V, 0.1), (2, 0)
    with torch.no_grad():
        exact = exact_bound(noise, lambda shown, q: gidd.log_probs_of(model, shown).double(), {text: 1.0})
    bounds = gidd.window_bounds(model, noise, torch.tensor([text]).expand(20_000, T), samples=1) * T
    error = float(bounds.std() / math.sqrt(len(bounds)))
    assert abs(float(bounds.mean()) - exact) < 4 * error < 0.2


def test_divergences_are_those_of_the_distributions():
    torch.manual_seed(0)
    times = torch.rand(4, dtype=torch.float64)
    tokens, shown = torch.randint(V, (4, T)), torch.randint(V + 1, (4, T))
    log_probs = torch.randn(4, T, V, dtype=torch.float64).log_softmax(-1)
    q = dense(NOISE, times)
    meant, guessed = q[torch.arange(4)[:, None], tokens], log_probs.exp() @ q
    at_shown = [part.gather(-1, shown[..., None])[..., 0] for part in (meant, guessed)]
    ratio = at_shown[0] / at_shown[1]
    expected = kl_divergence(Categorical(meant), Categorical(guessed)) + ratio - ratio.log() - 1
    torch.testing.assert_close(NOISE.divergences(log_probs, tokens, shown, times), expected)


def test_weights_are_the_rates_at_which_the_forward_process_comes_to_what_is_shown():
    """That is (beta pi)' - (alpha' / alpha) beta pi over q, by automatic differentiation."""
    times = torch.tensor([0.01, 0.3, 0.5, 0.9], dtype=torch.float64)

    def parts(time):
        q = dense(NOISE, time[None])[0]
        alpha = q[0, 0] - q[1, 0]
        return torch.stack([alpha, q[1, 0], q[0, -1]])

    for time in times:
        (alpha, wrong, mask), slope = parts(time), torch.autograd.functional.jacobian(parts, time)
        rates = slope[1:] - slope[0] / alpha * torch.stack([wrong, mask])
        expected = torch.stack([rates[0] / (alpha + wrong), rates[0] / wrong, rates[1] / mask])
        tokens, shown = torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0, 1, V]])
        torch.testing.assert_close(NOISE.bound_weights(tokens, shown, time[None])[0], expected)


def test_without_wrong_tokens_it_is_mdlm():
    """Weight times divergence of a mask is -log p / t, and 0 of what stands as it is."""
    noise = gidd.HybridNoise(V, 1e-12)
    times = torch.tensor([0.2, 0.7], dtype=torch.float64)
    tokens, shown = torch.tensor([[0, 1], [2, 1]]), torch.tensor([[V, 1], [V, V]])
    log_probs = torch.randn(2, T, V, dtype=torch.float64).log_softmax(-1)
    terms = noise.divergences(log_probs, tokens, shown, times) * noise.bound_weights(tokens, shown, times)
    expected = -log_probs.gather(-1, tokens[..., None])[..., 0] / times[:, None] * (shown == V)
    torch.testing.assert_close(terms, expected, atol=1e-9, rtol=1e-6)


def test_what_is_shown_has_the_probabilities_of_the_noise():
    """Frequencies of 100,000 draws, within four standard deviations."""
    tokens, time = torch.ones(1, 100_000, dtype=torch.long), torch.tensor([0.4], dtype=torch.float64)
    shown = NOISE.corrupt(tokens, time, torch.Generator().manual_seed(0))
    expected = dense(NOISE, time)[0, 1]
    error = (expected * (1 - expected) / tokens.numel()).sqrt()
    assert ((shown.flatten().bincount(minlength=V + 1) / tokens.numel() - expected).abs() < 4 * error).all()
