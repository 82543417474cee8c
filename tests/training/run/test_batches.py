"""Batches of a step: the same windows in the same order however a step is split and wherever a run goes on."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from helpers.tiny_run import ragged_windows, tiny_network, tiny_tree

from modeling_treediff.training import DiffusionCollator, TrainingConfig
from modeling_treediff.training.run.batches import StepBatches


def batches(folder, training, batch_size=6, accumulation=1, workers=0, max_steps=4):
    config = TrainingConfig(
        folder, max_steps=max_steps, batch_size=batch_size, gradient_accumulation_steps=accumulation, workers=workers
    )
    model = tiny_network(tiny_tree())
    return StepBatches(Accelerator(cpu=True), training, DiffusionCollator(model.tree, model.schedule, 0), config)


def labels(steps, done=0):
    return [torch.cat([batch["labels"] for batch in passes]) for passes in steps.after(done)]


@pytest.mark.parametrize(("batch_size", "accumulation"), [(6, 1), (3, 2), (2, 3), (1, 6)])
def test_a_step_has_the_same_windows_however_it_is_split(tmp_path, batch_size, accumulation):
    whole = labels(batches(tmp_path, ragged_windows()))
    split = labels(batches(tmp_path, ragged_windows(), batch_size, accumulation))
    assert len(whole) == len(split) == 4 and all(map(torch.equal, whole, split))


def test_a_run_goes_on_with_the_windows_that_come_next(tmp_path):
    whole = labels(batches(tmp_path, ragged_windows()))
    rest = labels(batches(tmp_path, ragged_windows()), done=3)
    assert len(rest) == 1 and torch.equal(rest[0], whole[3])


def ending(items):
    """Windows of which there are no more than these."""
    return SimpleNamespace(dataset=lambda *_: items, streaming=False, sequence_length=8)


def test_a_text_that_ends_too_soon_is_said(tmp_path):
    windows = ragged_windows().dataset(0, 8, 0)
    steps = batches(tmp_path, ending([windows[index] for index in range(8)])).after(0)
    assert len(next(steps)) == 1
    next(steps)  # the last batch is shorter
    with pytest.raises(ValueError, match=r"The training text ended before step 3 of 4\."):
        next(steps)


class Failing(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        raise OSError(f"window {index} cannot be read")


def test_an_error_of_a_worker_comes_in_its_own_words(tmp_path):
    steps = batches(tmp_path, ending(Failing()), workers=1)
    with pytest.raises(OSError) as caught:
        list(steps.after(0))
    assert str(caught.value) == "window 0 cannot be read"
    assert "Original Traceback" in "".join(caught.value.__notes__)


def test_the_place_of_a_stream_is_kept_with_a_checkpoint(tmp_path):
    first, second = (batches(tmp_path, ragged_windows()) for _ in range(2))
    assert first.state_dict() == {"place": None}
    second.load_state_dict({"place": (6, 0, 3, 17)})
    assert second.state_dict() == {"place": (6, 0, 3, 17)}
