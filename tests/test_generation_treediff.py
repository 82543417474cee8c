"""Generation: what stays, what is filled, and that it samples what the model says."""

import itertools
import math

import pytest
import torch
from helpers.bayes_optimal import bayes_optimal
from helpers.models import SEQUENTIAL, tiny_model, tokens_by_enumeration
from helpers.processes import REPOSITORY
from transformers import AutoTokenizer

from modeling_treediff import TreeDiffGenerationConfig, VocabularyTree
from modeling_treediff.building.balanced import random_tree


def test_all_positions_end_as_tokens(model):
    generator = torch.Generator().manual_seed(0)
    texts = model.generate(max_new_tokens=12, num_steps=9, num_return_sequences=5, generator=generator)
    assert texts.shape == (5, 12)
    assert texts.min() >= 0 and texts.max() < model.config.vocab_size
    assert model.generate(num_steps=3).shape == (1, model.config.max_position_embeddings)


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("steps", [3, 4, 20])
def test_given_tokens_never_change_and_nodes_only_descend(model, steps, do_sample):
    tree, generator = model.tree, torch.Generator().manual_seed(steps)
    start = torch.randint(0, model.config.num_tree_nodes, (4, 10), generator=generator)
    result = model.generate(
        start,
        num_steps=steps,
        max_new_tokens=3,
        do_sample=do_sample,
        generator=generator,
        output_history=True,
        return_dict_in_generate=True,
    )
    assert len(result.history) == steps + 1 and result.num_forward_passes <= steps
    assert torch.equal(result.history[0][:, :10], start) and torch.equal(result.history[-1], result.sequences)
    for before, after in itertools.pairwise(result.history):
        token = before < model.config.vocab_size
        assert torch.equal(after[token], before[token])
        # Each node is an ancestor of what it becomes, so a given internal node stays a constraint.
        above = tree.ancestors[tree.representative[after], tree.depth[before]]
        assert torch.equal(above, before)
    assert result.sequences.max() < model.config.vocab_size


def test_levels_are_filled_one_after_the_other(model):
    result = model.generate(num_steps=12, output_history=True, return_dict_in_generate=True)
    depth = [model.tree.depth[nodes] for nodes in result.history]
    for window in range(3):
        inside = torch.stack(depth[4 * window : 4 * window + 5])
        assert ((inside == window) | (inside == window + 1)).all()
        assert (inside[-1] == window + 1).all()


def test_no_more_forward_passes_than_asked_for_and_none_in_vain(model):
    calls = []
    hook = model.model.register_forward_hook(lambda *arguments: calls.append(1))
    for steps in (3, 7, 16, 500):
        calls.clear()
        result = model.generate(num_steps=steps, output_history=True, return_dict_in_generate=True)
        moved = sum(not torch.equal(before, after) for before, after in itertools.pairwise(result.history))
        assert len(calls) == result.num_forward_passes == moved <= steps
    hook.remove()


@pytest.mark.parametrize("fields", [{}, {"head": "node"}, {"head": "leaf", "schedule": "poisson"}], ids=str)
def test_children_are_scored_where_a_position_descends_alone(tree, fields):
    """In the order of the process each position once for each level, whatever the number of passes."""
    model, scored = tiny_model(tree, **fields), []
    model.head.register_forward_hook(lambda _, inputs, __: scored.append(inputs[1].numel()))
    for steps in (4, 16):
        scored.clear()
        texts = model.generate(num_return_sequences=3, num_steps=steps)
        assert sum(scored) == texts.numel() * tree.tree_depth


SCHEDULES = {
    "binomial": {"schedule": "binomial"},
    "poisson": {"schedule": "poisson"},
    "uneven": SEQUENTIAL | {"level_durations": [3.0, 1.0, 1.0]},
    "cosine": {"schedule": "binomial", "time_warp": "cosine"},
    "discrete": SEQUENTIAL | {"num_timesteps": 30},
}


