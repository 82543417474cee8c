"""Packed texts and finished runs of the quality benchmark, made once."""

import numpy as np
import pytest
from helpers.contenders import TINY
from helpers.processes import SAMPLE

from benchmarks.contenders import REFERENCE
from benchmarks.quality import packed_data, training
from benchmarks.quality import record as quality_record

RUNS = ((REFERENCE, 0), ("tdlm-child", 0), ("ar", 0), (REFERENCE, 1), ("tdlm-child", 1))


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """A text of a few thousand tokens, its trees, and another text for zero-shot."""
    folder = tmp_path_factory.mktemp("packed")
    generator = np.random.default_rng(0)
    words = ["state", "union", "people", "war", "peace", "government", "the", "of", "and", "to"]
    for name in ("text", "held_out", "other"):
        documents = [" ".join(generator.choice(words, 60)) for _ in range(20)]
        (folder / f"{name}.txt").write_text("\n\n".join(documents))
    texts = [folder / f"{name}.txt" for name in ("text", "held_out", "other")]
    packed_data.pack(folder / "data", str(SAMPLE), texts[:1], texts[1], texts[2:], (2, 3))
    return packed_data.PackedData.load(folder / "data")


@pytest.fixture(scope="session")
def runs(packed, tmp_path_factory):
    """MDLM, TDLM and GPT-2 after a few steps, and a second seed of the first two."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in RUNS:
        run = quality_record.Run(name, 1e-3, seed)
        training.run(name, packed, TINY, folder / run.name, 1e-3, seed)
    return folder


@pytest.fixture
def records(runs):
    return quality_record.read_runs(runs)
