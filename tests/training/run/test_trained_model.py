"""The model of a run: averaged where it is evaluated, whole where it is saved."""

import pytest
import torch
from helpers.tiny_run import equal, logged, losses, ragged_windows, tiny_run

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.training.run import preflight


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_the_size_of_a_checkpoint_is_known_beforehand(tmp_path, ema_decay, monkeypatch):
    guessed = []
    guess = preflight.TrainedModel.checkpoint_bytes
    monkeypatch.setattr(
        preflight.TrainedModel, "checkpoint_bytes", lambda model: guessed.append(guess(model)) or guessed[-1]
    )
    tiny_run(tmp_path, model_fields={"hidden_size": 256}, ema_decay=ema_decay, max_steps=2)
    names = ("model.safetensors", "training_weights.safetensors", "optimizer.bin")
    files = [tmp_path / "checkpoint-0000002" / name for name in names]
    measured = sum(file.stat().st_size for file in files if file.exists())
    assert guessed[0] == pytest.approx(measured, rel=0.02)


def test_gradient_checkpointing_changes_nothing_and_warns_of_nothing(tmp_path, recwarn):
    plain, *_ = tiny_run(tmp_path / "a")
    again, *_ = tiny_run(tmp_path / "b", gradient_checkpointing=True)
    assert equal(plain, again)
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]


def test_the_average_is_validated_exported_and_saved_beside_the_training_weights(tmp_path):
    _, _, plain = tiny_run(tmp_path / "plain", validate_every=3, learning_rate=1e-2)
    final, measured, averaged = tiny_run(tmp_path / "ema", validate_every=3, learning_rate=1e-2, ema_decay=0.9)
    assert measured == losses(tmp_path / "plain")  # the average does not touch the training
    exported = TreeDiffForDiffusionLM.from_pretrained(tmp_path / "ema")
    assert equal(final, TreeDiffForDiffusionLM.from_pretrained(tmp_path / "ema" / "checkpoint-0000006").state_dict())
    windows = ragged_windows()[:6]
    bound = exported.nelbo(
        torch.from_numpy(windows.input_ids).long(), torch.from_numpy(windows.attention_mask), batch_size=16,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert averaged.validation.value == bound.value == logged(tmp_path / "ema")[-1]["nelbo"] != plain.validation.value
