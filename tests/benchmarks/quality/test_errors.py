"""Error analyses of the models of the quality benchmark, on each of its texts."""

import shutil

import numpy as np
import pytest

from benchmarks.quality import errors
from benchmarks.quality.error_tables import check_errors, texts_table
from benchmarks.quality.packed_data import VALIDATION


def test_every_measured_text_has_its_analysis_of_the_best_models(packed, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "WINDOWS", 4)
    shutil.copytree(packed.folder, tmp_path / "data")
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    found = errors.analyses(tmp_path, "tdlm-child")
    assert set(found) == set(packed.measured) - {"selection"}
    for text, record in found.items():
        check_errors(record | {"command": "", "commit": "", "device": "", "versions": {}, "seed": 0})
        assert record["text"]["name"] == text and record["models"]["reference"]["tree_depth"] == 1
    shown = texts_table({name: one | {"device": "", "commit": "", "seed": 0} for name, one in found.items()})
    assert f"| {' | '.join(found)} |" in shown


@pytest.mark.parametrize("windows", [2, 10**6])
def test_stretches_are_pieces_of_the_text(packed, windows, monkeypatch):
    """In tokens, as many as asked for, or all of it."""
    monkeypatch.setattr(errors, "WINDOWS", windows)
    row, end = packed.rows[VALIDATION], packed.tokenizer.eos_token_id
    whole = packed.tokenizer.decode(row[row != end])
    pieces = errors.stretches(packed, VALIDATION, 16)
    tokens = packed.tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]
    expected = min(errors.STRETCHES * 16 * windows, np.count_nonzero(row != end))
    assert all(piece in whole for piece in pieces) and len(tokens) == pytest.approx(expected, rel=0.1)
