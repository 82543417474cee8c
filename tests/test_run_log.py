"""What is logged arrives: in the lines of JSON, in TensorBoard, in the picture."""

import json

import pytest
from tiny_run import logged, tiny_run

from modeling_treediff.training.curves import draw_curves
from modeling_treediff.training.run_log import drop_later_steps


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
    assert (tmp_path / "new.jsonl").read_text() == ""


def test_the_picture_is_a_png_of_the_curves(tmp_path):
    pytest.importorskip("matplotlib")
    tiny_run(tmp_path / "run", validate_every=2, draw=True)
    picture = (tmp_path / "run" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    steps = logged(tmp_path / "run")
    for line in steps:
        line["loss"] *= 1.5
    draw_curves(steps, tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != picture
    draw_curves(steps[:1], tmp_path / "one.png")  # neither validation nor a second point


def test_a_missing_library_costs_the_picture_and_nothing_else(tmp_path, monkeypatch, capfd):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    tiny_run(tmp_path, draw=True)
    assert "needs matplotlib: pip install matplotlib" in capfd.readouterr().err
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "curves.png").exists()
