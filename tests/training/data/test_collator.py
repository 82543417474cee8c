"""Noise in the data loader: it depends on seed and position alone, and follows the schedule."""

import pickle

import numpy as np
import pytest
import torch
from helpers.tiny_run import equal
from torch.utils.data import DataLoader

from modeling_treediff.building.balanced import random_tree
from modeling_treediff.noise_schedules import BinomialSchedule, DiscreteSchedule, PoissonSchedule, SequentialSchedule
from modeling_treediff.text import TokenWindows
from modeling_treediff.training import DiffusionCollator
from modeling_treediff.training.data.collator import depth_uniforms, time_uniforms

FAR = 3 * 10**12  # a position that single precision does not tell from the next


@pytest.fixture(scope="module")
def tree():
    return random_tree(500, 23, 2)


@pytest.fixture(scope="module")
def windows():
    tokens = np.random.default_rng(0).integers(0, 500, (40, 16))
    return TokenWindows(tokens, fixed_mask=tokens % 3 == 0, attention_mask=tokens < 400, segment_ids=tokens % 2)


def test_the_noise_of_a_window_is_the_same_in_whatever_batch(tree, windows):
    items = [windows.dataset(0, 24, 0)[index] for index in range(24)]
    collate = DiffusionCollator(tree, SequentialSchedule(2), seed=5)
    whole = collate(items)
    for batch_size in (1, 5, 8):
        torch.manual_seed(batch_size)
        parts = [collate(items[start : start + batch_size]) for start in range(0, 24, batch_size)]
        assert equal(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})
    rows = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = collate([items[row] for row in rows])
    assert equal(shuffled, {name: column[rows] for name, column in whole.items()})
    for other in (DiffusionCollator(tree, SequentialSchedule(2), seed=6)(items),
                  collate([item | {"position": item["position"] + 1} for item in items])):  # fmt: skip
        assert not torch.equal(other["timesteps"], whole["timesteps"])
        assert not torch.equal(other["input_ids"], whole["input_ids"])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tree, windows, workers):
    collate = DiffusionCollator(tree, SequentialSchedule(2), seed=5)
    alone, parallel = (
        list(DataLoader(windows.dataset(7, 47, 3), 8, collate_fn=collate, num_workers=count)) for count in (0, workers)
    )
    assert len(alone) == len(parallel) == 5 and all(map(equal, alone, parallel))


def test_a_collator_survives_pickling(tree, windows):
    items = [windows.dataset(0, 4, 0)[index] for index in range(4)]
    collate = DiffusionCollator(tree, BinomialSchedule(2), 1)
    assert equal(collate(items), pickle.loads(pickle.dumps(collate))(items))


def test_masks_are_kept_and_counted(tree, windows):
    items = [windows.dataset(0, 40, 0)[index] for index in range(40)]
    batch = DiffusionCollator(tree, SequentialSchedule(2))([item | {"place": (1, 2, 3)} for item in items])
    column = {name: torch.from_numpy(np.stack([item[name] for item in items]).astype(int)) for name in items[0]}
    kept = (column["fixed_mask"] == 1) | (column["attention_mask"] == 0)
    assert torch.equal(batch["input_ids"][kept], column["input_ids"][kept])
    assert torch.equal(batch["labels"], column["input_ids"].masked_fill(kept, -100))
    assert (batch["input_ids"] != column["input_ids"]).float().mean() > 0.3
    assert torch.equal(batch["attention_mask"], column["attention_mask"]) and "fixed_mask" not in batch
    assert torch.equal(batch["segment_ids"], column["segment_ids"])
    assert batch["place"].tolist() == [[1, 2, 3]] * 40


def test_features_without_a_position_are_noised_by_the_global_generator(tree, windows):
    collate, rows = DiffusionCollator(tree, SequentialSchedule(2)), [{"input_ids": row} for row in windows.input_ids]
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(collate(rows))
    assert equal(batches[0], batches[1]) and not equal(batches[0], batches[2])


