"""A damaged record is not shown."""

import json
import math

import pytest

from benchmarks.generation import figures


def test_a_damaged_record_is_not_shown(run):
    whole = run("--samplers", "random", passes=("2",))
    check = figures.check_record

    def damaged(change):
        record = json.loads(json.dumps(whole))
        change(record)
        return record

    cases = {
        r"points\[0\] lacks sampling_dtype": lambda record: record["points"][0].pop("sampling_dtype"),
        "nats_per_token should be int | float, is None": lambda record: record["points"][0]["judge"].update(
            nats_per_token=None
        ),
        "entropy is no finite number": lambda record: record["points"][0]["statistics"].update(entropy=math.nan),
        "points is empty": lambda record: record["points"].clear(),
        "a point twice": lambda record: record["points"].append(record["points"][0]),
        "says nothing about other": lambda record: record["points"][0].update(model="other"),
        "no reference called real text": lambda record: record["references"].pop(0),
    }
    check(whole)
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message.replace("|", r"\|")):
            check(damaged(change))


def test_at_equal_entropy_nats_lie_on_the_line_through_the_temperatures():
    assert figures.at(2.0, [(3.0, 8.0), (1.0, 4.0), (0.0, 1.0)]) == 6.0
    assert figures.at(1.0, [(1.0, 4.0), (3.0, 8.0)]) == 4.0
    assert figures.at(0.9, [(1.0, 4.0), (3.0, 8.0)]) is None and figures.at(1.0, [(1.0, 4.0)]) is None
    ends = figures.at(0.96, [(1.0, 4.0), (3.0, 8.0)]), figures.at(3.04, [(1.0, 4.0), (3.0, 8.0), (0.0, 0.0)])
    assert ends == pytest.approx((3.92, 8.08)) and figures.at(3.1, [(1.0, 4.0), (3.0, 8.0)]) is None


def test_the_table_at_equal_entropy_has_a_cell_for_each_model_and_kind_of_sampler(run):
    samplers = ("random", "random, temperature 0.8", "random, remasking", "confidence")
    record = run("--samplers", *samplers, passes=("4",))
    drawn = [point for point in record["points"] if point["sampler"] in samplers[:2]]
    for entropy, point in enumerate(drawn):  # texts of eight tokens are all equally varied
        point["statistics"]["entropy"] = float(entropy)
    for reference in record["references"]:
        reference["statistics"]["entropy"] = 0.5
    header, _, line, *_ = figures.equal_entropy_table(record, steps=4).splitlines()
    assert header == "| model | random | confidence | random, remasking |"
    nats = [point["judge"]["nats_per_token"] for point in drawn]
    passes = max(point["forward_passes"] for point in drawn)
    assert line.split(" | ")[1:] == [f"{sum(nats) / 2:.2f}, {passes:.0f} passes", "–", "– |"]
