"""A step to plan: sizes of devices, and options that mean what they mean in training."""

from dataclasses import fields

import pytest
from helpers.options import refusal

from modeling_treediff.cli.options.plan_memory import PlannedStep, Result
from modeling_treediff.training import TrainingConfig


@pytest.mark.parametrize(("text", "size"), [("24GB", 24 * 2**30), ("1.5 GiB", 3 * 2**29), ("512mb", 2**29)])
def test_sizes_of_devices(text, size):
    assert Result(gpu=text).gpu_bytes == size and Result().gpu_bytes is None


@pytest.mark.parametrize("text", ["lots", "24", "GB", "24TB"])
def test_what_is_no_size_is_refused(text):
    assert "such as 24GB" in refusal("plan-memory", "--gpu", text)


def test_what_training_has_too_is_the_same_there():
    training = {one.name: one for one in fields(TrainingConfig)}
    shared = [one for one in fields(PlannedStep) if one.name in training]
    assert len(shared) >= 5
    assert all(one.default == training[one.name].default for one in shared)