@pytest.mark.parametrize("fields", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("steps", [3, 10])
def test_every_schedule_fills_every_position(tree, fields, steps):
    result = tiny_model(tree, **fields).generate(
        num_steps=steps, num_return_sequences=4, output_history=True, return_dict_in_generate=True
    )
    assert result.sequences.max() < tree.vocab_size
    assert result.num_forward_passes <= steps * tree.tree_depth
    for before, after in itertools.pairwise(result.history):
        assert torch.equal(tree.ancestors[tree.representative[after], tree.depth[before]], before)


@pytest.mark.parametrize("fields", SCHEDULES.values(), ids=SCHEDULES)
def test_depths_on_the_way_follow_the_schedule(tree, fields):
    """16,000 positions, independent of each other in depth: within 5 standard deviations of alpha after every step."""
    model = tiny_model(tree, **fields)
    generator = torch.Generator().manual_seed(0)
    result = model.generate(
        num_steps=5, num_return_sequences=1000, generator=generator, output_history=True, return_dict_in_generate=True
    )
    alpha = model.schedule.alpha(model.schedule.reverse_times(5))
    for nodes, expected in zip(result.history, alpha, strict=True):
        for level in range(1, tree.tree_depth + 1):
            share = float((tree.depth[nodes] >= level).double().mean())
            chance = float(expected[level])
            assert abs(share - chance) <= 5 * (chance * (1 - chance) / 16_000) ** 0.5 + 1e-9


def test_padding_is_left_alone(model):
    start = torch.full((2, 8), model.config.mask_token_id)
    mask = torch.ones_like(start)
    mask[0, 5:], mask[1, :2] = 0, 0
    filled = model.generate(start, attention_mask=mask, num_steps=6)
    assert (filled[mask == 0] == model.config.mask_token_id).all()
    assert (filled[mask == 1] < model.config.vocab_size).all()


def test_the_same_generator_state_gives_the_same_text(model):
    texts = [model.generate(num_steps=6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


def test_one_position_is_drawn_from_the_models_own_distribution():
    """Chi-square over 27 tokens and 20,000 draws; the 99.9 % point for 26 degrees of freedom is 54.05."""
    tree = random_tree(27, 4, 3, seed=2)
    model = tiny_model(tree).double()
    log_p = tokens_by_enumeration(model, torch.tensor([tree.root_id]), 0)
    draws = model.generate(
        max_new_tokens=1, num_steps=3, num_return_sequences=20_000, generator=torch.Generator().manual_seed(0)
    )
    observed = torch.bincount(draws[:, 0], minlength=27).double()
    expected = 20_000 * log_p.exp()
    assert float(((observed - expected) ** 2 / expected).sum()) < 54.05


def test_greedy_takes_the_likeliest_child_and_needs_no_randomness(model):
    node = torch.tensor([[model.config.mask_token_id]])
    for _ in range(3):
        slot = int(model(node).logits[0, 0].argmax())
        node[0, 0] = model.tree.children[node[0, 0] - model.config.vocab_size, slot]
    greedy = [model.generate(max_new_tokens=1, num_steps=3, do_sample=False) for _ in range(2)]
    assert torch.equal(greedy[0], node) and torch.equal(greedy[1], node)
    for near_greedy in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(model.generate(max_new_tokens=1, num_steps=3, **near_greedy), node)


@pytest.mark.parametrize(
    ("option", "allowed"), [({"top_k": 2}, 2), ({"top_p": 0.6}, None), ({"temperature": 2.0}, None)]
)
def test_sampling_options_shape_the_children_drawn(option, allowed):
    tree = VocabularyTree.flat(6)
    model = tiny_model(tree)
    p = model(torch.tensor([[6]])).logits[0, 0].double().softmax(-1).detach()
    if "temperature" in option:
        expected = p ** (1 / option["temperature"])
    else:
        ranked = p.sort(descending=True)
        keep = allowed or int((ranked.values.cumsum(0) < option["top_p"]).sum()) + 1
        expected = torch.zeros(6, dtype=torch.float64).index_copy(0, ranked.indices[:keep], ranked.values[:keep])
    expected = expected / expected.sum()
    draws = model.generate(
        max_new_tokens=1, num_steps=1, num_return_sequences=10_000, generator=torch.Generator().manual_seed(1), **option
    )
    share = torch.bincount(draws[:, 0], minlength=6).double() / 10_000
    # 5 standard deviations of each proportion; what is excluded must not occur at all.
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / 10_000).sqrt()).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 2}, "num_steps=2 is too small"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_k": 0}, "top_k must be a positive whole number"),
        ({"num_steps": 10**8}, "num_steps must be a positive whole number up to 2.20, got 100000000"),
        ({"steps_per_level": [10**8, 1, 1]}, "steps_per_level must be a positive whole number up to 2.20"),
        ({"num_return_sequences": 10**9}, "num_return_sequences must be a positive whole number up to 2.20"),
        ({"max_new_tokens": 2 * 10**8}, "max_new_tokens must be a positive whole number up to 2.20"),
        (
            {"max_new_tokens": 2 * 10**8, "block_length": 8},
            "max_new_tokens must be a positive whole number up to 2.20",
        ),
        ({"max_new_tokens": 17}, "17 positions are more than the model's 16"),
        ({"num_beams": 4}, "Unknown generation option num_beams"),
        ({"input_ids": torch.tensor([1, 2])}, r"shape \(batch, length\)"),
        ({"input_ids": torch.tensor([[0, -1]])}, "nodes of the tree"),
        ({"input_ids": torch.tensor([[10_000]])}, "nodes of the tree"),
        ({"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 3)}, "differ"),
    ],
)
def test_impossible_requests_say_what_is_wrong(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**settings)


