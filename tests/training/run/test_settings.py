"""What a config refuses by itself."""

from pathlib import Path

import pytest

from modeling_treediff.training import TrainingConfig


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1"),
        ({"global_batch_size": 0}, "global_batch_size must be at least 1"),
        ({"loss_chunk": 0}, "loss_chunk must be at least 1"),
        ({"recompute_mlp": -1}, "recompute_mlp must not be negative"),
        ({"save_every": -1}, "save_every must not be negative"),
        ({"seed": 10**20}, "seed must not be negative or above"),
        ({"seed": 2**32}, r"seed must be below 2\^32"),
        ({"max_steps": 10**24}, r"max_steps must be at least 1 and at most 10\^12"),
        ({"loss_chunk": 10**20}, "loss_chunk must be at least 1 and at most"),
        ({"weight_decay": float("nan")}, "weight_decay must not be negative or above"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"learning_rate": float("inf")}, "learning_rate must be a positive number, got inf"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number, got nan"),
        ({"learning_rate": -float("inf")}, "learning_rate must be a positive number, got -inf"),
        ({"sampling_eps": 1.0}, "sampling_eps must lie between"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1"),
        ({"learning_rate_schedule": "linear"}, "Unknown learning_rate_schedule 'linear'; known: cosine, constant, wsd"),
        ({"decay_steps": 5}, "decay_steps belong to learning_rate_schedule 'wsd'"),
        (
            {"learning_rate_schedule": "wsd", "max_steps": 100, "warmup_steps": 60, "decay_steps": 41},
            "60 steps of warm-up and 41 of decay are more than the 100",
        ),
        ({"attn_implementation": "flash"}, "Unknown attn_implementation 'flash'; known: sdpa, eager, flex_attention"),
        ({"trackers": ("mlflow",)}, "Unknown tracker 'mlflow'; known: tensorboard, wandb, trackio"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**({"output_dir": Path("x"), "max_steps": 1, "warmup_steps": 0} | setting))


def test_a_global_batch_is_split_among_processes_and_passes():
    config = TrainingConfig(Path("x"), 1, batch_size=4, global_batch_size=48)
    for processes, accumulation in ((1, 12), (2, 6), (3, 4), (12, 1)):
        split = config.on_processes(processes)
        assert split.gradient_accumulation_steps == accumulation and split.windows_per_step(processes) == 48
    with pytest.raises(ValueError, match="48 windows is not a multiple of 20 .batch size 4 x 5 processes"):
        config.on_processes(5)
    with pytest.raises(ValueError, match="not a multiple of 96"):
        config.on_processes(24)


def test_the_folder_may_be_named_by_a_text():
    assert TrainingConfig("some/run").output_dir == TrainingConfig(Path("some/run")).output_dir == Path("some/run")
