"""The kinds of attention that keep blocks and segments apart; flex attention, uncompiled, has no backward on a CPU."""

from collections.abc import Callable
from typing import Any

import torch

ATTENTIONS = ("sdpa", "eager", "flex_attention")


def uncompiled(test: Callable[..., Any]) -> Callable[..., Any]:
    """Let a test compile nothing."""
    return torch.compiler.set_stance("force_eager")(test)
