"""The loop: what a step is, that it depends on nothing but the seed, and what is measured on the way."""

import re

import numpy as np
import pytest
import torch
from helpers.tiny_run import (
    LENGTH,
    VOCABULARY,
    equal,
    logged,
    losses,
    ragged_windows,
    tiny_network,
    tiny_run,
    tiny_tree,
)
from torch.utils.data import IterableDataset

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree, backbone_treediff
from modeling_treediff.text import TokenWindows
from modeling_treediff.training import DiffusionCollator
from modeling_treediff.training.run import loop


def reference_run(windows, steps, decay=0.0):
    """Three lines of plain torch per step: one pass over the whole batch of 12, clip, AdamW; and an average."""
    model = tiny_network(tiny_tree()).train()
    average = [parameter.detach().clone() for parameter in model.parameters()]
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    items, collator = windows.dataset(0, 12 * steps, 0), DiffusionCollator(model.tree, model.schedule, 0)
    measured = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (0.0 if step == 0 else (1 + np.cos(np.pi * (step - 1) / (steps - 1))) / 2)
        batch = collator([items[index] for index in range(12 * step, 12 * step + 12)])
        output = model(**batch)
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        measured.append(output.level_losses.sum().item())
        kept = min(decay, (2 + step) / (11 + step))
        for mean, parameter in zip(average, model.parameters(), strict=True):
            mean.mul_(kept).add_((1 - kept) * parameter.detach())
    return model, average, measured


@pytest.mark.parametrize(("batch_size", "accumulation"), [(12, 1), (6, 2), (4, 3), (1, 12)])
def test_a_step_is_adamw_on_the_mean_over_all_labels_of_the_global_batch(tmp_path, batch_size, accumulation):
    """Windows have 1 to 8 labels, so means of the passes' means would be another number."""
    windows = ragged_windows()
    model, average, measured = reference_run(windows, 4, decay=0.6)
    trained, ours, _ = tiny_run(
        tmp_path, windows=windows, max_steps=4, warmup_steps=1, learning_rate=1e-2, weight_decay=0.2,
        max_grad_norm=0.5, batch_size=batch_size, gradient_accumulation_steps=accumulation, ema_decay=0.6,
    )  # fmt: skip
    np.testing.assert_allclose(ours, measured, rtol=1e-5)
    for (name, _), mean in zip(model.named_parameters(), average, strict=True):
        torch.testing.assert_close(trained[name], mean, rtol=1e-3, atol=1e-5)


def test_the_global_batch_can_be_given_instead_of_the_accumulation(tmp_path):
    given, first, _ = tiny_run(tmp_path / "a", batch_size=2, global_batch_size=6)
    split, second, _ = tiny_run(tmp_path / "b", batch_size=2, gradient_accumulation_steps=3)
    assert equal(given, split) and first == second


def test_same_seed_same_run_and_another_seed_another(tmp_path):
    first, first_losses, result = tiny_run(tmp_path / "a")
    second, second_losses, _ = tiny_run(tmp_path / "b")
    _, other_losses, _ = tiny_run(tmp_path / "c", seed=1)
    assert equal(first, second) and first_losses == second_losses != other_losses
    assert len(first_losses) == 6 and result.tokens_seen == 6 * 4 * LENGTH


def test_workers_change_nothing(tmp_path):
    alone, *_ = tiny_run(tmp_path / "a")
    helped, *_ = tiny_run(tmp_path / "b", workers=2)
    assert equal(alone, helped)


def test_attention_is_the_implementation_that_is_asked_for_and_changes_nothing(tmp_path, monkeypatch):
    """Seen from a model with another one, which it has again afterwards."""
    seen, own = [], backbone_treediff.eager_attention_forward
    monkeypatch.setattr(
        backbone_treediff, "eager_attention_forward", lambda *given, **how: seen.append(1) or own(*given, **how)
    )
    losses = []
    for before, name in (("eager", None), ("eager", "sdpa"), ("sdpa", "eager")):
        model = tiny_network(tiny_tree())
        model.set_attn_implementation(before)
        _, found, _ = tiny_run(tmp_path / str(name), model=model, attn_implementation=name)
        losses.append(found)
        assert bool(seen) == (name != "sdpa") and model.config._attn_implementation == before
        seen.clear()
    np.testing.assert_allclose(losses[1:], losses[:1] * 2, rtol=1e-5)


def test_validation_and_samples_are_logged(tmp_path):
    *_, result = tiny_run(tmp_path, validate_every=3)
    validated = [line for line in logged(tmp_path) if "nelbo" in line]
    assert [line["step"] for line in validated] == [3, 6]
    assert all(isinstance(line["sample"], str) and len(line["level_losses"]) == 2 for line in validated)
    assert validated[-1]["nelbo"] == result.validation.value  # all windows, the same noise, the same model


