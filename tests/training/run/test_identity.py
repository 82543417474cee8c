"""A checkpoint is continued by the same run alone, however its steps are split."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from helpers.tiny_run import equal, ragged_windows, tiny_run, tiny_tree

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.text import TokenWindows
from modeling_treediff.training.run.identity import differences, missing_names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 2}, "windows per step was 4, is 2"),
        ({"learning_rate": 1e-9}, "learning_rate was 0.003, is 1e-09"),
        ({"ema_decay": 0.5}, "ema_decay was 0.0, is 0.5"),
        ({"model_fields": {"num_attention_heads": 1}}, "num_attention_heads was 2, is 1"),
        ({"model_fields": {"node_embedding": "free"}}, "node_embedding was factorised, is free"),
        ({"tree": tiny_tree(9)}, r"tree was \w{8}..., is \w{8}... \(--tree\)"),
        ({"windows": ragged_windows(seed=1)}, r"training text was \w{8}..., is \w{8}... \(--text\)"),
        ({"windows": TokenWindows(ragged_windows().input_ids)}, "training text was"),
        ({"held_out": 5}, r"held-out text was \w{8}..., is \w{8}... \(--validation-text or --hold-out-every\)"),
        ({"validation_windows": 3}, "validation_windows was 128, is 3"),
        ({"max_steps": 3}, "has done 6 steps already"),
    ],
    ids=[
        "seed",
        "batch",
        "rate",
        "average",
        "heads",
        "embedding",
        "tree",
        "text",
        "mask",
        "held-out text",
        "held-out windows",
        "fewer steps",
    ],
)
def test_another_run_cannot_be_resumed(tmp_path, changes, message):
    before, *_ = tiny_run(tmp_path)
    with pytest.raises(ValueError, match=message):
        tiny_run(tmp_path, resume=True, **changes)
    assert equal(before, TreeDiffForDiffusionLM.from_pretrained(tmp_path).state_dict())


def test_a_run_of_a_version_that_did_not_know_lookahead_had_none():
    ours = {"seed": 0, "lookahead": 0.0}
    assert missing_names({"seed": 0}, ours) == differences({"seed": 0}, ours) == []
    assert differences({"seed": 0}, ours | {"lookahead": 1.0}) == ["lookahead was 0.0, is 1.0"]


def test_another_held_out_text_cannot_be_resumed_and_none_was_named_before(tmp_path):
    """Of two texts of one size the bounds differ, whatever the model; run folders of older versions name neither."""
    windows = ragged_windows()
    settings = {"max_steps": 2, "validate_every": 1, "windows": windows}
    tiny_run(tmp_path, **settings)
    with mock.patch.object(TokenWindows, "__getitem__", lambda *_: ragged_windows(6, seed=1)):
        with pytest.raises(ValueError, match="held-out text was .* Restore these to resume it"):
            tiny_run(tmp_path, resume=True, **settings)
    file = tmp_path / "checkpoint-0000002" / "run.json"
    facts = json.loads(file.read_text())
    del facts["identity"]["held-out text"], facts["identity"]["validation_windows"]
    file.write_text(json.dumps(facts))
    tiny_run(tmp_path, resume=True, **settings, validation_windows=3)


def test_a_precision_that_the_launcher_chose_is_part_of_the_run(tmp_path, monkeypatch, fresh_accelerate):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    tiny_run(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    with pytest.raises(ValueError, match="mixed_precision was bf16, is no"):
        tiny_run(tmp_path, resume=True)


def test_another_split_of_the_same_global_batch_can_be_resumed(tmp_path):
    whole, *_ = tiny_run(tmp_path / "whole", max_steps=8)
    tiny_run(tmp_path / "split", max_steps=8)
    shutil.rmtree(tmp_path / "split" / "checkpoint-0000008")
    split, *_ = tiny_run(tmp_path / "split", resume=True, max_steps=8, batch_size=1, gradient_accumulation_steps=4)
    for name, value in whole.items():
        np.testing.assert_allclose(split[name], value, rtol=1e-4, atol=1e-6)
