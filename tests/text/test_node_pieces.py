import pytest
import torch

from modeling_treediff import VocabularyTree
from modeling_treediff.text.node_pieces import decode_nodes


def test_drafts_are_read_at_any_level(tokenizer):
    tree = VocabularyTree.random(len(tokenizer), 91, 2, seed=0)
    ids = torch.tensor(tokenizer("The state of the Union").input_ids)
    assert decode_nodes(ids, tree, tokenizer) == decode_nodes(ids, tree, tokenizer, level=2) == "The state of the Union"
    assert decode_nodes(ids, tree, tokenizer, level=0) == " ".join("_" * len(ids))
    coarse = decode_nodes(ids[None], tree, tokenizer, level=1)
    clusters = decode_nodes(tree.ancestors[ids, 1], tree, tokenizer)
    assert coarse == [clusters] and clusters.count("<") == len(ids)
    mixed = torch.cat([ids[:2], tree.ancestors[ids[2:3], 1], torch.tensor([tree.root_id])])
    assert decode_nodes(mixed, tree, tokenizer).startswith("The state") and mixed.numel() == 4
    with pytest.raises(ValueError, match=r"levels 0 \(root\) to 2"):
        decode_nodes(ids, tree, tokenizer, level=3)
