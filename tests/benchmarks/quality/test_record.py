"""One record of runs that compare: intervals, and ratios of paired windows."""

import json
import math

import numpy as np
import pytest
from helpers.contenders import COMPARED

from benchmarks.contenders import REFERENCE
from benchmarks.quality import record as quality_record


def test_learning_rates_are_chosen_by_windows_that_are_not_reported(packed, records):
    parts = [packed.measured_windows(name, 16, 8) for name in ("selection", "validation")]
    rows = [{tuple(row.tolist()) for row in part} for part in parts]
    assert not rows[0] & rows[1] and len(rows[0]) == len(rows[1]) == 8
    good = next(record for record in records if record["contender"] == REFERENCE)
    other = good["texts"] | {"selection": {"windows": [9.0]}, "validation": {"windows": [0.0]}}
    worse = good | {"learning_rate": 9.0, "texts": other}
    assert quality_record.best_runs([worse, good])[REFERENCE] is good


def test_intervals_are_over_blocks_and_cover_as_often_as_they_say():
    """Windows of a document share an offset: 95 % intervals over blocks cover the mean in 0.92..0.98 of 2,000 texts."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        offset = np.repeat(generator.normal(size=20), 20)
        low, high = quality_record.estimate(offset + generator.normal(size=400))["interval"]
        covered += low <= 0 <= high
    assert 0.92 <= covered / 2000 <= 0.98


def test_the_record_has_ratios_of_paired_windows(records, packed, tmp_path):
    quality_record.write_quality(tmp_path / "quality.json", records, packed.manifest, COMPARED)
    written = json.loads((tmp_path / "quality.json").read_text())
    assert set(written["best"]) == set(COMPARED)
    own = written["best"][REFERENCE]["ratios"]
    assert all(figures == {"ratio": 1.0, "interval": [1.0, 1.0]} for seed in own.values() for figures in seed.values())
    of = {(record["contender"], record["seed"]): record["texts"]["other"]["windows"] for record in records}
    assert set(written["best"]["tdlm-child"]["ratios"]) == {"0", "1"}
    for seed, figures in written["best"]["tdlm-child"]["ratios"].items():
        nats = [np.mean(of[name, int(seed)]) for name in ("tdlm-child", REFERENCE)]
        assert figures["other"]["ratio"] == pytest.approx(math.exp(nats[0] - nats[1]))
        low, high = figures["other"]["interval"]
        assert low < figures["other"]["ratio"] < high
    assert not any("windows" in figures for run in written["runs"] for figures in run["texts"].values())


def test_a_partial_record_names_the_contenders_that_have_no_run(records, packed, tmp_path):
    """And is otherwise that of the contenders that have one; a seed may not be missing."""
    wanted, short = (*COMPARED, "hdlm", "tree"), [one for one in records if one["seed"] == 0]
    whole, partial = tmp_path / "whole.json", tmp_path / "partial.json"
    quality_record.write_quality(whole, records, packed.manifest, COMPARED, short)
    of_others = [short[0] | {"contender": "tree"}]  # whose rates are not all tried
    quality_record.write_quality(partial, records, packed.manifest, wanted, [*short, *of_others], partial=True)
    first, second = (json.loads(path.read_text()) for path in (whole, partial))
    assert (first.pop("missing"), second.pop("missing")) == ([], ["hdlm", "tree"]) and first == second
    fewer = [one for one in records if (one["contender"], one["seed"]) != (REFERENCE, 1)]
    with pytest.raises(ValueError, match=r"missing: mdlm-lr0\.001-seed1; benchmarks"):
        quality_record.write_quality(partial, fewer, packed.manifest, wanted, partial=True)


def test_runs_that_do_not_compare_are_not_put_together(records, packed, tmp_path):
    def written(changed, contenders=COMPARED):
        quality_record.write_quality(tmp_path / "quality.json", changed, packed.manifest, contenders)

    first = records[0]
    with pytest.raises(ValueError, match="was not run under the protocol of the others: protocol differ"):
        written([first | {"protocol": first["protocol"] | {"steps": 9}}, *records[1:]])
    with pytest.raises(ValueError, match="commit of training differ"):
        written([first | {"trained": first["trained"] | {"commit": "0123"}}, *records[1:]])
    with pytest.raises(ValueError, match=r"missing: mdlm-lr0\.001-seed1; benchmarks"):
        written([record for record in records if (record["contender"], record["seed"]) != (REFERENCE, 1)])
    with pytest.raises(ValueError, match=r"missing: hdlm-lr0\.001-seed0"):
        written(records, (*COMPARED, "hdlm"))
    with pytest.raises(ValueError, match=r"not of the grid: ar-lr0\.003-seed0"):
        written([*records, next(one for one in records if one["contender"] == "ar") | {"learning_rate": 0.003}])
    with pytest.raises(ValueError, match="has 1 parameters, MDLM"):
        written([first | {"parameters": 1}, *records[1:]] if first["contender"] != REFERENCE else records[:0])
    with pytest.raises(ValueError, match="There are no finished runs"):
        written([])
    assert not (tmp_path / "quality.json").exists()
