"""What is logged arrives: in the lines of JSON, in TensorBoard, in the picture."""

import json
import math

import pytest
from accelerate import Accelerator
from helpers.tiny_run import logged, ragged_windows, tiny_run

from modeling_treediff.files.records import write_record
from modeling_treediff.text import TokenWindows
from modeling_treediff.training.run.run_log import RunLog, drop_later_steps


def events(folder):
    """All scalars that TensorBoard would show, as {name: {step: value}}; texts by their names."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0}).Reload()
    scalars = {
        name: {event.step: event.value for event in accumulator.Scalars(name)} for name in accumulator.Tags()["scalars"]
    }
    return scalars, accumulator.Tags()["tensors"]


def test_tensorboard_shows_what_was_measured_once_also_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    import shutil

    settings = {"validate_every": 3, "trackers": ("tensorboard",), "max_steps": 6}
    tiny_run(tmp_path, **settings)
    shutil.rmtree(tmp_path / "checkpoint-0000006")
    tiny_run(tmp_path, resume=True, **settings)
    scalars, texts = events(tmp_path / "logs" / "treediff")
    for name in ("loss", "learning_rate", "gradient_norm"):
        assert scalars[name] == pytest.approx({line["step"]: line[name] for line in logged(tmp_path)}, rel=1e-6)
    measured = {line["step"]: line for line in logged(tmp_path) if "nelbo" in line}
    assert scalars["nelbo"] == pytest.approx({step: line["nelbo"] for step, line in measured.items()}, rel=1e-6)
    for level in (1, 2):
        expected = {step: line["level_losses"][level - 1] for step, line in measured.items()}
        assert scalars[f"level_losses/{level}"] == pytest.approx(expected, rel=1e-6)
    assert scalars["peak_memory/resident"][6] > 2**20
    assert [name for name in texts if name.startswith("sample")]


def test_later_steps_and_half_a_line_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    file.write_text("".join(lines) + '{"step": 4, "lo')
    drop_later_steps(file, 2)
    assert file.read_text() == "".join(lines[:2])
    drop_later_steps(tmp_path / "new.jsonl", 0)
    assert not (tmp_path / "new.jsonl").exists()


def test_what_is_no_number_is_null_at_any_depth(tmp_path):
    measured = {"loss": math.nan, "level_losses": (1.0, math.inf), "peak": {"here": [-math.inf, 2]}, "sample": "inf"}
    expected = {"loss": None, "level_losses": [1.0, None], "peak": {"here": [None, 2]}, "sample": "inf"}
    log = RunLog(Accelerator(cpu=True), tmp_path, 0, {})
    log.write(1, measured)
    write_record(tmp_path / "result.json", measured, seed=0)
    assert logged(tmp_path) == [{"step": 1} | expected]
    assert expected.items() <= json.loads((tmp_path / "result.json").read_text()).items()


def test_few_windows_still_give_a_standard_error(tmp_path):
    """A tree of two levels: three corruptions would draw one of the levels once, and its spread would be unknown."""
    windows = TokenWindows(ragged_windows().input_ids)
    for count in (1, 2, 3):
        *_, result = tiny_run(tmp_path / str(count), windows=windows, held_out=count, max_steps=1, validate_every=1)
        assert math.isfinite(result.validation.standard_error)
        assert logged(tmp_path / str(count))[-1]["nelbo_standard_error"] == result.validation.standard_error
