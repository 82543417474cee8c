"""Constraints on tokens: what is excluded does not occur, and the rest is drawn as the model has it, given that."""

import itertools

import pytest
import torch
from helpers.bayes_optimal import TREES, bayes_optimal, chi_square, random_joint
from helpers.models import SEQUENTIAL, generate, generate_recorded, tiny_model
from scipy.stats import chi2
from transformers import GenerationConfig

from modeling_treediff.building.balanced import random_tree
from modeling_treediff.generation_config_treediff import UNMASKING


@pytest.mark.parametrize("unmasking", UNMASKING)
def test_excluded_tokens_and_words_do_not_occur(model, unmasking):
    settings = {"unmasking": unmasking, "num_steps": 9, "num_return_sequences": 50, "max_new_tokens": 12}
    plain = generate_recorded(model, **settings).sequences
    pair = plain[0, 3:5].tolist()
    words = [pair, [int(plain[0, 7])], plain[1, :3].tolist()]
    result = generate_recorded(model, bad_words_ids=words, remasking_steps=3, **settings | {"num_steps": 12})
    for text in result.sequences.tolist():
        for word in words:
            assert all(text[place : place + len(word)] != word for place in range(13 - len(word)))
    allowed = [3, 17, 44, 90]
    texts = generate_recorded(model, allowed_tokens=allowed, suppress_tokens=[17], **settings).sequences
    assert set(texts.unique().tolist()) <= {3, 44, 90} and len(texts.unique()) == 3
    only_words = generate_recorded(
        model, allowed_tokens=[3, 44], bad_words_ids=[[3, 3], [44, 44]], **settings
    ).sequences
    assert all(set(pair) == {3, 44} for text in only_words.tolist() for pair in itertools.pairwise(text))


def test_constraints_that_exclude_nothing_change_nothing(model):
    plain = generate_recorded(model)
    for nothing in ({"suppress_tokens": []}, {"allowed_tokens": list(range(100))}, {"bad_words_ids": []}):
        result = generate_recorded(model, **nothing)
        assert torch.equal(result.sequences, plain.sequences) and result.num_forward_passes == plain.num_forward_passes
    processed = generate_recorded(
        model, logits_processor=lambda ids, scores: scores + 1.5
    ).sequences  # the same for all tokens
    assert torch.equal(processed, plain.sequences)


def test_processors_see_the_drafts_and_weigh_each_text_by_itself(model):
    def forbid(node_ids, scores):
        assert node_ids.shape == (2, 8) and scores.shape == (2, 100) or len(node_ids) == 1
        scores[0, 50:] = -torch.inf
        scores[1:, :50] = -torch.inf
        return scores

    texts = generate(model, max_new_tokens=8, num_return_sequences=2, num_steps=6, logits_processor=forbid)
    assert texts[0].max() < 50 <= texts[1].min()


def test_coarse_constraints_hold_under_everything(model):
    tree = model.tree
    start = torch.stack([tree.ancestors[torch.arange(10), 1], tree.ancestors[torch.arange(40, 50), 2]])
    result = generate_recorded(
        model, input_ids=start, num_steps=12, remasking_steps=6, remasking_levels=3, remasking_fraction=1.0,
        unmasking="entropy", suppress_tokens=[0, 41], max_new_tokens=5, block_length=2,
    )  # fmt: skip
    for nodes in result.history:
        assert torch.equal(tree.ancestors[tree.representative[nodes[:, :10]], tree.depth[start]], start)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allowed_tokens": []}, "leave no token at all"),
        ({"allowed_tokens": [3], "suppress_tokens": [3]}, "leave no token at all"),
        ({"suppress_tokens": [100]}, r"suppress_tokens has 100: the vocabulary has tokens 0..99"),
        ({"bad_words_ids": [[1, 200]]}, "bad_words_ids has 200"),
        ({"bad_words_ids": [[]]}, "none empty"),
        ({"allowed_tokens": "no"}, r"must be list\[int\]"),
        ({"allowed_tokens": [5], "bad_words_ids": [[5, 5]]}, "cannot be filled"),
        ({"logits_processor": lambda ids, scores: scores / 0.7}, "may only add"),
        ({"logits_processor": lambda ids, scores: scores - torch.inf}, "no token"),
        ({"block_length": 17}, "block_length=17 leaves no room in 16 positions"),
        ({"block_length": 0}, "block_length must be a positive"),
        ({"sampling_dtype": "bfloat16"}, "Unknown sampling_dtype"),
        ({"num_steps": None}, "num_steps must be int, got None"),
        ({"num_return_sequences": None}, "num_return_sequences must be"),
        ({"max_new_tokens": True}, "max_new_tokens must be"),
        ({"top_p": "0.9"}, r"top_p must be float \| None, got '0.9'"),
        ({"eos_token_id": []}, "eos_token_id is an empty list"),
        ({"eos_token_id": "x"}, "eos_token_id must be int"),
        ({"pad_token_id": -1}, "pad_token_id must not be negative"),
        ({"pad_token_id": 100}, r"pad_token_id is 100: the vocabulary has tokens 0..99"),
        ({"input_ids": [[1, 2]]}, "input_ids must be a tensor, got list"),
        ({"input_ids": torch.zeros(1, 2)}, "must be whole numbers .* got torch.float32"),
        ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, "at least one text"),
        ({"attention_mask": "left"}, "attention_mask must be a tensor, got str"),
        ({"generation_config": {"num_steps": 3}}, "must be a TreeDiffGenerationConfig, got dict"),
        ({"generation_config": {}}, "must be a TreeDiffGenerationConfig, got dict"),
        ({"generation_config": GenerationConfig()}, "must be a TreeDiffGenerationConfig, got GenerationConfig"),
        ({"temperature": [1.0, -1.0, 1.0]}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be float"),
        ({"input_ids": torch.zeros(1, 20, dtype=torch.long)}, "20 given positions leave no room in the model's 16"),
        (
            {"input_ids": torch.full((1, 30), 100), "block_length": 4, "max_new_tokens": 4},
            "An open position lies over",
        ),
    ],
)
def test_impossible_constraints_say_what_is_wrong(model, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **settings)


