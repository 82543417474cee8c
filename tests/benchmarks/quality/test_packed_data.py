"""Packed texts are kept apart: what is trained on is not measured on."""

import numpy as np
import pytest
from helpers.processes import SAMPLE

from benchmarks.quality import packed_data


def test_a_text_is_never_both_trained_on_and_kept_for_zero_shot(tmp_path):
    kept, copy, other = (tmp_path / f"{name}.txt" for name in ("kept", "copy", "other"))
    kept.write_text("the same words")
    copy.write_text("the same words")
    other.write_text("different words")
    packed_data.check_apart([other], [kept])
    for trained in (kept, copy):
        with pytest.raises(ValueError, match=r"kept\.txt is a zero-shot text"):
            packed_data.pack(tmp_path / "data", str(SAMPLE), [other, trained], None, [kept], (2,))
    assert not (tmp_path / "data").exists()


def test_zero_shot_texts_have_names_of_their_own(tmp_path):
    names = ("text.txt", "training.txt", "other.txt", "other.md")
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_text(f"words of {path.name}")
    text, reserved, *twice = paths
    with pytest.raises(ValueError, match="names of their own, other than training"):
        packed_data.pack(tmp_path / "data", str(SAMPLE), [text], None, [reserved], (2,))
    with pytest.raises(ValueError, match="names of their own, other than other"):
        packed_data.pack(tmp_path / "data", str(SAMPLE), [text], None, twice, (2,))
    with pytest.raises(ValueError, match="holds no packed texts: make them with benchmarks.quality.perplexity pack"):
        packed_data.PackedData.load(tmp_path / "data")


def test_document_division_are_joined_and_nothing_is_lost(tmp_path):
    documents = ["a" * 6000, "b" * 100, "c" * 4900, "d" * 4900, "e" * 99, "f" * 10, "g" * 10]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    joined = packed_data.long_documents(tmp_path / "text.txt")
    assert [len(one) for one in joined] == [6000, 5002, 5013, 10]
    assert "\n\n".join(joined) == "\n\n".join(documents)


def test_shared_runs_of_tokens_are_those_that_a_search_finds():
    generator = np.random.default_rng(0)
    trained, row = generator.integers(0, 5, 3000), generator.integers(0, 5, 400)
    row[100:150] = trained[1000:1050]
    known = {tuple(trained[start : start + 13]) for start in range(2988)}
    found = [tuple(row[start : start + 13]) in known for start in range(388)]
    assert sum(found) >= 38
    assert packed_data.shared_tokens(trained, row) == pytest.approx(np.mean(found))
    assert packed_data.shared_tokens(trained, row[:5]) == 0.0
