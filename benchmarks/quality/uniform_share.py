"""A uniform share of every choice: p = (1 - e) softmax + e / children, so that no child is ever closed off.

The share is that of a mixture, for a flat tree of MDLM's probabilities with uniform ones over the vocabulary. The bound
is exact for the mixture, in training and in measuring.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.quality.record import difference, estimate
from benchmarks.quality.training import measured_text
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.node_layers_treediff import mix_uniform
from modeling_treediff.training.memory import lean_blocks

SHARES = (0.0, 0.001, 0.01, 0.05)  # in measuring

Record = dict[str, Any]


def sharing(share: float) -> AbstractContextManager[object]:
    """Return the context in which training has this uniform share of every choice, as `nelbo` has it by the config."""
    own = lean_blocks._lean_loss

    def of_mixture(model: TreeDiffForDiffusionLM, *arguments: Any) -> torch.Tensor:
        input_ids, slots = arguments[-2:]
        nats, counted = own(model, *arguments), (slots >= 0) & (input_ids >= model.config.vocab_size)
        log_n = mix_uniform(-nats[counted], input_ids[counted], model.tree, share)
        return nats.masked_scatter(counted, -log_n)

    return patch.object(lean_blocks, "_lean_loss", of_mixture) if share else nullcontext()


def measured_shares(
    model: TreeDiffForDiffusionLM, windows: Mapping[str, torch.Tensor], samples: int, shares: Iterable[float]
) -> list[Record]:
    """Return nats per token of every window of each text, for each of the shares."""
    rows = []
    for model.config.uniform_share in shares:
        texts = {text: measured_text(model, some, samples) for text, some in windows.items()}
        rows.append({"share": model.config.uniform_share, "texts": texts})
    return rows


def summarised_shares(record: Record, flat: Record) -> list[Record]:
    """Return a run's shares as the record keeps them: figures in place of windows, with differences to MDLM's."""
    rows = []
    for own, other in zip(record["shares"], flat["shares"], strict=True):
        texts = {
            text: estimate(figures["windows"])
            | {"level_losses": figures["level_losses"], "to_mdlm": difference(figures, other["texts"][text])}
            for text, figures in own["texts"].items()
        }
        rows.append({"share": own["share"], "texts": texts})
    return rows
