"""Who descends when: orders, budgets, thresholds, steps of levels, corrections; and noise of positions."""

import itertools

import pytest
import torch
from helpers.bayes_optimal import TREES, bayes_optimal, chi_square, random_joint
from helpers.models import SEQUENTIAL, generate_recorded, tiny_model
from scipy.stats import chi2

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.diffusion_process import uniform_at
from modeling_treediff.generation_config_treediff import ORDERED, TreeDiffGenerationConfig
from modeling_treediff.generation_treediff import plan_stages
from modeling_treediff.sampling_treediff import surest

INTERLEAVED = {"schedule": "binomial"}


def moves(result) -> list[torch.Tensor]:
    """How many levels each position descended in each step, (B, T)."""
    return [after - before for before, after in itertools.pairwise(result.depths)]


@pytest.mark.parametrize(
    "fields", [SEQUENTIAL, INTERLEAVED, {"schedule": "poisson"}], ids=["sequential", "binomial", "poisson"]
)
def test_first_hitting_moves_one_position_per_pass_in_the_order_of_the_process(tree, fields):
    model = tiny_model(tree, **fields)
    start = torch.full((3, 6), model.config.mask_token_id)
    start[1, :4], start[2, 0] = 7, tree.ancestors[5, 1]
    result = generate_recorded(model, input_ids=start, unmasking="first_hitting")
    assert result.num_forward_passes == 18 and len(result.history) == 19
    for step in moves(result):
        assert (step.sum(dim=1) <= 1).all() and step.min() >= 0
    assert [int(sum(step[text].sum() for step in moves(result))) for text in range(3)] == [18, 6, 17]
    assert torch.equal(
        generate_recorded(model, input_ids=start, unmasking="first_hitting", num_steps=1).sequences, result.sequences
    )
    if fields == SEQUENTIAL:
        assert all((depth[0].max() - depth[0].min()) <= 1 for depth in result.depths)


@pytest.mark.parametrize("fields", [SEQUENTIAL, INTERLEAVED], ids=["sequential", "binomial"])
@pytest.mark.parametrize("unmasking", ORDERED)
@pytest.mark.parametrize("steps", [3, 5, 17, 48])
def test_ordered_unmasking_spends_the_budget_in_equal_shares(tree, fields, unmasking, steps):
    result = generate_recorded(tiny_model(tree, **fields), unmasking=unmasking, num_steps=steps, num_return_sequences=2)
    assert result.num_forward_passes == steps and len(result.history) == steps + 1
    assert (result.depths[-1] == 3).all()
    counts = torch.stack([step.sum(dim=1) for step in moves(result)])
    assert all(step.max() == 1 for step in moves(result))
    # 16 positions, 3 levels; the last passes may have to take more than their share for levels one by one.
    assert counts.min() >= 48 // steps - (1 if fields == SEQUENTIAL else 2) and (counts.sum(dim=0) == 48).all()


@pytest.mark.parametrize("unmasking", ORDERED)
def test_the_surest_descend_first(model, unmasking):
    """Greedy, so that the child is known: the scores of those that moved, from the logits, are the highest."""
    result = generate_recorded(model, unmasking=unmasking, num_steps=12, do_sample=False)
    for before, step in zip(result.history, moves(result), strict=False):
        p = model(before).logits[0].double().softmax(dim=-1)
        best = p.topk(2, dim=-1).values
        score = {
            "confidence": best[:, 0],
            "margin": best[:, 0] - best[:, 1],
            "entropy": (p * p.clamp(min=1e-300).log()).sum(dim=-1),
        }[unmasking]
        level = model.tree.depth[before[0]]
        waiting = level == level.min()
        moved = step[0] == 1
        assert not (moved & ~waiting).any()
        assert score[moved].min() >= score[waiting & ~moved].max() - 1e-4 if (waiting & ~moved).any() else True


