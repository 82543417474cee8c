"""Error analyses of two models against one other, side by side."""

import copy
import json

import pytest

from benchmarks.places import RESULTS
from benchmarks.quality.error_tables import texts_table, unseen_errors_table


def test_two_trees_are_compared_with_the_same_other_model_alone():
    before = json.loads((RESULTS / "errors_long_validation.json").read_text(encoding="utf-8"))
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


def test_texts_stand_side_by_side_and_what_loses_is_named_with_its_levels():
    one = json.loads((RESULTS / "errors_long_validation.json").read_text(encoding="utf-8"))
    for row in one["rows"]:
        row["difference"]["total"]["interval"] = [-1.0, -0.5]
    other = copy.deepcopy(one)
    assert "No group of tokens loses" in texts_table({"one": one, "other": other})
    row = next(row for row in other["rows"] if row["group"] == "digit")
    row["difference"]["total"] |= {"value": 0.5, "interval": [0.25, 0.75]}
    row["difference"]["levels"][0] |= {"value": 0.7, "interval": [0.5, 0.9]}
    row["difference"]["levels"][1] |= {"value": -0.2, "interval": [-0.3, -0.1]}
    lines = texts_table({"one": one, "other": other}).splitlines()
    (lost,) = (line for line in lines if line.startswith("| other"))
    assert "| digit | " in lost and lost.endswith("| +0.500 ± 0.250 | +0.700 ± 0.200 | -0.200 ± 0.100 |")
    assert len([line for line in lines if line.startswith(("| tenth", "| all"))]) == 11
    row["windows"] = 1  # too few to say
    assert "No group of tokens loses" in texts_table({"one": one, "other": other})
    (gone,) = (row for row in other["rows"] if row["group"] == "tenth 2")  # of which a text has no token
    without = other | {"rows": [row for row in other["rows"] if row is not gone and row["group"] != "digit"]}
    for texts in ({"one": one, "other": without}, {"other": without, "one": one}):
        (line,) = (line for line in texts_table(texts).splitlines() if line.startswith("| tenth 2 "))
        assert sum(not cell.strip() for cell in line.strip("|").split("|")) == 1
    with pytest.raises(ValueError, match="differ in seed: make all alike"):
        texts_table({"one": one, "other": other | {"seed": 9}})
