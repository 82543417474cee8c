"""Error analyses of two models against one other, side by side."""

import copy
import json

import pytest

from benchmarks.places import RESULTS
from benchmarks.quality.error_tables import unseen_errors_table


def test_two_trees_are_compared_with_the_same_other_model_alone():
    before = json.loads((RESULTS / "errors_default.json").read_text(encoding="utf-8"))
    now = copy.deepcopy(before)
    row = next(row for row in now["rows"] if row["group"] == "tenth 10 (rarest)")
    row["difference"]["total"] |= {"value": -1.5, "interval": [-1.75, -1.25]}
    lines = unseen_errors_table(before, now).splitlines()
    (rarest,) = (line for line in lines if line.startswith("| tenth 10"))
    assert rarest.endswith("| -1.500 ± 0.250 |") and len([line for line in lines if line.startswith("|")]) == 2 + 11
    for change in ({"text": {"name": "other.txt"}}, {"seed": 9}, {"num_tokens": 1}):
        with pytest.raises(ValueError, match=f"differ in {next(iter(change))}: make both alike"):
            unseen_errors_table(before, now | change)
    now["models"]["reference"]["weights_sha256"] = {"model.safetensors": "0"}
    with pytest.raises(ValueError, match="different models of reference"):
        unseen_errors_table(before, now)
