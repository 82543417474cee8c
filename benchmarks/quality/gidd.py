"""GIDD (arXiv 2503.04482): masks and wrong tokens on the flat vocabulary, with MDLM's network; gamma is 1.

At time t a token x is itself, the mask, or any token alike, with probabilities (1 - t) / C, t / C and c / C, where
c = B sqrt(t (1 - t)), C = 1 + c and B = 2 p_u / (1 - p_u): in the middle of the time a share p_u is drawn from all
tokens. The network says of every position, also of what is shown as a token, which token x is meant: at best, what the
other positions tell of it. The bound weighs a divergence of each position, `divergences`, by `bound_weights`.

Shape legend: B sequences, T positions, V tokens, W windows.
"""

from dataclasses import dataclass

import torch

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.diffusion_process import uniform

FROM_ENDS = 1e-4  # times of training are at least so far from 0 and 1
NEAREST = 1e-9  # times of measuring
WINDOWS_PER_PASS = 32


@dataclass(frozen=True)
class HybridNoise:
    """The forward process.

    Attributes:
        vocab_size: V.
        share: p_u, above 0 and below 1.

    """

    vocab_size: int
    share: float

    def probabilities(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the probabilities at times in (0, 1) that a token is kept, is the mask, is drawn from all tokens."""
        drawn = self._drawn(times)
        return tuple(part / (1 + drawn) for part in (1 - times, times, drawn))  # type: ignore[return-value]

    def _drawn(self, times: torch.Tensor) -> torch.Tensor:
        return 2 * self.share / (1 - self.share) * (times * (1 - times)).sqrt()

    def corrupt(self, tokens: torch.Tensor, times: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(B, T) tokens, (B,) times -> (B, T) tokens or V, the mask."""
        kept_B1, mask_B1, _ = (part[:, None] for part in self.probabilities(times))
        number_BT = uniform(tokens.shape, generator, tokens.device)
        any_BT = torch.randint(self.vocab_size, tokens.shape, generator=generator, device=tokens.device)
        shown_BT = torch.where(number_BT < kept_B1 + mask_B1, self.vocab_size, any_BT)
        return torch.where(number_BT < kept_B1, tokens, shown_BT)

    def divergences(
        self, log_probs: torch.Tensor, tokens: torch.Tensor, shown: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """Return (B, T): KL(q(. | x) || q(. | network)) plus the Itakura-Saito divergence at what is shown.

        Args:
            log_probs: (B, T, V) log-probabilities of the token that is meant.
            tokens: (B, T) that are meant.
            shown: (B, T) of `corrupt`.
            times: (B,).

        """
        kept_B1, _, drawn_B1 = (part[:, None].to(log_probs) for part in self.probabilities(times))
        wrong_B1 = drawn_B1 / self.vocab_size
        log_BTV = torch.logaddexp(log_probs + kept_B1[..., None].log(), wrong_B1[..., None].log())
        right_B1 = kept_B1 + wrong_B1
        kl_BT = wrong_B1 * (self.vocab_size * wrong_B1.log() - log_BTV.sum(dim=-1))
        kl_BT = kl_BT + right_B1 * right_B1.log() - wrong_B1 * wrong_B1.log()
        kl_BT = kl_BT - kept_B1 * log_BTV.gather(-1, tokens[..., None])[..., 0]
        is_token_BT = shown < self.vocab_size
        own_BT = torch.where(shown == tokens, right_B1, wrong_B1).log()
        ratio_BT = own_BT - log_BTV.gather(-1, shown.clamp(max=self.vocab_size - 1)[..., None])[..., 0]
        return kl_BT + torch.where(is_token_BT, ratio_BT.exp() - ratio_BT - 1, 0)

    def bound_weights(self, tokens: torch.Tensor, shown: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return (B, T): the weight of each position's divergence in the bound, for times (B,) drawn evenly."""
        times_B1 = times[:, None]
        left_B1, drawn_B1 = 1 - times_B1, self._drawn(times_B1) / self.vocab_size
        right_BT = drawn_B1 / (2 * times_B1 * left_B1 * (left_B1 + drawn_B1))
        wrong_B1 = 1 / (2 * times_B1 * left_B1)
        return torch.where(shown == self.vocab_size, 2 * wrong_B1, torch.where(shown == tokens, right_BT, wrong_B1))

    def training_weights(self, tokens: torch.Tensor, shown: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return (B, T): the paper's weights of training ("dynamic"), about those of the bound, without their poles.

        Of a right token the official code has a factor that hardly depends on time in place of the paper's; over a
        vocabulary of thousands neither counts.
        """
        odds_B1 = (times / (1 - times))[:, None].sqrt()
        right_B1 = 2 * self.share / (1 - self.share) / self.vocab_size * odds_B1
        return torch.where(shown == self.vocab_size, 2.0, torch.where(shown == tokens, right_B1, 1.0))


def log_probs_of(model: TreeDiffForDiffusionLM, shown: torch.Tensor) -> torch.Tensor:
    """(B, T) tokens or the mask -> (B, T, V) log-probabilities of the tokens that are meant, from a flat model."""
    hidden_BTE = model.model(shown).last_hidden_state
    mask_BT = torch.full_like(shown, model.config.vocab_size)
    return model.head(hidden_BTE, mask_BT, model.tree).float().log_softmax(dim=-1)


def training_loss(
    model: TreeDiffForDiffusionLM, noise: HybridNoise, tokens: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Return the loss of a batch (B, T), a number: times have low discrepancy."""
    start = uniform((1,), generator, tokens.device)
    times = (torch.arange(len(tokens), device=tokens.device) / len(tokens) + start).frac()
    times = FROM_ENDS + (1 - 2 * FROM_ENDS) * times
    shown = noise.corrupt(tokens, times, generator)
    weights = noise.training_weights(tokens, shown, times).float()
    return (weights * noise.divergences(log_probs_of(model, shown), tokens, shown, times)).mean()


@torch.no_grad()
def window_bounds(
    model: TreeDiffForDiffusionLM, noise: HybridNoise, windows: torch.Tensor, samples: int, seed: int = 0
) -> torch.Tensor:
    """Return (W,) float64: an estimate of the bound of each window (W, T), in nats per token.

    The times of a window's samples are stratified, with the density t^(-2/3) / 3: weights are large at early ones, and
    with an even density the variance would be infinite.
    """
    training, device = model.training, model.device
    model.eval()
    generator = torch.Generator(device).manual_seed(seed)
    total = []
    for part in windows.split(WINDOWS_PER_PASS):
        tokens = part.to(device)
        bounds = torch.zeros(len(tokens), dtype=torch.float64, device=device)
        for sample in range(samples):
            root = (sample + uniform((len(tokens),), generator, device)) / samples
            times = (root**3).clamp(NEAREST, 1 - NEAREST)
            shown = noise.corrupt(tokens, times, generator)
            terms = noise.divergences(log_probs_of(model, shown).double(), tokens, shown, times)
            terms = terms * noise.bound_weights(tokens, shown, times)
            bounds += terms.mean(dim=1) * 3 * root**2 / samples
        total.append(bounds)
    model.train(training)
    return torch.cat(total).cpu()
