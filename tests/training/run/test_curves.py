"""The picture of a run."""

import sys

import pytest
from helpers.tiny_run import logged, tiny_run

from modeling_treediff.training.run.curves import draw_curves


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
    steps[-1]["nelbo_standard_error"] = None
    draw_curves(steps, tmp_path / "unknown_error.png")
    draw_curves(steps[:1], tmp_path / "one.png")  # neither validation nor a second point


def test_a_missing_library_costs_the_picture_and_nothing_else(tmp_path, monkeypatch, capfd):

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    tiny_run(tmp_path, draw=True)
    assert "needs matplotlib: pip install matplotlib" in capfd.readouterr().err
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "curves.png").exists()
