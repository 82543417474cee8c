"""Likelihood of texts under a diffusion language model: nats per token, perplexity and bits per byte, with errors.

All are bounds (the NELBO), so the model's true perplexity and bits per byte are at most these.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_treediff import NelboEstimate, NelboStep, TreeDiffForDiffusionLM
from modeling_treediff.text.tree_tokenizer import check_tokenizer
from modeling_treediff.text.unknown_tokens import count_unknown, unknown_note

from .intervals import Interval, exponential, finite, normal_interval
from .windows import EvaluationWindows, WindowProtocol, cut_windows, tokenize_texts

MOST_TERMS = 2**28  # of a call of `nelbo`, 8 bytes each
WINDOWS_PER_CALL = 128  # of `nelbo`: enough to stratify corruptions over, few enough to show progress


@dataclass(frozen=True)
class LikelihoodResult:
    """The bound on the likelihood of some texts, and the protocol it was measured by.

    Standard errors and 95 % intervals are of the Monte Carlo estimate of the bound for these very texts: repeating the
    measurement with other seeds stays inside. They say nothing about other texts or other trainings. With few
    corruptions of many windows they err high, because windows differ in their likelihood; see `NelboEstimate`. Too few
    corruptions to tell have an infinite error.

    Attributes:
        nelbo: nats per counted token.
        standard_error: of the nelbo, in nats per token.
        level_losses: (D,) share of each level of the tree in the nelbo, coarsest first.
        num_texts: texts measured.
        num_tokens: tokens counted, EOS included where the protocol has it.
        num_unknown: tokens among them that stand for text outside the vocabulary; with any, or with a tokenizer that
            changes its text otherwise, bits per byte are not comparable to other tokenizers'.
        num_bytes: bytes of the texts in UTF-8; what separates texts has none.
        num_windows: windows measured.
        protocol: how the texts were cut into windows.
        num_samples: corruptions per window.
        seed: of the corruptions.

    """

    nelbo: float
    standard_error: float
    level_losses: tuple[float, ...]
    num_texts: int
    num_tokens: int
    num_unknown: int
    num_bytes: int
    num_windows: int
    protocol: WindowProtocol
    num_samples: int
    seed: int

    @property
    def confidence_interval(self) -> Interval:
        """95 % interval of the nelbo, nats per token."""
        return normal_interval(self.nelbo, self.standard_error)

    @property
    def perplexity(self) -> float:
        """exp(nelbo): an upper bound on the perplexity per token."""
        return exponential(self.nelbo)

    @property
    def perplexity_standard_error(self) -> float:
        """To first order: perplexity x standard error of the nelbo."""
        return self.perplexity * self.standard_error

    @property
    def perplexity_interval(self) -> Interval:
        """The ends of the nelbo's 95 % interval as perplexities."""
        low, high = self.confidence_interval
        return exponential(low), exponential(high)

    @property
    def bits_per_byte(self) -> float:
        """All counted nats, those of EOS included, / ln 2 / bytes of the texts: comparable across tokenizers."""
        return self.nelbo * self._bits_per_byte_of_a_nat

    @property
    def bits_per_byte_standard_error(self) -> float:
        """Standard error of the bits per byte."""
        return self.standard_error * self._bits_per_byte_of_a_nat

    @property
    def bits_per_byte_interval(self) -> Interval:
        """95 % interval of the bits per byte."""
        return normal_interval(self.bits_per_byte, self.bits_per_byte_standard_error)

    @property
    def _bits_per_byte_of_a_nat(self) -> float:
        """Bits per byte that one nat per token makes."""
        return self.num_tokens / (math.log(2) * self.num_bytes)

    @property
    def warning(self) -> str:
        """What keeps the figures from being compared, in a sentence: unknown tokens; "" if nothing does."""
        return unknown_note(self.num_unknown, self.num_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures under their names, ready for JSON: what is not finite, or no warning, becomes None."""
        facts = asdict(self) | {"level_losses": list(self.level_losses)}
        facts["protocol"]["description"] = str(self.protocol)
        for name in ("perplexity", "perplexity_standard_error", "bits_per_byte", "bits_per_byte_standard_error"):
            facts[name] = getattr(self, name)
        facts["warning"] = self.warning or None
        for name in ("confidence_interval", "perplexity_interval", "bits_per_byte_interval"):
            facts[name] = [finite(end) for end in getattr(self, name)]
        return {name: finite(value) for name, value in facts.items()}


def evaluate_texts(
    model: TreeDiffForDiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    protocol: WindowProtocol | None = None,
    *,
    num_samples: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> LikelihoodResult:
    """Measure the bound on the likelihood of texts, on the model's device.

    Args:
        model: the model; of any tree, the flat one included.
        tokenizer: the one its tree was built for.
        texts: documents, none of them empty.
        protocol: how they become windows; by default `WindowProtocol.for_model`.
        num_samples: corruptions per window; errors fall with the square root. By default each window gets one for each
            level of the tree; from two for each on, differences between windows no longer widen the interval.
        batch_size: windows per forward pass.
        seed: of all corruptions; with the same batch size and device it gives the same result.
        progress: show a bar.

    Raises:
        ValueError: no text or an empty one, a tokenizer of another tree, windows longer than the model's positions, or
            numbers below 1.

    """
    num_samples = model.config.tree_depth if num_samples is None else num_samples
    if min(num_samples, batch_size) < 1:
        raise ValueError(f"num_samples and batch_size must be at least 1, got {num_samples} and {batch_size}.")
    protocol = protocol or WindowProtocol.for_model(model, tokenizer)
    limit = model.config.max_position_embeddings
    if protocol.sequence_length > limit:
        raise ValueError(f"Windows of {protocol.sequence_length} tokens are longer than the model's {limit} positions.")
    check_tokenizer(model.tree, tokenizer)
    token_ids = tokenize_texts(texts, tokenizer, protocol.eos)
    windows = cut_windows(token_ids, protocol)
    settings = {"num_samples": num_samples, "batch_size": batch_size}
    value, error, levels = _pool(estimate_windows(model, windows, settings, seed, progress))
    return LikelihoodResult(
        nelbo=value,
        standard_error=error,
        level_losses=levels,
        num_texts=len(texts),
        num_tokens=len(token_ids),
        num_unknown=count_unknown(token_ids, tokenizer),
        num_bytes=sum(len(text.encode()) for text in texts),
        num_windows=len(windows),
        protocol=protocol,
        num_samples=num_samples,
        seed=seed,
    )


def estimate_windows(
    model: TreeDiffForDiffusionLM,
    windows: EvaluationWindows,
    settings: dict[str, Any],
    seed: int,
    progress: bool,
    callback: Callable[[NelboStep], None] | None = None,
) -> list[NelboEstimate]:
    """Measure the windows in parts of nearly equal size: a part of a single window would have no error.

    Args:
        model: the model.
        windows: what to measure.
        settings: of `nelbo`: num_samples and batch_size.
        seed: of all corruptions.
        progress: show a bar.
        callback: as of `nelbo`; its sequences are numbered through all windows.

    Raises:
        ValueError: more corruptions of a part than can be kept at once.

    """
    generator = torch.Generator(model.device).manual_seed(seed)
    parts = math.ceil(len(windows) / WINDOWS_PER_CALL)
    kept = math.ceil(len(windows) / parts) * windows.token_ids.shape[1]
    if kept * settings["num_samples"] > MOST_TERMS:
        got, most = settings["num_samples"], MOST_TERMS // kept
        raise ValueError(
            f"{got} samples of {kept} tokens at a time need {kept * got * 8:.2g} bytes: take {most} at most."
        )
    inputs = (windows.token_ids, windows.attention_mask, windows.fixed_mask)
    estimates: list[NelboEstimate] = []
    start = 0

    def numbered(step: NelboStep) -> None:
        if callback is not None:
            callback(replace(step, sequence=step.sequence + start))

    with tqdm(total=len(windows), desc="evaluate", unit="window", disable=not progress) as bar:
        for tokens, attention, fixed in zip(*(tensor.tensor_split(parts) for tensor in inputs), strict=True):
            estimates.append(model.nelbo(tokens, attention, fixed, **settings, generator=generator, callback=numbered))
            start += len(tokens)
            bar.update(len(tokens))
    return estimates


def _pool(estimates: list[NelboEstimate]) -> tuple[float, float, tuple[float, ...]]:
    """Return value, standard error and level losses of all tokens from independent estimates of disjoint parts."""
    tokens = np.array([estimate.num_tokens for estimate in estimates])
    share = tokens / tokens.sum()
    value = share @ [estimate.value for estimate in estimates]
    error = np.linalg.norm(share * [estimate.standard_error for estimate in estimates])
    levels = share @ np.array([estimate.level_losses for estimate in estimates])
    return float(value), float(error), tuple(levels.tolist())
