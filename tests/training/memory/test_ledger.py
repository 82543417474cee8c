"""The ledger knows when every storage came and went, and how large it was."""

import torch
from torch._subclasses import FakeTensorMode

from modeling_treediff.training.memory.ledger import BLOCK, Ledger


def test_storages_are_noted_once_in_whole_blocks_with_their_lives():
    with FakeTensorMode(), Ledger() as ledger:
        ledger.begin("forward")
        first = torch.zeros(BLOCK // 4 + 1)  # a number more than a block holds
        view = first.view(-1)[1:]
        second = torch.ones(3)
        del first, view
        third = second + 1
    assert [one.size for one in ledger.allocations] == [2 * BLOCK, BLOCK, BLOCK]
    assert [(one.born, one.died) for one in ledger.allocations] == [(0, 2), (1, None), (3, None)]
    assert {one.scope for one in ledger.allocations} == {"forward"} and ledger.phases == [("forward", 0)]
    del second, third


def test_what_lives_is_filed_and_what_is_gone_is_not():
    with FakeTensorMode(), Ledger() as ledger:
        ledger.begin("forward")
        gone, kept, other = torch.zeros(1), torch.zeros(1), torch.zeros(1)
        del gone
        ledger.file("activations", "forward")
        ledger.file_tensors("gradients", [other])
    assert [one.category for one in ledger.allocations] == ["temporaries", "activations", "gradients"]
    del kept, other


def test_what_dies_after_the_book_is_closed_was_alive():
    with FakeTensorMode(), Ledger() as ledger:
        tensor = torch.zeros(1)
        ledger.close()
        del tensor
    assert ledger.allocations[0].died is None
