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
