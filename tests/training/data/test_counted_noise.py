"""Noise of blocks by counts: exactly so many levels are lost, and the loss still has the bound as its mean."""

import pytest
import torch
from helpers.models import tiny_model

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.diffusion_process import number_blocks
from modeling_treediff.noise_schedules import LevelSchedule
from modeling_treediff.training import DiffusionCollator
from modeling_treediff.training.data import collator as collator_module
from modeling_treediff.training.data.counted_noise import counted_noise, levels_per_interval

TREE = random_tree(60, 8, 2, seed=0)
TOKENS = torch.randint(0, 60, (3, 12), generator=torch.Generator().manual_seed(0))
SIZE = 4


def schedule_of(name, tree=TREE):
    return LevelSchedule.from_config(tiny_model(tree, schedule=name).config)


def noisy(collator, copies, **more):
    """Batch of the tokens, each text many times with noise of its own."""
    features = [{"input_ids": text, "position": 3 * copy + place} | {name: value[place] for name, value in more.items()}
                for copy in range(copies) for place, text in enumerate(TOKENS.numpy())]  # fmt: skip
    return collator(features)


@pytest.mark.parametrize("name", ["binomial", "sequential"])
def test_a_block_has_lost_the_levels_that_its_time_says_and_what_is_not_counted_none(name):
    schedule = schedule_of(name)
    attention = torch.ones(3, 12, dtype=torch.long)
    attention[0, 9:], attention[1, :2] = 0, 0
    fixed = torch.zeros_like(attention)
    fixed[2, :5] = 1
    segments = torch.zeros_like(attention)
    segments[2, 7:] = 1
    number = number_blocks(TOKENS, attention, segments, SIZE)
    counted = (attention != 0) & (fixed == 0)
    levels = levels_per_interval(schedule)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        times = torch.rand(3, 12, generator=generator, dtype=torch.float64).gather(1, number)
        uniforms = torch.rand(3, 12, levels, generator=generator, dtype=torch.float64)
        depth, shown = counted_noise(times, uniforms, number, counted, schedule)
        for text in range(3):
            for block in number[text].unique():
                own = counted[text] & (number[text] == block)
                if not own.any():
                    continue
                time, total = float(times[text][own][0]), 2 * int(own.sum())
                lost = int((2 - depth[text][own]).sum())
                assert lost == int(time * total) + 1
                assert shown[text][own].tolist() == pytest.approx([lost / total] * len(shown[text][own]), abs=1e-5)


@pytest.mark.parametrize("name", ["binomial", "sequential"])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_the_mean_of_the_loss_is_the_bound_and_it_varies_less_than_with_losses_by_chance(name, size, monkeypatch):
    """Within four standard errors; five tokens do not divide the window, so that a last block is shorter."""
    model = tiny_model(TREE, schedule=name, block_size=size).double().eval()
    collator = DiffusionCollator(model.tree, model.schedule, sampling_eps=0.0, block_size=size)

    def losses():
        batch = noisy(collator, 600)
        with torch.no_grad():
            return torch.stack([
                model(**{key: value[start : start + 30] for key, value in batch.items()}).loss
                for start in range(0, 1800, 30)
            ])  # fmt: skip

    counted = losses()
    monkeypatch.setattr(collator_module, "levels_per_interval", lambda schedule: None)
    by_chance = losses()
    bound = model.nelbo(TOKENS, num_samples=400, generator=torch.Generator().manual_seed(0))
    error = (counted.var() / len(counted) + bound.standard_error**2) ** 0.5
    assert abs(float(counted.mean()) - bound.value) < 4 * error < 0.2
    assert counted.var() < 0.5 * by_chance.var()


def test_blocks_of_one_token_over_a_flat_tree_are_always_masked_with_weight_one():
    model = tiny_model(VocabularyTree.flat(60), block_size=1)
    batch = noisy(DiffusionCollator(model.tree, model.schedule, block_size=1), 5)
    assert (batch["input_ids"] == model.config.mask_token_id).all()
    assert model.schedule.weight(batch["timesteps"].flatten()).flatten().tolist() == pytest.approx(
        [1.0] * 180, abs=1e-5
    )


def test_schedules_whose_choices_are_not_alike_keep_losses_by_chance():
    known = {name: levels_per_interval(schedule_of(name)) for name in ("binomial", "sequential", "poisson")}
    assert known == {"binomial": 2, "sequential": 1, "poisson": None}
    warped = LevelSchedule.from_config(tiny_model(TREE, schedule="binomial", time_warp="cosine").config)
    assert levels_per_interval(warped) is None


def test_windows_take_several_sizes_of_blocks_in_turn_and_each_as_if_it_were_the_only_one():
    """In each the times are spread as evenly as if there were no other windows; three sizes, too."""
    model = tiny_model(TREE, block_size=SIZE)
    for sizes in ([SIZE, 12], [SIZE, 5, 12]):
        batch = noisy(DiffusionCollator(model.tree, model.schedule, sampling_eps=0.0, block_size=sizes), 400)
        for turn, size in enumerate(sizes):
            here = torch.arange(1200) % len(sizes) == turn
            number = number_blocks(TOKENS, None, None, size)[0]
            assert (batch["block_numbers"][here] == number).all()
            times, levels = batch["timesteps"][here][:, ::size], 2 * torch.bincount(number)
            for block, total in enumerate(levels.tolist()):
                values, counts = times[:, block].unique(return_counts=True)
                assert len(values) == total and counts.max() - counts.min() <= 6
    with pytest.raises(ValueError, match="at least 1"):
        DiffusionCollator(model.tree, model.schedule, block_size=[4, 0])


def test_times_of_blocks_begin_later_than_those_of_windows():
    """At a quarter and at a tenth, by the smallest of 1,200 times; where losses are counted, of a block's eight."""
    for name, size, least in (("poisson", None, 0.1), ("poisson", SIZE, 0.25), ("binomial", SIZE, 3 / 8)):
        model = tiny_model(TREE, schedule=name)
        smallest = float(noisy(DiffusionCollator(model.tree, model.schedule, block_size=size), 400)["timesteps"].min())
        assert least <= smallest + 1e-6 < least + 0.01


def test_the_loss_of_a_window_is_that_of_a_model_with_its_blocks():
    """One model reads windows of both sizes in one pass, as two models with one size each."""
    model, whole = tiny_model(TREE, block_size=SIZE).double(), tiny_model(TREE, block_size=None).double()
    whole.load_state_dict(model.state_dict())
    batch = noisy(DiffusionCollator(model.tree, model.schedule, block_size=[SIZE, 12]), 4)
    here = torch.arange(12) % 2 == 1
    found = model(**batch).nelbo
    part = {name: values[here] for name, values in batch.items() if name != "block_numbers"}
    expected = whole(**part | {"timesteps": part["timesteps"][:, 0]}).nelbo
    torch.testing.assert_close(found[here], expected, rtol=1e-9, atol=0)
    part = {name: values[~here] for name, values in batch.items() if name != "block_numbers"}
    torch.testing.assert_close(found[~here], model(**part).nelbo, rtol=1e-9, atol=0)
