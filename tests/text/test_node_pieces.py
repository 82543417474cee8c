import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.text.node_pieces import Piece, decode_nodes, node_pieces

LETTERS = "naïve façade, “quotes” — 東京 🙂 x"  # several bytes, and with byte-level BPE several tokens, a letter


def word_pieces() -> PreTrainedTokenizerFast:
    """A tokenizer that joins pieces by ## and words by spaces, and tidies punctuation."""
    words = ["[UNK]", "the", "state", "##s", "##men", ",", "do", "n't", "."]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_finished_pieces_join_to_the_decoded_text(tokenizer, sample_tree, kind):
    if kind == "words":
        tokenizer, tree = word_pieces(), VocabularyTree.flat(9)
        texts = [torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 1, 3])]
    else:
        tree, generator = sample_tree, torch.Generator().manual_seed(0)
        texts = [torch.tensor(tokenizer(text)["input_ids"]) for text in (LETTERS, " " + LETTERS, "a\n\n b")]
        texts += [torch.randint(0, 400, (30,), generator=generator) for _ in range(20)]  # bytes in any order
    for node_ids in texts:
        pieces = node_pieces(node_ids, tree, tokenizer)
        assert {piece.kind for piece in pieces} == {"token"} and len(pieces) == len(node_ids)
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(node_ids)


def test_a_letter_of_several_tokens_appears_with_the_last(tokenizer, sample_tree):
    node_ids = torch.tensor(tokenizer("🙂")["input_ids"])
    assert len(node_ids) > 1
    *first, last = [piece.text for piece in node_pieces(node_ids, sample_tree, tokenizer)]
    assert last == "🙂" and not any(first)


def decoded(node_ids, tree, tokenizer, level):
    """A reference that shares no code: neighbouring tokens decoded together, clusters by their most frequent token."""
    if level is not None:
        node_ids = tree.coarsen(node_ids, level)
    shown, tokens = [], []
    for node, representative in zip(node_ids.tolist(), tree.representative[node_ids].tolist(), strict=True):
        if node < tree.vocab_size:
            tokens.append(node)
            continue
        shown.append(tokenizer.decode(tokens))
        tokens = []
        text = tokenizer.decode([representative])
        coarse = f"{' ' if text.startswith(' ') else ''}<{text.strip()}>"
        shown.append(" _" if node == tree.root_id else coarse)
    return "".join([*shown, tokenizer.decode(tokens)]).strip()


def test_pieces_join_to_what_a_reference_decodes(tokenizer, sample_tree):
    """Positions at all depths, at every level."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.tensor(tokenizer("We have the honor to submit the estimates of the Treasury.")["input_ids"])
    for level in (None, *range(sample_tree.tree_depth + 1)):
        depth = torch.randint(0, sample_tree.tree_depth + 1, tokens.shape, generator=generator)
        node_ids = sample_tree.ancestors[tokens, depth]
        pieces = node_pieces(node_ids, sample_tree, tokenizer, level=level)
        expected = decoded(node_ids, sample_tree, tokenizer, level)
        assert "".join(piece.text for piece in pieces).strip() == expected
        assert decode_nodes(node_ids, sample_tree, tokenizer, level) == expected


def test_kinds_and_depths(tokenizer, sample_tree):
    token = tokenizer(" government")["input_ids"][0]
    cluster = int(sample_tree.ancestors[token, 1])
    name = tokenizer.decode([int(sample_tree.representative[cluster])])
    node_ids = torch.tensor([token, sample_tree.root_id, cluster, token])
    given, moved = torch.tensor([True, False, False, False]), torch.tensor([False, False, True, False])
    assert node_pieces(node_ids, sample_tree, tokenizer, given, moved) == [
        Piece(" government", "given", 2),
        Piece(" _", "open", 0),
        Piece(f" <{name.strip()}>", "node", 1, moved=True),
        Piece(" government", "token", 2),
    ]
    coarse = [(piece.text, piece.kind) for piece in node_pieces(node_ids, sample_tree, tokenizer, given, level=0)]
    assert coarse == [(" government", "given"), *[(" _", "open")] * 3]


def test_a_cluster_of_white_space_has_a_name(tokenizer):
    tree = random_tree(300, branching=300, depth=2)
    for text, name in (("\n", "<↵>"), ("\t", "<␣>"), (" ", " <␣>")):
        blank = tokenizer(text)["input_ids"][0]
        cluster = torch.tensor([int(tree.ancestors[blank, 1])])
        tree.representative[cluster] = blank
        assert node_pieces(cluster, tree, tokenizer)[0].text == name


def test_drafts_are_read_at_any_level(tokenizer):
    tree = random_tree(len(tokenizer), 91, 2, seed=0)
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
