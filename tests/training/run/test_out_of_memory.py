"""Out of memory: what is said, and the search for a batch that fits. The memory is a limit on windows at a time."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny_run import equal, tiny_network, tiny_run, tiny_tree

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.training import TrainingConfig, plan_memory
from modeling_treediff.training.run.out_of_memory import advice, plan_run


@pytest.fixture
def room_for(monkeypatch):
    """A device with room for `limit` windows, and one less from the second step on."""
    forward, tried = TreeDiffForDiffusionLM.forward, []

    def install(limit):
        def limited(self, input_ids, *arguments, **options):
            if self.training and type(input_ids) is torch.Tensor:  # not the fake one of a plan
                tried.append(len(input_ids))
                if len(input_ids) > limit - (len(input_ids) in tried[:-1]):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return forward(self, input_ids, *arguments, **options)

        monkeypatch.setattr(TreeDiffForDiffusionLM, "forward", limited)
        return tried

    return install


def test_running_out_says_what_helps(tmp_path, room_for):
    room_for(2)
    with pytest.raises(MemoryError, match="CUDA out of memory.*By plan a step takes .* of this device's .* end it, or"):
        tiny_run(tmp_path)


def test_the_advice_is_the_planners_for_the_run_as_launched(tmp_path):
    settings = {"max_steps": 1, "batch_size": 2, "gradient_accumulation_steps": 2, "mixed_precision": "bf16"}
    memory = {"recompute_mlp": 1, "loss_chunk": 16}
    config = TrainingConfig(tmp_path, ema_decay=0.9, **memory, **settings)
    model_config = tiny_network(tiny_tree()).config
    planned = plan_run(model_config, config, 8)
    assert planned.step == plan_memory(model_config, 2, 8, precision="bf16", accumulation=2, ema=True, **memory).step
    eager = plan_run(model_config, replace(config, attn_implementation="eager"), 8)
    assert eager.step == replace(planned.step, attn_implementation="eager") and eager.peak > planned.peak
    memory = int(planned.peak / 0.95)  # a little less than it takes, since some is lost to gaps
    assert advice(model_config, config, 8, memory) == planned.advice(memory) != advice(model_config, config, 8, 2**40)


def test_the_largest_batch_that_fits_trains_the_same_model(tmp_path, monkeypatch, room_for):
    """12 windows per step: 12, 6 and 4 do not fit twice into room for 4, 3 do; 5 divides nothing."""
    whole, expected, _ = tiny_run(tmp_path / "whole", batch_size=3, gradient_accumulation_steps=4)
    tried = room_for(4)
    found, losses, _ = tiny_run(tmp_path / "found", batch_size=12, find_batch_size=True, max_steps=6)
    assert tried[:6] == [12, 6, 4, 4, 3, 3] and set(tried[6:]) == {3}
    assert equal(whole, found) and losses == expected


def test_the_search_knows_models_with_blocks(tmp_path, room_for):
    settings = {"model_fields": {"block_size": 3}, "max_steps": 2}
    whole, expected, _ = tiny_run(tmp_path / "whole", batch_size=2, **settings)
    room_for(4)
    found, losses, _ = tiny_run(tmp_path / "found", batch_size=2, find_batch_size=True, **settings)
    assert equal(whole, found) and losses == expected


def test_when_nothing_fits_it_is_said(tmp_path, room_for):
    room_for(0)
    with pytest.raises(MemoryError, match="Out of memory with one window at a time. By plan a step takes"):
        tiny_run(tmp_path, find_batch_size=True)


def test_other_errors_pass_through(tmp_path, monkeypatch):
    def broken(self, *arguments, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(TreeDiffForDiffusionLM, "forward", broken)
    for find in (False, True):
        with pytest.raises(RuntimeError, match="something else"):
            tiny_run(tmp_path / str(find), model=tiny_network(tiny_tree()), find_batch_size=find)
