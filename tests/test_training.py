"""Training: order, noise, resuming, checkpoints, memory."""

import json
import mmap
import os
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import SAMPLE, tiny_model
from transformers import AutoTokenizer, Trainer, TrainingArguments

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.training import (
    DiffusionCollator,
    MemoryTracker,
    TokenWindows,
    TrainingConfig,
    train,
)
from modeling_treediff.training.checkpoints import CheckpointStore
from modeling_treediff.training.memory import PROCESS_RESET, PROCESS_STATUS


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps one precision per process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SAMPLE)


@pytest.fixture(scope="module")
def tree():
    return VocabularyTree.random(8192, 91, 2)


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 8192, (30, 16)).astype(np.int32)


def run(folder, tree, tokenizer, windows, resume=False, model_fields=None, **settings):
    config = TrainingConfig(
        **{"output_dir": folder, "max_steps": 6, "batch_size": 4, "warmup_steps": 2, "save_every": 2} | settings
    )
    model = tiny_model(tree, num_hidden_layers=1, **(model_fields or {}))
    result = train(model, tokenizer, windows, windows[:4], config, resume)
    return TreeDiffForDiffusionLM.from_pretrained(folder).state_dict(), losses(folder), result


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_same_seed_same_run_and_another_seed_another(tmp_path, tree, tokenizer, windows):
    first, first_losses, result = run(tmp_path / "a", tree, tokenizer, windows)
    second, second_losses, _ = run(tmp_path / "b", tree, tokenizer, windows)
    _, other_losses, _ = run(tmp_path / "c", tree, tokenizer, windows, seed=1)
    assert equal(first, second) and first_losses == second_losses != other_losses
    assert len(first_losses) == 6 and result.tokens_seen == 6 * 4 * 16


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_is_bit_identical_to_not_stopping(tmp_path, tree, tokenizer, windows, accumulation):
    """Stop after 4 of 6 steps by deleting all that came later, checkpoint and log; then resume."""
    settings = {"gradient_accumulation_steps": accumulation, "batch_size": 4 // accumulation}
    whole, whole_losses, _ = run(tmp_path / "whole", tree, tokenizer, windows, **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoint-0000006")
    (tmp_path / "stopped" / ".checkpoint-0000006.partial").mkdir()  # what a kill while saving leaves
    resumed, resumed_losses, _ = run(tmp_path / "stopped", tree, tokenizer, windows, resume=True, **settings)
    assert equal(whole, resumed) and whole_losses == resumed_losses


@pytest.mark.parametrize("accumulation", [1, 3])
def test_steps_are_adamw_on_the_mean_gradient_of_their_passes(tmp_path, tree, tokenizer, windows, accumulation):
    """Against a loop written out in plain torch: same windows and noise, gradients averaged, clipped, AdamW, cosine."""
    settings = {"max_steps": 3, "warmup_steps": 1, "learning_rate": 1e-2, "weight_decay": 0.2, "max_grad_norm": 0.5}
    trained, ours, _ = run(
        tmp_path, tree, tokenizer, windows, gradient_accumulation_steps=accumulation, save_every=0, **settings
    )
    model = tiny_model(tree, num_hidden_layers=1).train()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    items = TokenWindows(windows).dataset(0, 12 * accumulation, 0)
    collator = DiffusionCollator(tree, model.schedule, 0)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (0.0 if step == 0 else (1 + np.cos(np.pi * (step - 1) / 2)) / 2)
        loss = 0
        for index in range(step * accumulation, (step + 1) * accumulation):
            batch = collator([items[row] for row in range(4 * index, 4 * index + 4)])
            loss = loss + model(**batch).loss / accumulation
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        assert loss.item() == pytest.approx(ours[step], rel=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-4)


def test_a_stop_right_after_a_checkpoint_loses_no_logged_step(tmp_path, tree, tokenizer, windows, monkeypatch):
    save = CheckpointStore.save

    def save_and_stop(store, step):
        save(store, step)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointStore, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tree, tokenizer, windows)
    monkeypatch.undo()
    run(tmp_path, tree, tokenizer, windows, resume=True)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_checkpoints_rotate_and_each_is_a_model(tmp_path, tree, tokenizer, windows):
    run(tmp_path, tree, tokenizer, windows, keep_checkpoints=2)
    names = sorted(path.name for path in tmp_path.glob("*checkpoint*"))
    assert names == ["checkpoint-0000004", "checkpoint-0000006"]
    last = TreeDiffForDiffusionLM.from_pretrained(tmp_path / names[-1]).state_dict()
    assert equal(last, TreeDiffForDiffusionLM.from_pretrained(tmp_path).state_dict())
    assert len(AutoTokenizer.from_pretrained(tmp_path / names[0], trust_remote_code=True)) == 8192


@pytest.mark.parametrize("save_every", [0, 2])
def test_an_earlier_run_is_not_overwritten(tmp_path, tree, tokenizer, windows, save_every):
    before, *_ = run(tmp_path, tree, tokenizer, windows, save_every=save_every)
    with pytest.raises(FileExistsError, match="--resume"):
        run(tmp_path, tree, tokenizer, windows, seed=5)
    if not save_every:
        with pytest.raises(FileExistsError, match="no checkpoint to resume"):
            run(tmp_path, tree, tokenizer, windows, save_every=0, resume=True)
    assert equal(before, TreeDiffForDiffusionLM.from_pretrained(tmp_path).state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 2}, "windows per step was 4, is 2"),
        ({"learning_rate": 1e-9}, "learning_rate was 0.001, is 1e-09"),
        ({"model_fields": {"num_attention_heads": 2}}, "num_attention_heads was 4, is 2"),
        ({"tree": VocabularyTree.random(8192, 91, 2, seed=9)}, "tree was"),
        ({"windows": np.zeros((30, 16), np.int32)}, "training text was"),
        ({"max_steps": 3}, "has done 6 steps already"),
    ],
    ids=["seed", "batch", "rate", "heads", "tree", "text", "fewer steps"],
)
def test_another_run_cannot_be_resumed(tmp_path, tree, tokenizer, windows, changes, message):
    before, *_ = run(tmp_path, tree, tokenizer, windows)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **({"tree": tree, "tokenizer": tokenizer, "windows": windows} | changes), resume=True)
    assert equal(before, TreeDiffForDiffusionLM.from_pretrained(tmp_path).state_dict())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1"),
        ({"save_every": -1}, "save_every must not be negative"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"smallest_fraction": 1.0}, "smallest_fraction must lie between"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**({"output_dir": None, "max_steps": 1} | setting))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device has fp16")
