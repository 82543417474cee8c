"""Error analyses of the models of the quality benchmark, on each of its texts."""

import shutil
from hashlib import sha256

import numpy as np
import pytest

from benchmarks.contenders import REFERENCE
from benchmarks.quality import errors
from benchmarks.quality.error_tables import check_errors, texts_table
from benchmarks.quality.packed_data import VALIDATION
from benchmarks.quality.record import Run


@pytest.mark.parametrize("seed", [0, 1])
def test_every_measured_text_has_its_analysis_of_the_best_models(packed, runs, tmp_path, monkeypatch, seed):
    monkeypatch.setattr(errors, "WINDOWS", 4)
    shutil.copytree(packed.folder, tmp_path / "data")
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    found = errors.analyses(tmp_path, "tdlm-child", seed)
    assert set(found) == set(packed.measured) - {"selection"}
    compared = {"model": "tdlm-child", "reference": REFERENCE}
    weights = {
        role: runs / Run(name, 1e-3, seed).name / "model" / "model.safetensors" for role, name in compared.items()
    }
    for text, record in found.items():
        check_errors(record | {"command": "", "commit": "", "device": "", "versions": {}, "seed": 0})
        assert record["text"]["name"] == text and record["models"]["reference"]["tree_depth"] == 1
        for role, file in weights.items():
            assert record["models"][role]["weights_sha256"] == {file.name: sha256(file.read_bytes()).hexdigest()}
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