def test_a_worker_that_joins_no_group_knows_its_process_by_what_the_launcher_set(tree, windows, monkeypatch):
    """Two processes with one seed and 8 windows each draw what one process draws for 16."""
    collate, rows = DiffusionCollator(tree, SequentialSchedule(2)), [{"input_ids": row} for row in windows.input_ids]
    torch.manual_seed(0)
    alone, parts = collate(rows[:16]), []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        torch.manual_seed(0)
        parts.append(collate(rows[rank:16:2]))
    assert equal(alone, {name: torch.stack([part[name] for part in parts], 1).flatten(0, 1) for name in alone})


@pytest.mark.parametrize("count", [16, 100, 512])
@pytest.mark.parametrize("start", [0, 12345, FAR])
def test_times_of_consecutive_windows_are_spread_evenly(start, count):
    """No gap on the circle is wider than (1 + 2 / sqrt 5) / n (three-distance theorem); star discrepancy below 4 / n.

    Independent times leave gaps of about log(n) / n and have a discrepancy of 0.87 / sqrt(n).
    """
    for seed in range(20):
        times = np.sort(time_uniforms(seed, range(start, start + count)))
        assert np.diff(times, append=times[0] + 1).max() <= (1 + 2 / np.sqrt(5)) / count + 1e-12
        steps = np.arange(count)
        assert max((times - steps / count).max(), ((steps + 1) / count - times).max()) < 4 / count


@pytest.mark.parametrize("position", [0, 77, FAR])
def test_every_single_time_is_uniform_over_seeds(position):
    """Kolmogorov-Smirnov over 4,000 seeds: 1.95 / sqrt(n) is exceeded by chance once in 1,000."""
    times = np.sort([time_uniforms(seed, [position])[0] for seed in range(4000)])
    assert 0 <= times[0] and times[-1] < 1
    assert np.abs(times - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / np.sqrt(4000)


def test_depth_noise_is_uniform_and_independent_of_position_and_seed():
    numbers = np.concatenate([depth_uniforms(seed, range(50), 64) for seed in range(4)])
    count = numbers.size
    assert np.abs(np.sort(numbers.ravel()) - (np.arange(count) + 0.5) / count).max() < 1.95 / np.sqrt(count)
    correlation = np.corrcoef(numbers)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(64)  # 19,900 pairs of rows, 5.5 standard deviations


@pytest.mark.parametrize(
    "schedule",
    [SequentialSchedule(2), SequentialSchedule(2, [3, 1]), BinomialSchedule(2), PoissonSchedule(2),
     DiscreteSchedule(SequentialSchedule(2), 8)],
    ids=["sequential", "unequal windows", "binomial", "poisson", "discrete"],
)  # fmt: skip
def test_depths_follow_the_schedule(tree, schedule):
    """The share of each depth among 64 tokens x 2,000 windows against its mean pi_k at the windows' own times."""
    features = [{"input_ids": np.arange(64) % 500, "position": position} for position in range(2000)]
    batch = DiffusionCollator(tree, schedule, seed=2)(features)
    alpha = torch.cat([schedule.alpha(batch["timesteps"].double()), torch.zeros(2000, 1)], dim=1)
    pi = alpha[:, :-1] - alpha[:, 1:]
    for depth in range(3):
        share = (tree.depth[batch["input_ids"]] == depth).double().mean(dim=1)
        deviation = (pi[:, depth] * (1 - pi[:, depth]) / 64).sum().sqrt() / 2000
        assert abs(share.mean() - pi[:, depth].mean()) < 4 * deviation + 1e-9


def test_no_time_lies_where_weights_are_huge(tree):
    features = [{"input_ids": np.zeros(1, int), "position": position} for position in range(5000)]
    for fraction in (0.1, 0.3):
        times = DiffusionCollator(tree, SequentialSchedule(2), 0, fraction)(features)["timesteps"]
        crossed = SequentialSchedule(2)._crossed(times)
        assert times.dtype == torch.float32
        assert torch.where(crossed > 0, crossed, 1.0).amin() > fraction - 1e-6