def test_off_a_terminal_the_log_is_lines_of_which_there_are_few(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "LINES", 3)
    tiny_run(tmp_path, max_steps=10, validate_every=4, save_every=0)
    said = capsys.readouterr().err
    assert re.findall(r"^step (\d+) of 10: loss \d+\.\d{3}", said, re.MULTILINE) == ["3", "6", "9", "10"]


def test_a_loaded_model_is_trained_at_a_tenth_of_the_rate_of_a_new_one(tmp_path):
    tiny_run(tmp_path / "new", max_steps=2)
    loaded = TreeDiffForDiffusionLM.from_pretrained(tmp_path / "new")
    tiny_run(tmp_path / "on", max_steps=2, model=loaded)
    rates = [max(line["learning_rate"] for line in logged(tmp_path / name)) for name in ("new", "on")]
    assert rates[1] == pytest.approx(rates[0] / 10)


def test_training_learns_what_is_there_to_learn(tmp_path):
    """One repeated window: the bound falls from log V = 4.2 to the little that is open while all is masked."""
    repeated = TokenWindows(np.tile(np.arange(LENGTH, dtype=np.int32) * 7, (8, 1)))
    *_, result = tiny_run(tmp_path, windows=repeated, max_steps=300, learning_rate=1e-2, save_every=0, weight_decay=0.0)
    measured = losses(tmp_path)
    assert measured[0] > 3.5 and np.mean(measured[-50:]) < 1.2 and result.validation.value < 1.2


@pytest.mark.parametrize("schedule", ["sequential", "binomial", "poisson"])
def test_a_d3pm_trains_and_resumes(tmp_path, schedule):
    """Discrete time on the flat tree, by every schedule."""
    fields, tree = {"schedule": schedule, "num_timesteps": 16}, VocabularyTree.flat(VOCABULARY)
    tiny_run(tmp_path, tree=tree, model_fields=fields, max_steps=2)
    state, measured, _ = tiny_run(tmp_path, resume=True, tree=tree, model_fields=fields, max_steps=4)
    assert len(measured) == 4
    whole, expected, _ = tiny_run(tmp_path / "whole", tree=tree, model_fields=fields, max_steps=4)
    assert measured == expected and equal(state, whole)


def test_the_model_has_its_textbook_forwards_again_after_training(tmp_path):
    model = tiny_network(tiny_tree())
    tiny_run(tmp_path, model=model, max_steps=1)
    assert "forward" not in vars(model.model.backbone.layers[0]) and "child_cross_entropy" not in vars(model)


def test_mixed_precision_trains_fp32_weights(tmp_path):
    state, reduced, _ = tiny_run(tmp_path / "low", mixed_precision="bf16")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    _, full, _ = tiny_run(tmp_path / "full", mixed_precision="no")
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert reduced != full and np.allclose(reduced, full, rtol=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_trains_on_the_gpu(tmp_path, precision):
    *_, result = tiny_run(tmp_path, mixed_precision=precision, max_steps=20)
    assert np.isfinite(losses(tmp_path)).all() and result.peak_memory["allocated"] > 0


class Stream(TokenWindows):
    """Windows that can only be read from a place on: the place is the number of the window, three times over."""

    opened: list = []

    def dataset(self, first, count, seed, place=None):
        Stream.opened.append(place)
        start, *where = place or (0, 0, 0, 0)
        assert place is None or where == [start, 2 * start, 3 * start]
        items = super().dataset(0, count, seed)

        class Items(IterableDataset):
            def __iter__(self):
                for number in range(max(first, start), count):
                    yield items[number] | {"place": (number, 2 * number, 3 * number)}

        return Items()


def test_a_stream_is_told_where_it_stopped(tmp_path):
    windows = Stream(np.random.default_rng(0).integers(0, 64, (30, LENGTH)).astype(np.int32))
    Stream.opened.clear()

    class Collator(DiffusionCollator):
        def __call__(self, features):
            return super().__call__(features) | {"place": torch.tensor([item["place"] for item in features])}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_treediff.training.run.loop.DiffusionCollator", Collator)
        whole, *_ = tiny_run(tmp_path / "whole", windows=windows)
        tiny_run(tmp_path / "parts", windows=windows, max_steps=4, learning_rate_schedule="constant")
    plain, *_ = tiny_run(tmp_path / "plain", windows=TokenWindows(windows.input_ids))
    assert equal(whole, plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_treediff.training.run.loop.DiffusionCollator", Collator)
        resumed, *_ = tiny_run(
            tmp_path / "parts", resume=True, windows=windows, max_steps=6, learning_rate_schedule="constant"
        )
        straight, *_ = tiny_run(tmp_path / "straight", windows=windows, learning_rate_schedule="constant")
    assert equal(resumed, straight)
    assert Stream.opened == [None, None, (12, 12, 24, 36), None]  # the last of 4 steps of 4 windows begins at 12
