"""Samplers that `benchmarks.generation.quality` compares: settings of `generate`, and what passes mean."""

from dataclasses import dataclass, field
from typing import Any

from modeling_treediff.generation_config_treediff import ORDERED, UNMASKING

# What makes the texts of a kind of sampler more or less varied.
VARIANTS: dict[str, dict[str, Any]] = {"": {}, ", top-p 0.9": {"top_p": 0.9}}
VARIANTS |= {f", temperature {number:g}": {"temperature": number} for number in (0.8, 0.9, 1.2, 1.4)}
# Probability, margin, and nats (at most) from which on a position does not wait for its turn.
THRESHOLDS = {"confidence": (0.1, 0.3, 0.9), "margin": (0.05, 0.2, 0.8), "entropy": (3.0, 2.0, 0.5)}
REMASKING_SHARE, REMASKING_RATES = 0.25, (1.0, 4.0)


@dataclass(frozen=True)
class Sampler:
    """One way of sampling.

    Attributes:
        settings: what `generate` is given beside the number of passes.
        remasking_share: of the passes, spent on drawing the least probable positions again.
        chooses_passes: how many passes there are follows from the settings and the text: one point, not a curve.

    """

    settings: dict[str, Any] = field(default_factory=dict)
    remasking_share: float = 0.0
    chooses_passes: bool = False

    def arguments(self, num_steps: int) -> dict[str, Any]:
        """Return the arguments of `generate` for `num_steps` passes, remasking included; no top-p of the model."""
        remasking = round(self.remasking_share * num_steps)
        arguments = {"top_p": None} | self.settings | {"num_steps": num_steps}
        return arguments | ({"remasking_steps": remasking} if remasking else {})

    def budgets(self, passes: list[int], depth: int, length: int) -> list[int]:
        """Return the numbers of passes worth measuring: with an order none is left once every position has moved."""
        most = depth * length
        if self.chooses_passes:
            return [most]
        if self.settings.get("unmasking") not in ORDERED:
            return [budget for budget in passes if budget >= depth]
        return [budget for budget in passes if depth <= budget * (1 - self.remasking_share) <= most]


def all_samplers() -> dict[str, Sampler]:
    """Return every sampler by its name."""
    samplers = {
        kind.replace("_", " ") + name: Sampler(_order(kind) | settings, chooses_passes=kind == "first_hitting")
        for kind in UNMASKING
        for name, settings in VARIANTS.items()
    }
    for kind, thresholds in THRESHOLDS.items():
        for threshold in thresholds:
            settings = _order(kind) | {"threshold": threshold}
            samplers[f"{kind}, threshold {threshold}"] = Sampler(settings, chooses_passes=True)
    samplers |= {
        f"{kind}, remasking{name}": Sampler(_order(kind) | settings, remasking_share=REMASKING_SHARE)
        for kind in ("random", "confidence")
        for name, settings in VARIANTS.items()
    }
    samplers |= {
        f"remasking rate {rate:g}{name}": Sampler({"remasking_rate": rate} | settings)
        for rate in REMASKING_RATES
        for name, settings in VARIANTS.items()
    }
    samplers["random, passes by bits"] = Sampler({"steps_per_level": "auto"})
    samplers["random, float32"] = Sampler({"sampling_dtype": "float32"})
    return samplers


def kind_of(name: str) -> str:
    """Return the name of a sampler without the part that says how varied its texts are."""
    return next((name.removesuffix(variant) for variant in VARIANTS if variant and name.endswith(variant)), name)


def _order(kind: str) -> dict[str, Any]:
    return {} if kind == "random" else {"unmasking": kind}
