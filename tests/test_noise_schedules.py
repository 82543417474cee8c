"""The schedules: derivatives, integrals, published formulas, sampled times, and the reversal as a Markov chain."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from helpers.schedules import DEPTHS, SCHEDULES

from modeling_treediff import LevelSchedule, TreeDiffConfig
from modeling_treediff.noise_schedules import (
    BinomialSchedule,
    CosineWarp,
    DiscreteSchedule,
    PoissonSchedule,
    SequentialSchedule,
)

ALL = [pytest.param(make(depth), id=f"{kind} {depth}") for kind, make in SCHEDULES.items() for depth in DEPTHS]


def inner_times(schedule, per_interval=400):
    """Midpoints in every interval, and the length each stands for."""
    times, lengths = [], []
    for start, end in itertools.pairwise(schedule.boundaries):
        fraction = (torch.arange(per_interval, dtype=torch.float64) + 0.5) / per_interval
        times.append(start + (end - start) * fraction)
        lengths.append(torch.full((per_interval,), (end - start) / per_interval, dtype=torch.float64))
    return torch.cat(times), torch.cat(lengths)


@pytest.mark.parametrize("schedule", ALL)
def test_endpoints_and_order(schedule):
    alpha = schedule.alpha(torch.linspace(0, 1, 101, dtype=torch.float64))
    everything = torch.ones(schedule.depth + 1).double()
    torch.testing.assert_close(alpha[0], everything, rtol=0, atol=1e-15)
    torch.testing.assert_close(alpha[-1], torch.eye(schedule.depth + 1).double()[0], rtol=0, atol=1e-15)
    assert (alpha.diff(dim=1) <= 1e-15).all() and (alpha.diff(dim=0) <= 1e-15).all()


@pytest.mark.parametrize("schedule", ALL)
def test_flux_is_minus_the_derivative_of_alpha(schedule):
    times = inner_times(schedule, 20)[0].requires_grad_()
    for level in range(1, schedule.depth + 1):
        (gradient,) = torch.autograd.grad(schedule.alpha(times)[:, level].sum(), times)
        torch.testing.assert_close(schedule.flux(times.detach())[:, level - 1], -gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ALL)
def test_weight_is_flux_over_occupancy_and_totals_one_per_level(schedule):
    times, lengths = inner_times(schedule, 20_000)
    alpha, weight, flux = schedule.alpha(times), schedule.weight(times), schedule.flux(times)
    occupancy = alpha[:, :-1] - alpha[:, 1:]
    torch.testing.assert_close(weight * occupancy, flux, rtol=1e-6, atol=1e-9)
    # Midpoints; the slowest to converge is log^3 at t = 1.
    torch.testing.assert_close(lengths @ flux, torch.ones(schedule.depth).double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("schedule", ALL)
def test_single_precision_follows_double(schedule):
    times = inner_times(schedule, 50)[0]
    for name in ("alpha", "flux", "weight"):
        double, single = (getattr(schedule, name)(times.to(dtype)).double() for dtype in (torch.float64, torch.float32))
        torch.testing.assert_close(single, double, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", [*ALL, DiscreteSchedule(SequentialSchedule(1), 7)])
def test_weights_are_finite_from_the_first_time_to_the_last(schedule, dtype):
    times = torch.tensor([0.0, 1e-30, 1e-3, 1 - 1e-7, 1.0], dtype=dtype)
    weight = schedule.weight(times)
    assert weight.dtype == dtype and weight.isfinite().all() and (weight >= 0).all()


@pytest.mark.parametrize("depth", [5, 8])
def test_deep_poisson_schedules_keep_their_precision(depth):
    schedule = PoissonSchedule(depth)
    times = schedule.sample_times(4096, torch.Generator().manual_seed(0))
    torch.testing.assert_close(schedule.weight(times).double(), schedule.weight(times.double()), rtol=1e-4, atol=0)
    small = torch.tensor([1e-3], dtype=torch.float64)  # there the weight at the root is D / t (1 + O(t))
    assert math.isclose(schedule.weight(small)[0, 0], depth / 1e-3, rel_tol=2e-3)
    with pytest.raises(ValueError, match="depths up to 8, got 9: take binomial"):
        PoissonSchedule(9)


@pytest.mark.parametrize("schedule", ALL)
def test_sampled_times_are_stratified_and_each_uniform(schedule):
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([schedule.sample_times(64, generator) for _ in range(2000)])
    assert draws.min() > 0 and draws.max() <= 1
    assert ((draws.sort(dim=1).values - torch.arange(64) / 64).abs() < 1 / 64 + 1e-3).all()
    # Uniform for a fixed place in the batch: mean 1/2 within 5 standard errors of 2000 draws.
    assert (draws.mean(dim=0) - 0.5).abs().max() < 5 * math.sqrt(1 / 12 / 2000) + 1e-3


@pytest.mark.parametrize("schedule", ALL)
def test_no_drawn_time_is_close_to_the_start_of_an_interval(schedule):
    times = schedule.sample_times(20_000, torch.Generator().manual_seed(0), sampling_eps=0.25).double()
    for start, end in itertools.pairwise(schedule.boundaries):
        inside = times[(times > start + 1e-6) & (times <= end)]
        assert len(inside) and inside.min() >= start + 0.25 * (end - start) - 1e-6


@pytest.mark.parametrize("schedule", ALL)
def test_loss_times_are_drawn_from_the_flux(schedule):
    quantile = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    for level in range(1, schedule.depth + 1):
        times = schedule.loss_times(torch.full((50,), level), quantile)
        torch.testing.assert_close(1 - schedule.alpha(times)[:, level], quantile, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("steps", [4, 7, 23])
def test_reverse_steps_undo_the_forward_process(schedule, steps):
    """From the root at t = 1 the steps give the schedule's occupancy at every time, and tokens at the end."""
    times = schedule.reverse_times(steps).tolist()
    assert len(times) == steps + 1 and times[0] == 1 and times[-1] == 0 and sorted(times, reverse=True) == times
    assert all(min(abs(time - boundary) for time in times) < 1e-12 for boundary in schedule.boundaries)
    at_depth = torch.eye(schedule.depth + 1, dtype=torch.float64)[0]
    for start, end in itertools.pairwise(times):
        step = schedule.reverse_step(start, end)
        assert (step >= 0).all() and torch.equal(step, step.triu())  # depth is never lost
        torch.testing.assert_close(step.sum(dim=1), torch.ones(schedule.depth + 1).double(), rtol=0, atol=1e-12)
        at_depth = at_depth @ step
        alpha = schedule.alpha(torch.tensor([end], dtype=torch.float64))[0]
        torch.testing.assert_close(at_depth.flip(0).cumsum(0).flip(0), alpha, rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", ALL)
def test_forward_steps_lead_from_law_to_law_and_follow_one_another(schedule):
    """Depths are those of each time, never greater, and two steps are the step from the first time to the last."""
    times = [schedule.boundaries[0], 0.11, 0.3, 0.62, 0.97]
    alpha = schedule.alpha(torch.tensor(times, dtype=torch.float64))
    pi = alpha - torch.nn.functional.pad(alpha[:, 1:], (0, 1))
    pairs = itertools.pairwise(times)
    steps = [schedule.forward_step(*pair, pi[None, index + 1])[0] for index, pair in enumerate(pairs)]
    for index, step in enumerate(steps):
        torch.testing.assert_close(pi[index] @ step, pi[index + 1], rtol=0, atol=1e-9)
        torch.testing.assert_close(step.sum(dim=1), torch.ones(schedule.depth + 1).double())
        torch.testing.assert_close(step.tril(), step)
    occurs = pi[1] > 1e-6
    whole = schedule.forward_step(times[1], times[3], pi[None, 3])[0]
    torch.testing.assert_close((steps[1] @ steps[2])[occurs], whole[occurs], rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", ALL)
def test_the_reversal_is_a_markov_chain_with_the_bounds_rates(schedule):
    """Two steps are one (Chapman-Kolmogorov), and a short step jumps at the rate the bound weighs with."""
    for start, middle, end in [(1.0, 0.6, 0.2), (0.9, 0.55, 0.5), (0.4, 0.3, 0.05)]:
        two_steps = schedule.reverse_step(start, middle) @ schedule.reverse_step(middle, end)
        occupied = schedule.alpha(torch.tensor([start], dtype=torch.float64))[0]
        possible = (occupied - torch.cat([occupied[1:], torch.zeros(1).double()])) > 1e-9  # depths that occur then
        torch.testing.assert_close(two_steps[possible], schedule.reverse_step(start, end)[possible], rtol=0, atol=1e-12)
    times, short = inner_times(schedule, 7)[0], 1e-7
    for time in times.tolist():
        step, weight = schedule.reverse_step(time, time - short), schedule.weight(torch.tensor([time]).double())[0]
        occupied = schedule.alpha(torch.tensor([time], dtype=torch.float64))[0]
        for depth in range(schedule.depth):
            if occupied[depth] - occupied[depth + 1] > 1e-9:
                assert math.isclose(step[depth, depth + 1] / short, weight[depth], rel_tol=1e-4, abs_tol=1e-4)


def test_the_published_weights():
    """MDLM: 1/t. HDLM, alpha_t = P(token) and c_t = P(cluster): -alpha'/c on tokens, m'/m on clusters, m = P(mask)."""
    times = torch.linspace(0.02, 0.98, 49, dtype=torch.float64, requires_grad=True)
    for schedule in (SequentialSchedule(1), BinomialSchedule(1), PoissonSchedule(1)):
        torch.testing.assert_close(schedule.weight(times)[:, 0], 1 / times)
    cosine = CosineWarp(SequentialSchedule(1))
    slope = math.pi / 2 * torch.sin(times * math.pi / 2)
    torch.testing.assert_close(cosine.weight(times)[:, 0], slope / (1 - torch.cos(times * math.pi / 2)))
    for gamma, schedule in ((2, BinomialSchedule(2)), (1, PoissonSchedule(2))):
        alpha = 1 - times if gamma == 1 else (1 - times) ** 2
        cluster = -(1 - times) * torch.log1p(-times) if gamma == 1 else 2 * times * (1 - times)
        mask = 1 - alpha - cluster
        alpha_slope, mask_slope = (torch.autograd.grad(p.sum(), times, retain_graph=True)[0] for p in (alpha, mask))
        torch.testing.assert_close(schedule.weight(times)[:, 0], mask_slope / mask)
        torch.testing.assert_close(schedule.weight(times)[:, 1], -alpha_slope / cluster)


def test_windows_are_relative_and_level_one_has_the_last():
    schedule = SequentialSchedule(3, [2, 1, 1])
    assert schedule.boundaries == (0.0, 0.25, 0.5, 1.0)
    torch.testing.assert_close(schedule.alpha(torch.tensor([0.75]))[0], torch.tensor([1.0, 0.5, 0.0, 0.0]))
    for wrong in ([1, 1], [1, 0, 1], [1, 1, math.inf]):
        with pytest.raises(ValueError, match="3 positive numbers"):
            SequentialSchedule(3, wrong)


@pytest.mark.parametrize("steps", [1, 2, 7, 60])
@pytest.mark.parametrize("base", [SequentialSchedule(1), CosineWarp(SequentialSchedule(1))])
def test_discrete_time_charges_the_fall_of_each_step(base, steps):
    """D3PM: (alpha(s) - alpha(t)) / (1 - alpha(t)) for each of the steps, T times that for times drawn uniformly."""
    schedule = DiscreteSchedule(base, steps)
    grid = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alpha, before = base.alpha(grid)[:, 1], base.alpha(grid - 1 / steps)[:, 1]
    torch.testing.assert_close(schedule.weight(grid)[:, 0] / steps, (before - alpha) / (1 - alpha))
    assert math.isclose(float(schedule.flux(grid).mean()), 1, rel_tol=1e-12)
    drawn = schedule.sample_times(steps * 50, torch.Generator().manual_seed(0)).double()
    values, counts = (drawn * steps).round().unique(return_counts=True)
    assert values.tolist() == list(range(1, steps + 1)) and (counts - 50).abs().max() <= 1
    quantile = torch.linspace(0.001, 0.999, 97, dtype=torch.float64)
    times = schedule.loss_times(torch.ones(97, dtype=torch.long), quantile)
    lost, lost_before = (1 - base.alpha((times - back).clamp(min=0))[:, 1] for back in (0, 1 / steps))
    assert ((quantile <= lost + 1e-9) & (quantile > lost_before - 1e-9)).all()


def test_discrete_time_cuts_early_times_off_as_continuous_time_does():
    schedule = DiscreteSchedule(SequentialSchedule(1), 1000)
    times = schedule.sample_times(5000, torch.Generator().manual_seed(0), sampling_eps=0.1)
    assert times.min() >= 0.1 and schedule.weight(times).max() <= 10.0001
    exact, single = (schedule.weight(times.to(dtype)).double() for dtype in (torch.float64, torch.float32))
    torch.testing.assert_close(single, exact, rtol=1e-4, atol=0)


def test_discrete_time_refuses_steps_over_several_levels():
    DiscreteSchedule(SequentialSchedule(3), 6)
    for base, steps in ((SequentialSchedule(3), 4), (BinomialSchedule(2), 100), (PoissonSchedule(2), 100)):
        with pytest.raises(ValueError, match="several levels"):
            DiscreteSchedule(base, steps)


def test_fewer_steps_than_levels_are_refused():
    with pytest.raises(ValueError, match="num_steps=2 .* 3 levels"):
        SequentialSchedule(3).reverse_times(2)


def test_a_config_names_its_schedule():
    fields = {"tree_depth": 2, "schedule": "sequential", "level_durations": None, "time_warp": "linear"}
    fields["perturbation"] = 0.0
    made = [
        LevelSchedule.from_config(SimpleNamespace(**(fields | {"num_timesteps": None} | changes)))
        for changes in (
            {},
            {"level_durations": [3, 1]},
            {"schedule": "binomial"},
            {"schedule": "poisson", "time_warp": "cosine"},
            {"num_timesteps": 8},
        )
    ]
    assert [type(schedule).__name__ for schedule in made] == [
        "SequentialSchedule", "SequentialSchedule", "BinomialSchedule", "CosineWarp", "DiscreteSchedule"
    ]  # fmt: skip
    assert made[1].boundaries == (0.0, 0.25, 1.0)
    assert isinstance(made[3].schedule, PoissonSchedule)


@pytest.mark.parametrize("schedule", ALL)
def test_hitting_times_follow_the_reverse_process(schedule):
    """Shares of 20,000 positions per depth at five times, within 5 standard deviations of the exact probabilities."""
    depth, count = schedule.depth, 20_000
    generator = torch.Generator().manual_seed(depth)
    for start in range(depth):
        uniform = torch.rand(count, depth, dtype=torch.float64, generator=generator)
        times = schedule.hitting_times(torch.full((count,), start), uniform)
        assert times[:, :start].isinf().all() and (times[:, start:] > 0).all() and (times[:, start:] <= 1).all()
        assert (times[:, start:].diff(dim=1) <= 0).all()
        for time in (0.95, 0.7, 0.5, 0.3, 0.05):
            expected = schedule.reverse_step(1.0, time)[start]
            share = torch.bincount((times >= time).sum(dim=1), minlength=depth + 1).double() / count
            bound = 5 * (expected * (1 - expected) / count).sqrt() + 1e-9
            assert ((share - expected).abs() <= bound).all()


def test_steps_of_each_interval():
    schedule = SequentialSchedule(3)
    assert torch.equal(schedule.reverse_times([4, 4, 4]), schedule.reverse_times(12))
    times = schedule.reverse_times([1, 2, 4])
    expected = [1, 2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 12, 0]
    torch.testing.assert_close(times, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "warp", "expected"), [
    ("sequential", "linear", [1.0, 1.0]),
    ("binomial", "linear", [1.1, 0.9]),
    ("poisson", "linear", [1 - math.log(0.9), 1.0]),
    ("sequential", "cosine", None),
])  # fmt: skip
def test_the_weight_of_a_level_in_training_is_as_stated(kind, warp, expected):
    """The mean over the drawn times of the flux, which is weight x occupancy; by the midpoint rule."""
    fields = {"vocab_size": 9, "tree_depth": 2, "max_branching": 3, "num_tree_nodes": 13}
    schedule = LevelSchedule.from_config(TreeDiffConfig(**fields, schedule=kind, time_warp=warp))
    uniform, s = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000, 0.1
    mean = schedule.flux(schedule.place_times(uniform, s)).mean(0).tolist()
    if expected is None:
        assert max(abs(weight - 1) for weight in mean) > 0.01
        return
    assert mean == pytest.approx(expected, abs=1e-4)
    if kind != "sequential":
        left = schedule.alpha(torch.tensor([s], dtype=torch.float64))[0, 1:]
        assert expected == pytest.approx((left / (1 - s)).tolist())