RETURNED = ("special_tokens_mask", "offsets_mapping", "length", "overflowing_tokens")


@pytest.mark.parametrize("more", [{}, *({f"return_{name}": True} for name in RETURNED)], ids=str)
def test_whatever_a_tokenizer_returns_can_be_passed_on(more):
    """BERT's gives token types unasked."""
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "tree_artifacts" / "bert-base-uncased")
    model = tiny_model(VocabularyTree.flat(len(tokenizer)), hidden_size=8)
    text = tokenizer("we [MASK] it", return_tensors="pt", **more)
    assert "token_type_ids" in text
    texts = [
        model.generate(**inputs, max_new_tokens=2, num_steps=3, generator=torch.Generator().manual_seed(0))
        for inputs in (text, {name: text[name] for name in ("input_ids", "attention_mask")})
    ]
    assert torch.equal(*texts) and torch.equal(model.token_log_probs(**text), model.token_log_probs(text["input_ids"]))
    with pytest.raises(ValueError, match="Unknown generation option token_types"):
        model.generate(text["input_ids"], token_types=text["token_type_ids"])


def test_generation_config_survives_saving(model, tmp_path):
    model.generation_config.num_steps = 5
    model.generation_config.top_p = 0.9
    model.generation_config.top_k = 50  # also the default of transformers' own class, which drops defaults
    model.generation_config.save_pretrained(tmp_path)
    again = TreeDiffGenerationConfig.from_pretrained(tmp_path)
    assert (again.num_steps, again.top_p, again.top_k) == (5, 0.9, 50)
    assert again == model.generation_config


@pytest.mark.parametrize(
    ("fields", "steps"), [({}, 64), ({"num_timesteps": 6}, 6), (SEQUENTIAL | {"num_timesteps": 90}, 90)]
)
def test_steps_are_by_default_those_of_discrete_time(tree, fields, steps, tmp_path):
    model = tiny_model(tree if "schedule" in fields else VocabularyTree.flat(20), **fields)
    assert model.generation_config.num_steps == steps
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).generation_config.num_steps == steps
    assert TreeDiffGenerationConfig().num_steps == 64
    limit = model.config.max_position_embeddings * model.tree.tree_depth
    assert model.generate(return_dict_in_generate=True).num_forward_passes <= min(steps, limit)


@pytest.mark.parametrize("content", ['{"num_steps": 9, "top', "[1, 2]"], ids=["cut", "a list"])
def test_a_damaged_generation_config_is_no_default_one(model, tmp_path, content):
    model.save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"generation_config.json of .* is damaged .* or delete it for the defaults"):
        type(model).from_pretrained(tmp_path)
    file.unlink()
    assert type(model).from_pretrained(tmp_path).generation_config.num_steps == TreeDiffGenerationConfig().num_steps


@pytest.mark.parametrize("discrete", [False, True])
def test_more_steps_bring_correlated_positions_closer_to_the_joint_distribution(discrete):
    """Positions refined in one pass are drawn independently; refined one by one they follow each other.

    In discrete time the model's own T steps are the default: its bound is that of this process.
    """
    equal, agreement = torch.eye(2, dtype=torch.float64) / 2, []  # a mask beside a token becomes that token
    for steps in (1, 4, 32):
        model = bayes_optimal(VocabularyTree.flat(2), equal, num_timesteps=steps if discrete else None)
        settings = {"max_new_tokens": 2, "num_return_sequences": 4000} | ({} if discrete else {"num_steps": steps})
        pairs = model.generate(generator=torch.Generator().manual_seed(0), **settings)
        agreement.append(float((pairs[:, 0] == pairs[:, 1]).double().mean()))
    # In n equal steps both positions move in the same pass with probability 1/n; then they agree half of the time.
    for steps, share in zip((1, 4, 32), agreement, strict=True):
        expected = 1 - 0.5 / steps
        assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / 4000)


def test_a_prompt_without_room_behind_it_is_refused():
    model = tiny_model(random_tree(20, 5, 2))
    tokens = torch.zeros(2, model.config.max_position_embeddings, dtype=torch.long)
    longer = torch.cat([tokens, tokens], dim=1)
    for prompt, how in ((tokens, {}), (longer, {}), (longer, {"block_length": 4})):
        with pytest.raises(ValueError, match="given positions leave no room in the model's"):
            model.generate(prompt, **how)
    tokens[0, 3] = model.tree.root_id
    assert bool((model.generate(tokens) < 20).all())
