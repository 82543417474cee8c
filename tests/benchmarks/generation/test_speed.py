"""Time of a forward pass of generation, and its parts."""

import json
import sys

import pytest

from benchmarks.generation import speed


def test_the_speed_benchmark_takes_turns_and_its_parts_sum_up(tmp_path, monkeypatch):
    command = "speed --batch 2 --length 16 --passes 4 --turns 3 --vocabulary 100 --branching 10"
    sizes = ["--hidden-size", "64", "--layers", "1", "--record", str(tmp_path / "speed.json")]
    monkeypatch.setattr(sys, "argv", [*command.split(), *sizes])
    speed.main()
    orders = json.loads((tmp_path / "speed.json").read_text("utf-8"))["orders"]
    assert tuple(orders) == speed.ORDERS
    for models in orders.values():
        assert list(models) == ["flat", "tree, child head", "tree, node head"]
        assert models["flat"]["ratio"] == 1
        for found in models.values():
            for name in ("milliseconds", "ratio"):
                assert 0 < found[f"{name}_lower_quartile"] <= found[name] <= found[f"{name}_upper_quartile"]
            assert all(found[f"{part}_milliseconds"] > 0 for part in speed.PARTS)
    monkeypatch.setattr(sys, "argv", [*command.replace("--length 16", "--length 1").split(), *sizes])
    with pytest.raises(ValueError, match="4 passes became"):
        speed.main()


def test_the_summary_of_turns_is_the_median_of_ratios():
    def turns(*seconds):
        return [{"all": 4 * some, "backbone": some, "head": 2 * some, "rest": some} for some in seconds]

    slow, fast = turns(0.004, 0.008, 0.012), turns(0.001, 0.004, 0.003)
    summary = speed.summary(fast, slow, passes=4)
    assert summary["ratio"] == pytest.approx(1 / 4)  # of 1/4, 1/2, 1/4
    assert summary["ratio_upper_quartile"] == pytest.approx(3 / 8)
    assert summary["milliseconds"] == pytest.approx(3) and summary["head_milliseconds"] == pytest.approx(1.5)
