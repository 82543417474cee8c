"""Operations of lean blocks under autocast."""

import torch

from modeling_treediff.training.memory.lean_operations import as_autocast


def test_as_autocast_follows_the_context():
    ones = torch.ones(2)
    assert as_autocast(ones) is ones
    with torch.autocast("cpu", torch.bfloat16):
        assert as_autocast(ones).dtype == torch.bfloat16
