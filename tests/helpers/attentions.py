"""The kinds of attention that keep blocks and segments apart; flex attention, uncompiled, has no backward on a CPU."""

import torch

ATTENTIONS = ("sdpa", "eager", "flex_attention")
uncompiled = torch.compiler.set_stance("force_eager")