def test_a_closed_coarse_constraint_says_where(model):
    node = int(model.tree.ancestors[5, 2])
    below = (model.tree.ancestors[:, 2] == node).nonzero()[:, 0].tolist()
    with pytest.raises(ValueError, match=f"tokens below node {node}, given for text 0"):
        generate(model, torch.tensor([[1, node]]), suppress_tokens=below)


@pytest.mark.parametrize("exact", [False, True])
def test_processors_cannot_write_what_they_exclude_and_leave_a_word_no_way_out(model, exact):
    """Bad words are compiled before a processor is called; what both leave may be nothing, and is then refused."""

    def only(node_ids, scores):
        keep = torch.zeros_like(scores, dtype=torch.bool).index_fill(1, torch.tensor([5, 6]), True)
        return scores.masked_fill(~keep, -torch.inf)

    settings = {"max_new_tokens": 6, "num_steps": 6, "exact": exact}
    for do_sample in (True, False):
        with pytest.raises(ValueError, match="constraints together leave .* positions no token"):
            generate(model, logits_processor=[only], bad_words_ids=[[5, 5], [6, 6]], do_sample=do_sample, **settings)
        texts = generate(model, logits_processor=[only], bad_words_ids=[[5, 7]], do_sample=do_sample, **settings)
        assert set(texts.unique().tolist()) <= {5, 6}


def test_processors_may_answer_in_single_precision(model):
    def less(node_ids, scores):
        return scores.float() - torch.arange(100.0)

    assert generate(model, max_new_tokens=4, num_steps=3, logits_processor=less).shape == (1, 4)


def test_what_a_processor_is_given_is_its_own(model):
    def spoil(node_ids, scores):
        node_ids.zero_()
        return scores

    text = generate(model, torch.tensor([[1, 100, 3]]), num_steps=3, logits_processor=spoil)
    assert text[0, 0] == 1 and text[0, 2] == 3