def test_fp16_without_a_gpu_is_refused(tmp_path, tree, tokenizer, windows):
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        run(tmp_path / "new", tree, tokenizer, windows, mixed_precision="fp16")
    assert not (tmp_path / "new").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_trains_on_the_gpu(tmp_path, tree, tokenizer, windows, precision):
    *_, result = run(tmp_path, tree, tokenizer, windows, mixed_precision=precision, max_steps=20)
    assert np.isfinite(losses(tmp_path)).all() and result.peak_memory["allocated"] > 0


def test_validation_and_samples_are_logged(tmp_path, tree, tokenizer, windows):
    *_, result = run(tmp_path, tree, tokenizer, windows, validate_every=3)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validated = [line for line in logged if "nelbo" in line]
    assert [line["step"] for line in validated] == [3, 6]
    assert all(isinstance(line["sample"], str) for line in validated)
    assert validated[-1]["nelbo"] == result.validation.value  # all windows, the same noise, the same model


def test_training_learns_what_is_there_to_learn(tmp_path, tree, tokenizer):
    """One repeated window: the bound falls from log V = 9 to the little that is open while all is masked."""
    repeated = np.tile(np.arange(16, dtype=np.int32) * 50, (8, 1))
    *_, result = run(
        tmp_path, tree, tokenizer, repeated, max_steps=150, learning_rate=1e-2, save_every=0, weight_decay=0.0
    )
    assert losses(tmp_path)[0] > 8
    assert result.validation.value < 1.5


def test_mixed_precision_trains_fp32_weights(tmp_path, tree, tokenizer, windows):
    state, reduced, _ = run(tmp_path / "low", tree, tokenizer, windows, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    _, full, _ = run(tmp_path / "full", tree, tokenizer, windows, mixed_precision="no")
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert reduced != full and np.allclose(reduced, full, rtol=0.05)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tree, tokenizer, windows):
    with pytest.raises(FloatingPointError, match="at step"):
        run(tmp_path, tree, tokenizer, windows, learning_rate=1e30, max_grad_norm=1e30, max_steps=20)
    assert not (tmp_path / "model.safetensors").exists()


def test_bad_combinations_are_refused_before_any_work(tmp_path, tree, tokenizer, windows):
    with pytest.raises(ValueError, match="40 tokens are longer than the model's 16 positions"):
        run(tmp_path / "new", tree, tokenizer, np.zeros((4, 40), np.int32))
    with pytest.raises(ValueError, match="100 leaves but the tokenizer has 8192"):
        run(tmp_path / "new", VocabularyTree.random(100, 10, 2), tokenizer, windows)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="this system has no /proc/self/status")
def test_memory_tracker_sees_a_large_block_and_can_be_reset():
    """A block straight from the kernel, since an allocator may reuse what it has."""
    tracker, size = MemoryTracker("cpu"), 64 * 2**20
    before = tracker.peak().resident
    block = mmap.mmap(-1, size)
    block.write(b"x" * size)
    during = tracker.peak().resident
    assert during - before > size // 2
    block.close()
    assert tracker.peak().resident > during - 2**20  # a peak does not fall; the kernel's counter lags by some pages
    assert tracker.peak().allocated is None and "RSS" in str(tracker.peak())
    if os.access(PROCESS_RESET, os.W_OK):
        tracker.reset()
        assert tracker.peak().resident < during - size // 2


@pytest.mark.gpu
def test_memory_tracker_reports_the_device():
    tracker = MemoryTracker("cuda")
    block = torch.ones(64 * 2**20 // 4, device="cuda")
    assert tracker.peak().allocated >= block.numel() * 4 and tracker.peak().reserved >= tracker.peak().allocated


def test_the_hugging_face_trainer_works_too(tmp_path, tree, windows):
    """And averages over accumulated passes: a logged loss is nats per token, whatever their number."""
    rows = [{"input_ids": row.tolist()} for row in windows]
    logged = []
    for accumulation in (1, 4):
        model = tiny_model(tree, num_hidden_layers=1)
        before = model.head.levels[0].weight.detach().clone()
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=accumulation,
            report_to=[],
            remove_unused_columns=False,
            use_cpu=True,
            disable_tqdm=True,
        )
        collator = DiffusionCollator(model.tree, model.schedule)
        logged.append(Trainer(model, arguments, train_dataset=rows, data_collator=collator).train().training_loss)
        assert not torch.equal(model.head.levels[0].weight, before)
    assert 0.5 < logged[0] / logged[1] < 2