def test_a_threshold_lets_the_sure_go_at_once(model):
    start = torch.randint(0, 100, (1, 16), generator=torch.Generator().manual_seed(0))
    start[0, ::2] = model.config.mask_token_id
    settings = {"input_ids": start, "unmasking": "confidence", "num_steps": 24, "do_sample": False}
    sure = generate_recorded(model, threshold=0.0, **settings)
    assert sure.num_forward_passes == 3  # all are sure: a pass for each level
    plain, never = generate_recorded(model, **settings), generate_recorded(model, threshold=1.1, **settings)
    assert all(torch.equal(*pair) for pair in zip(plain.history, never.history, strict=True))
    some = generate_recorded(model, threshold=0.35, **settings)
    assert 3 < some.num_forward_passes < 24
    for before, step in zip(some.history, moves(some), strict=False):
        sure = model(before).logits.softmax(dim=-1).amax(dim=-1) >= 0.35
        level = model.tree.depth[before]
        waiting, moved = level == level.min(), step == 1
        assert moved.any()
        assert torch.equal(moved & sure, waiting & sure)
        assert (moved & ~sure).sum() <= 1  # 8 positions in 8 passes go in any case
    unsure = {"unmasking": "entropy", "num_steps": 24}
    assert generate_recorded(model, threshold=10.0, **unsure).num_forward_passes == 3  # at most 10 nats: all


@pytest.mark.parametrize("bound", [0.0, 2.0, 6.0])
def test_an_entropy_bound_lets_go_whose_entropies_together_keep_it(model, bound):
    """All but the last of those that descend have the bound's nats at most, and one more would break it."""
    settings = {"unmasking": "entropy", "num_steps": 48, "num_return_sequences": 2}  # so that one a pass must go
    result = generate_recorded(model, entropy_bound=bound, **settings)
    for before, step in zip(result.history, moves(result), strict=False):
        entropies = torch.distributions.Categorical(logits=model(before).logits.double()).entropy()
        level = model.tree.depth[before]
        for text in range(2):
            waiting = level[text] == level[text].min()
            moved = step[text] == 1
            if (level[text] == 3).all():
                continue
            gone, left = entropies[text][waiting & moved], entropies[text][waiting & ~moved]
            assert len(gone) and gone.sum() - gone.max() <= bound + 1e-3
            assert not len(left) or (gone.max() <= left.min() + 1e-3 and gone.sum() > bound - 1e-3)
    assert (result.num_forward_passes == 48) == (bound == 0)


