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
    lines = [json.dumps({"step": step, "loss": 1.5, "seconds": 0.1}) + "\n" for step in (1, 2, 3)]
    file.write_text("".join(lines) + '{"step": 4, "lo')
    drop_later_steps(file, 2)
    assert file.read_text() == "".join(lines[:2])
    drop_later_steps(tmp_path / "new.jsonl", 0)
    assert not (tmp_path / "new.jsonl").exists()


DAMAGED = [
    b"{", b"", b"\xff\xfe", b"null", b"[1, 2]", b"3", b'{"step": 3}', b'{"step": "3", "loss": 1, "seconds": 1}',
    b'{"step": 3, "loss": null, "seconds": 1}', b'{"step": 3, "loss": 1, "seconds": 1, "nelbo": 2.0}',
]  # fmt: skip


def test_lines_damaged_in_the_middle_are_left_out_and_the_file_is_set_aside(tmp_path, capsys):
    """The run goes on, measures its time and draws its curves without them."""
    tiny_run(tmp_path, max_steps=4, validate_every=2)
    file, aside = tmp_path / "metrics.jsonl", tmp_path / "damaged-metrics.jsonl"
    before = file.read_bytes().splitlines()
    damaged = b"\n".join([before[0], *DAMAGED, *before[1:]]) + b"\n"
    file.write_bytes(damaged)
    aside.write_text("of an earlier damage")
    *_, result = tiny_run(tmp_path, resume=True, max_steps=5, validate_every=2, draw=True)
    assert file.read_bytes().splitlines()[:4] == before and aside.read_bytes() == damaged
    said = "metrics.jsonl has 10 damaged lines: going on without them, the file as it was is damaged-metrics.jsonl."
    assert said in capsys.readouterr().err
    assert len(logged(tmp_path)) == 5 and (tmp_path / "curves.png").exists() and result.seconds > 0


def test_a_log_that_is_gone_begins_anew(tmp_path):
    tiny_run(tmp_path, max_steps=2)
    (tmp_path / "metrics.jsonl").unlink()
    *_, result = tiny_run(tmp_path, resume=True, max_steps=2, draw=True)
    assert result.seconds == 0
    tiny_run(tmp_path, resume=True, max_steps=3)
    assert [line["step"] for line in logged(tmp_path)] == [3]


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


def test_a_log_that_is_a_folder_is_set_aside(tmp_path, capsys):
    tiny_run(tmp_path, max_steps=2)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    tiny_run(tmp_path, resume=True, max_steps=3)
    assert [line["step"] for line in logged(tmp_path)] == [3] and (tmp_path / "damaged-metrics.jsonl").is_dir()
    assert "metrics.jsonl is a folder, now damaged-metrics.jsonl" in capsys.readouterr().err
