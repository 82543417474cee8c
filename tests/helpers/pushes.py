"""What pushes to a repository left there."""

import torch

REPO = "someone/a-model"
NODES = torch.arange(100, 112)[None]


def assert_same(model, other):
    """Equal logits bit by bit, equal generation config, equal tree with its provenance."""
    with torch.no_grad():
        assert torch.equal(other(NODES).logits, model(NODES).logits)
    assert other.generation_config.to_dict() == model.generation_config.to_dict()
    assert other.tree.sha256 == model.tree.sha256 and other.tree.metadata == model.tree.metadata


def commits(hub):
    return [request for request in hub.requests if "/commit/" in request.path]