def test_words_are_not_written_across_the_borders_of_blocks(model):
    settings = {"max_new_tokens": 60, "block_length": 6, "num_steps": 3, "num_return_sequences": 30}
    texts = generate_recorded(model, allowed_tokens=[3, 44], bad_words_ids=[[44, 3]], **settings).sequences
    assert not ((texts[:, :-1] == 44) & (texts[:, 1:] == 3)).any() and len(texts.unique()) == 2
    # Of two tokens only 3 3 3 ... is left: all blocks must know from the first on.
    words = [[44, 3], [44, 44]]
    texts = generate_recorded(model, allowed_tokens=[3, 44], bad_words_ids=words, **settings).sequences
    assert (texts[:, :-1] == 3).all()
    seen = []
    with pytest.raises(ValueError, match="cannot be filled"):
        generate_recorded(model, allowed_tokens=[44], bad_words_ids=[[44] * 40], callback=seen.append, **settings)
    assert len(seen) == 1  # before the first pass


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("process", [SEQUENTIAL, {"schedule": "binomial"}], ids=["sequential", "binomial"])
def test_exact_give_the_conditional_beside_any_text(tree, process):
    """One open position whose distribution depends on the token beside it."""
    joint = random_joint(5, 5, seed=2)
    model = bayes_optimal(tree, joint, **process)
    for allowed in ([0, 3], [0, 3, 4]):
        conditional = torch.zeros(5, dtype=torch.float64)
        conditional[allowed] = joint[3, allowed] / joint[3, allowed].sum()
        texts = generate(model, 
            torch.tensor([[3, 5]]), allowed_tokens=allowed, num_steps=3, num_return_sequences=4_000,
            exact=True, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert chi_square(texts[:, 1:], conditional) < chi2.ppf(0.999, len(allowed) - 1)


def test_the_text_beside_counts():
    """What a child's tokens weigh on its own is another thing: without exact the bound is far exceeded."""
    joint = random_joint(5, 5, seed=2)
    conditional = torch.zeros(5, dtype=torch.float64)
    conditional[[0, 3]] = joint[3, [0, 3]] / joint[3, [0, 3]].sum()
    texts = generate(
        bayes_optimal(TREES["uneven"], joint),
        torch.tensor([[3, 5]]), allowed_tokens=[0, 3], num_steps=3, num_return_sequences=4_000,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert chi_square(texts[:, 1:], conditional) > 10 * chi2.ppf(0.999, 1)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("exact", [False, True])
def test_bad_words_take_their_share_from_the_clusters_above(tree, exact):
    """A cluster that loses a token to the text beside it loses its weight: p(x | x != 0), not cluster by cluster."""
    marginal = torch.tensor([0.3, 0.1, 0.08, 0.42, 0.1], dtype=torch.float64)
    joint = random_joint(5, 5) if exact else marginal[:, None] * marginal
    conditional = joint[0].clone()
    conditional[[0, 3]] = 0
    texts = generate(
        bayes_optimal(tree, joint),
        torch.tensor([[0, 5]]), bad_words_ids=[[0, 0], [0, 3]], num_steps=3, num_return_sequences=4_000,
        exact=exact, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert chi_square(texts[:, 1:], conditional / conditional.sum()) < chi2.ppf(0.999, 2)


@pytest.mark.parametrize("exact", [False, True])
def test_passes_for_constraints_are_counted_and_told(model, exact):
    calls, seen = [], []
    hook = model.model.register_forward_pre_hook(lambda *args: calls.append(1))
    settings = {"suppress_tokens": [3, 50], "bad_words_ids": [[1, 2]], "max_new_tokens": 5, "num_steps": 6}
    result = generate_recorded(model, callback=seen.append, exact=exact, **settings)
    hook.remove()
    assert result.num_forward_passes == len(calls) == seen[-1].num_forward_passes > 6
    assert [step.num_forward_passes for step in seen] == sorted(step.num_forward_passes for step in seen)


def test_exact_of_a_batch_are_those_of_each_text(tree):
    """With padding, several texts at once, and bad words."""
    model = tiny_model(tree).double()
    settings = {
        "num_steps": 6,
        "max_new_tokens": 4,
        "exact": True,
        "allowed_tokens": list(range(0, 100, 3)),
    }
    settings["bad_words_ids"] = [[0, 3], [6, 9, 12], [30, 30]]
    ids, mask = torch.tensor([[5, 6, 7], [77, 77, 30]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    together = generate(model, ids, attention_mask=mask, generator=seeds, **settings)
    for text, seed in enumerate((1, 2)):
        own = ids[text : text + 1, mask[text].bool()]
        alone = generate(model, own, generator=torch.Generator().manual_seed(seed), **settings)
        assert torch.equal(alone[0, -4:], together[text, -4:])


def test_many_bad_words_are_compiled():
    """3,000 words of 3 tokens; each is excluded (they share no tokens with the rest of the vocabulary)."""
    tree = random_tree(9_000, 21, 3, seed=0)
    words = torch.randperm(9_000, generator=torch.Generator().manual_seed(0)).view(3_000, 3).tolist()
    model = tiny_model(tree)
    first, second, third = words[0]
    start = torch.tensor([[first, second, tree.root_id]])
    siblings = tree.ancestors[third, 2]
    start[0, 2] = siblings
    texts = generate(model, start, bad_words_ids=words, num_steps=3, num_return_sequences=100)
    below = (tree.ancestors[:, 2] == siblings).nonzero()[:, 0].tolist()
    assert len(below) <= 21  # without the words, 100 draws from so few would hold `third`
    assert third not in texts[:, 2].tolist() and set(texts[:, 2].tolist()) <= set(below)
