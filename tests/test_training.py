"""Training: order, noise, memory."""

import mmap
import os

import numpy as np
import pytest
import torch
from conftest import SAMPLE, tiny_model
from transformers import AutoTokenizer, Trainer, TrainingArguments

from modeling_treediff import VocabularyTree
from modeling_treediff.level_schedules import SequentialSchedule
from modeling_treediff.training import (
    DiffusionCollator,
    MemoryTracker,
    ShuffledWindows,
    TokenWindows,
    pack_windows,
    tokenize_documents,
    unigram_entropy,
)
from modeling_treediff.training.memory import PROCESS_RESET, PROCESS_STATUS


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SAMPLE)


@pytest.fixture(scope="module")
def tree():
    return VocabularyTree.random(8192, 91, 2)


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 8192, (30, 16)).astype(np.int32)


def test_order_is_a_permutation_per_epoch_and_can_start_anywhere(windows):
    whole = ShuffledWindows(TokenWindows(windows), 75, seed=3)
    order = [tuple(whole[index]["input_ids"]) for index in range(75)]
    every = sorted(map(tuple, windows))
    assert sorted(order[:30]) == sorted(order[30:60]) == every and order[:30] != order[30:60]
    later = ShuffledWindows(TokenWindows(windows), 75, seed=3, first=37)
    assert [tuple(later[index]["input_ids"]) for index in range(len(later))] == order[37:]


def test_noise_depends_on_seed_and_position_alone(tree, windows):
    def batch(seed, position):
        torch.manual_seed(np.random.randint(1000))
        features = [{"input_ids": windows[row], "position": position + row} for row in range(4)]
        return DiffusionCollator(tree, SequentialSchedule(2), seed)(features)

    same, again, later, other = batch(0, 8), batch(0, 8), batch(0, 12), batch(1, 8)
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not torch.equal(same["input_ids"], later["input_ids"])
    assert not torch.equal(same["input_ids"], other["input_ids"])
    assert (SequentialSchedule(2)._crossed(same["timesteps"]).amax(1) >= 0.1).all()


def test_windows_are_documents_with_separators(tokenizer):
    documents = ["To the Congress.", "We the people."]
    tokens = tokenize_documents(documents, tokenizer)
    assert tokenizer.decode(tokens) == "To the Congress.<|endoftext|>We the people.<|endoftext|>"
    packed = pack_windows(tokens, 3)
    assert packed.shape == (len(tokens) // 3, 3) and np.array_equal(packed.ravel(), tokens[: packed.size])
    with pytest.raises(ValueError, match=rf"held-out text has {len(tokens)} tokens, less than one window of 100"):
        pack_windows(tokens, 100, "held-out text")
    with pytest.raises(ValueError, match="at least one token, got 0"):
        pack_windows(tokens, 0)


def test_unigram_entropy_of_known_distributions():
    assert unigram_entropy(np.arange(8)) == pytest.approx(np.log(8))
    assert unigram_entropy(np.zeros(8, int)) == 0
    assert unigram_entropy(np.array([0, 0, 0, 1])) == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))


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