def test_who_must_goes_first_and_shares_are_rounded_up():
    levels_left = torch.tensor([[2, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    score = torch.tensor([[0.0, 0.3, 0.9, 0.5, 1.0], [0.2, 0.1, 0.0, 0.0, 0.0]])
    assert surest(score, levels_left, 2, None).tolist() == [[True, False, True, True, False], [True] + [False] * 4]
    assert surest(score, levels_left, 5, None).tolist() == [[False, False, True, False, False], [True] + [False] * 4]
    assert surest(score, levels_left, 5, 0.3)[0].tolist() == [False, True, True, True, False]


def test_corrections_end_when_they_change_nothing(model):
    """Greedy, in the order of confidence: the same positions come down to the same children again and again."""
    settings = {"unmasking": "confidence", "num_steps": 24, "remasking_steps": 18, "remasking_fraction": 1e-9}
    settings |= {"do_sample": False}
    all_of_them = generate_recorded(model, **settings)
    ended = {count: generate_recorded(model, stability_threshold=count, **settings) for count in (1, 3, 18)}
    passes = {count: result.num_forward_passes for count, result in ended.items()}
    assert passes[1] < passes[3] < passes[18] == all_of_them.num_forward_passes
    assert torch.equal(ended[18].sequences, all_of_them.sequences)
    calm = generate_recorded(model, stability_threshold=1, **settings | {"temperature": 1e-3, "do_sample": True})
    assert calm.num_forward_passes == passes[1]


def test_corrections_of_a_text_that_is_not_sure_go_on(model):
    """Nothing changes after the first one, but what is left is as improbable as it was."""
    settings = {"unmasking": "confidence", "num_steps": 24, "remasking_steps": 18, "remasking_fraction": 1e-9}
    settings |= {"do_sample": False, "stability_threshold": 1}
    passes, least = {}, float(generate_recorded(model, **settings).log_probs.exp().min())
    for threshold in (None, least * 0.9, min(1.0, least * 1.1)):
        passes[threshold] = generate_recorded(model, confidence_threshold=threshold, **settings).num_forward_passes
    few, as_few, many = passes.values()
    assert few == as_few < many
    with pytest.raises(ValueError, match="needs a stability_threshold"):
        model.generate(confidence_threshold=0.9)
    with pytest.raises(ValueError, match="ends corrections: give remasking_steps"):
        model.generate(stability_threshold=1)


def test_texts_whose_corrections_end_do_not_depend_on_those_that_go_on(model):
    """With a generator for each text: alone and in a batch the same."""
    settings = {"unmasking": "confidence", "num_steps": 40, "remasking_steps": 30, "stability_threshold": 1}
    settings |= {"remasking_fraction": 0.2, "max_new_tokens": 8}

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = model.generate(num_return_sequences=12, generator=generators(*range(12)), **settings)
    alone = [model.generate(generator=generators(seed), **settings) for seed in range(12)]
    assert torch.equal(together, torch.cat(alone))


def test_guidance_weighs_what_given_tokens_say():
    """Of one open position, by the scale s: p(child) is proportional to p_without^(1 - s) p_with^s, level by level."""
    model = tiny_model(VocabularyTree.flat(12)).double()
    start = torch.tensor([[3, 5, model.config.mask_token_id, 7]])
    without = torch.full_like(start, model.config.mask_token_id)
    log_p, log_q = (model(nodes).logits[0, 2].log_softmax(-1) for nodes in (start, without))
    plain = generate_recorded(model, input_ids=start, num_steps=1)
    for scale in (1.0, 3.0):
        result = generate_recorded(model, input_ids=start, num_steps=1, guidance_scale=scale)
        token = result.sequences[0, 2]
        expected = (log_q + scale * (log_p - log_q)).log_softmax(-1)[token]
        torch.testing.assert_close(result.log_probs[0, 2, 0], expected)
        assert result.num_forward_passes == 2 * plain.num_forward_passes == 2
        assert (result.sequences == start)[0, [0, 1, 3]].all()
        assert scale != 1.0 or torch.equal(result.sequences, plain.sequences)


def test_guidance_is_the_same_with_a_cache_and_where_children_are_missing(tree):
    model = tiny_model(tree, schedule="binomial", block_size=4).double()
    start = torch.full((2, 12), model.config.mask_token_id)
    start[:, :3] = torch.tensor([[1, 2, 3], [4, 5, 6]])
    texts = [
        generate_recorded(model, input_ids=start, guidance_scale=2.0, num_steps=6, use_cache=cached).sequences
        for cached in (True, False)
    ]
    assert torch.equal(*texts) and (texts[0] < tree.vocab_size).all()


def test_tokens_per_forward_counts_what_is_written(model):
    start = torch.full((2, 16), 7)
    start[0, :8], start[1, :3] = model.config.mask_token_id, model.config.mask_token_id
    result = generate_recorded(model, input_ids=start, num_steps=12, unmasking="confidence")
    assert result.tokens_per_forward.tolist() == pytest.approx([8 / 12, 3 / 12])
    ends = generate_recorded(model, max_new_tokens=16, num_steps=12, eos_token_id=list(range(100)), pad_token_id=0)
    assert float(ends.tokens_per_forward) == pytest.approx(
        1 / ends.num_forward_passes
    )  # all behind the first is padding


@pytest.mark.parametrize("unmasking", ["random", "confidence"])
def test_steps_of_each_level(model, unmasking):
    result = generate_recorded(model, unmasking=unmasking, steps_per_level=[2, 5, 3], num_return_sequences=20)
    assert result.num_forward_passes == 10
    assert all(step.any() for step in moves(result))
    assert (result.depths[2] == 1).all() and (result.depths[7] == 2).all()
    even, same = (
        generate_recorded(model, unmasking=unmasking, steps_per_level=[4, 4, 4]),
        generate_recorded(model, unmasking=unmasking, num_steps=12),
    )
    assert all(torch.equal(*pair) for pair in zip(even.history, same.history, strict=True))


def test_automatic_steps_follow_the_bits_of_each_level():
    tree = VocabularyTree.from_paths([[a, b] for a in range(2) for b in range(32)], 32)
    stages = plan_stages(
        TreeDiffGenerationConfig(num_steps=60, steps_per_level="auto"), tiny_model(tree, **SEQUENTIAL).schedule, tree
    )
    # 1 bit and 5 bits: 58 steps beyond the one that each level has, in these shares.
    assert [len(stage.times) - 1 for stage in stages] == [1 + 10, 1 + 48]


@pytest.mark.parametrize("fields", [SEQUENTIAL, INTERLEAVED], ids=["sequential", "binomial"])
@pytest.mark.parametrize("unmasking", ["random", "confidence"])
@pytest.mark.parametrize("climb", [1, 2])
def test_corrections_climb_and_come_down_within_the_budget(tree, fields, unmasking, climb):
    model = tiny_model(tree, **fields)
    start = torch.full((2, 12), model.config.mask_token_id)
    start[0, 3], start[0, 4], start[1, :2] = 9, tree.ancestors[5, 1], tree.ancestors[7, 2]
    seen: list = []
    result = model.generate(
        start,
        num_steps=21,
        unmasking=unmasking,
        remasking_steps=9,
        remasking_levels=climb,
        remasking_fraction=0.5,
        callback=seen.append,
        return_dict_in_generate=True,
        generator=torch.Generator().manual_seed(0),
    )
    assert (tree.depth[result.sequences] == 3).all()
    if unmasking == "confidence" or fields == SEQUENTIAL:
        assert 21 - 3 <= result.num_forward_passes <= 21
    assert seen[-1].num_forward_passes == result.num_forward_passes
    given = tree.depth[start]
    stages = plan_stages(
        model.generation_config_class(num_steps=21, remasking_steps=9, remasking_levels=climb), model.schedule, tree
    )
    # The share of those that may climb falls linearly with the rounds of a stage, from one half.
    shares = [
        (stage.depth - climb, 0.5 * (1 - index / stage.corrections))
        for stage in stages
        for index in range(stage.corrections)
    ]
    climbs = 0
    for before, after in itertools.pairwise(seen):
        rise = tree.depth[before.node_ids] - tree.depth[after.node_ids]
        assert (tree.depth[after.node_ids] >= given).all() and rise.max() <= climb
        assert torch.equal(tree.ancestors[tree.representative[after.node_ids], given], start)
        if rise.max() > 0:
            assert after.num_forward_passes == before.num_forward_passes
            target, share = shares[climbs]
            may = ((tree.depth[before.node_ids] > given.clamp(min=max(target, 0))) & (given < 3)).sum(dim=1)
            assert torch.equal((rise > 0).sum(dim=1), (may * share).ceil().long())
            climbs += 1
    assert climbs == len(shares) > 0


def test_the_least_probable_climb(model):
    seen: list = []
    model.generate(
        num_steps=12, remasking_steps=3, remasking_fraction=0.3, unmasking="first_hitting", callback=seen.append,
        max_new_tokens=10, return_dict_in_generate=True, generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    log_p = {}
    for before, after in itertools.pairwise(seen):
        depth = model.tree.depth[before.node_ids[0]], model.tree.depth[after.node_ids[0]]
        climbed = depth[1] < depth[0]
        if climbed.any():
            last = torch.tensor([log_p[place] for place in range(10)])
            assert climbed.sum() == 3 and last[climbed].max() <= last[~climbed].min() + 1e-4
            continue
        scores = model(before.node_ids).logits[0].double().log_softmax(dim=-1)
        for place in after.moved[0].nonzero()[:, 0].tolist():
            log_p[place] = float(scores[place, model.tree.child_slot[after.node_ids[0, place]]].detach())


def test_what_climbs_is_drawn_anew():
    """A position alone, so that its distribution is the same again: it differs from the first draw as two draws do.

    The share of 4,000 is within 5 standard deviations, and the second draws pass a chi-square test at 99.9 %.
    """
    marginal = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    model = bayes_optimal(VocabularyTree.flat(4), marginal)
    settings = {"max_new_tokens": 1, "num_return_sequences": 4_000, "remasking_fraction": 1.0}
    first, second = (
        model.generate(num_steps=1 + more, remasking_steps=more, generator=torch.Generator().manual_seed(0), **settings)
        for more in (0, 1)
    )
    differ = float(1 - (marginal**2).sum())
    assert abs(float((first != second).double().mean()) - differ) < 5 * (differ * (1 - differ) / 4_000) ** 0.5
    assert chi_square(second, marginal) < chi2.ppf(0.999, 3)


@pytest.mark.parametrize("schedule", ["sequential", "binomial", "poisson"])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_texts_written_with_remasking_follow_the_data(tree, schedule):
    """Two positions of a known law: 4,000 texts in 300 steps pass a chi-square test at 99.9 %."""
    joint = random_joint(5, 5, seed=1)
    model = bayes_optimal(tree, joint, schedule=schedule)
    settings = {"num_steps": 300, "remasking_rate": 2.0, "max_new_tokens": 2, "num_return_sequences": 4_000}
    texts = model.generate(generator=torch.Generator().manual_seed(0), **settings)
    assert chi_square(texts, joint) < chi2.ppf(0.999, joint.numel() - 1)


def test_remasking_steps_are_remdms_with_the_sigma_of_going_too_far():
    """ReMDM's step from t to s on the flat tree, sigma = 1 - alpha_s / alpha_r if the reverse process goes on to r.

    A token is lost with sigma, a mask written with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t): shares among 20,000
    positions are within five standard deviations.
    """
    rate, steps, count = 1.5, 8, 20_000
    model = bayes_optimal(VocabularyTree.flat(4), torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64))
    seen: list[torch.Tensor] = []
    model.model.register_forward_pre_hook(lambda _, nodes: seen.append(nodes[0][:, 0] < 4))
    settings = {"num_steps": steps, "remasking_rate": rate, "max_new_tokens": 1, "num_return_sequences": count}
    model.generate(generator=torch.Generator().manual_seed(0), **settings)
    assert len(seen) == steps
    for index, (before, after) in enumerate(itertools.pairwise(seen)):
        alpha_t, alpha_s = index / steps, (index + 1) / steps
        sigma = 1 - alpha_s / min(alpha_s + rate / steps, 1)
        rates = {True: 1 - sigma, False: (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)}
        for is_written, rate_s in rates.items():
            shown = after[before == is_written].double()
            assert abs(float(shown.sum()) - rate_s * len(shown)) <= 5 * (rate_s * (1 - rate_s) * len(shown)) ** 0.5


def test_remasking_leaves_what_is_given_and_rewrites_the_rest(tree):
    model = tiny_model(tree)
    start = torch.full((2, 12), model.config.mask_token_id)
    start[:, ::3], start[:, 1] = 7, tree.ancestors[5, 1]
    plain, remasked = (generate_recorded(model, input_ids=start, remasking_rate=rate) for rate in (0.0, 1.0))
    for nodes in remasked.history:
        assert (nodes[:, ::3] == 7).all() and (tree.coarsen(nodes[:, 1], 1) == start[:, 1]).all()
    written = torch.stack(remasked.history)[:, 0].T.tolist()  # of each position
    assert any(len({node for node in nodes if node < 100}) > 1 for nodes in written)
    assert (remasked.sequences < 100).all() and remasked.num_forward_passes >= plain.num_forward_passes
    for result, falls in ((plain, False), (remasked, True)):
        assert any((step < 0).any() for step in moves(result)) == falls


@pytest.mark.parametrize("schedule", ["sequential", "binomial", "poisson"])
def test_remasking_changes_no_share_of_what_is_written_below_given_nodes(schedule):
    """After every step, of 3,000 positions each given at a depth of 0, 1 or 2: within five standard deviations."""
    tree = random_tree(8, 2, 3)
    model = tiny_model(tree, schedule=schedule, max_position_embeddings=3)
    start = torch.stack([tree.ancestors[5, depth] for depth in range(3)]).expand(3_000, -1)
    settings = {"input_ids": start, "num_steps": 12, "output_history": True, "return_dict_in_generate": True}
    plain, remasked = (
        model.generate(remasking_rate=rate, generator=torch.Generator().manual_seed(seed), **settings).depths
        for seed, rate in enumerate((0.0, 1.0))
    )
    assert len(plain) == len(remasked) == 13
    for one, other in zip(plain, remasked, strict=True):
        for depth in range(4):
            shares = [(depths == depth).double().mean(dim=0) for depths in (one, other)]
            mean = sum(shares) / 2
            assert ((shares[0] - shares[1]).abs() <= 5 * (2 * mean * (1 - mean) / 3_000).sqrt()).all()


def test_a_callback_sees_what_remasking_takes_back_before_it_is_drawn_anew(tree):
    seen = []
    model = tiny_model(tree)
    model.generate(max_new_tokens=12, num_steps=12, remasking_rate=1.0, callback=seen.append)
    pairs = [(one.node_ids, other.node_ids) for one, other in itertools.pairwise(seen)]
    falls = [tree.depth[after] < tree.depth[before] for before, after in pairs]
    assert any(fall.any() for fall in falls)
    for (before, after), fall in zip(pairs, falls, strict=True):
        changed = (before != after) & ~fall
        assert (tree.depth[after] > tree.depth[before])[changed].all()  # no token becomes another at once


def test_corrections_leave_the_draws_before_them_alone(model):
    plain = generate_recorded(model, num_steps=12)
    corrected = generate_recorded(model, num_steps=15, remasking_steps=3)
    assert all(torch.equal(*pair) for pair in zip(plain.history[:5], corrected.history[:5], strict=True))
    assert not torch.equal(plain.sequences, corrected.sequences)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 10, "remasking_steps": 8}, "of which remasking spends 8 is too small"),
        ({"remasking_steps": 2, "remasking_levels": 3, "schedule": "binomial"}, "takes as many remasking_steps"),
        ({"steps_per_level": [1, 2]}, "2 numbers, the tree 3 levels"),
        ({"steps_per_level": "auto", "schedule": "binomial"}, "one by one"),
        ({"num_steps": 2, "unmasking": "margin", "schedule": "poisson"}, "num_steps=2 is too small"),
        ({"threshold": 0.5}, "threshold needs unmasking by"),
        ({"threshold": -1.0, "unmasking": "entropy"}, "must not be negative"),
        ({"unmasking": "best"}, "Unknown unmasking 'best'"),
        ({"steps_per_level": [0, 1, 1]}, "steps_per_level must be a positive whole number"),
        ({"remasking_steps": -1}, "remasking_steps must not be negative"),
        ({"remasking_fraction": 0.0}, r"remasking_fraction must lie in \(0, 1\]"),
        ({"remasking_rate": -0.5}, "remasking_rate must not be negative"),
        ({"remasking_rate": 0.5, "unmasking": "margin"}, "remasking_rate needs unmasking='random'"),
        ({"remasking_levels": 0}, "remasking_levels must be a positive whole number"),
    ],
)
def test_impossible_plans_say_what_is_wrong(tree, settings, message):
    fields = {"schedule": settings.pop("schedule", "sequential")}
    with pytest.raises(ValueError, match=message):
        tiny_model(tree, **fields).generate(**settings)


def test_noise_belongs_to_positions():
    where = torch.tensor([[False, True, True], [True, False, True]])
    together = uniform_at(where, [torch.Generator().manual_seed(seed) for seed in (3, 4)], 2)
    for text, seed in enumerate((3, 4)):
        alone = uniform_at(torch.ones(1, 2, dtype=torch.bool), torch.Generator().manual_seed(seed), 2)
        assert torch.equal(together[text][where[text]], alone[0])
    assert (together[~where] == 0).all() and together.dtype == torch.float64
    with pytest.raises(ValueError, match="2 generators for 3 texts"):
        uniform_at(torch.ones(3, 2, dtype=torch.bool), [torch.Generator()] * 2)
