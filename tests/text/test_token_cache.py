"""The cache of tokens: made once, whole or not there, mapped and not held."""

import multiprocessing
import pickle
import time

import numpy as np
import pytest

from modeling_treediff.text import TokenWindows
from modeling_treediff.text.token_cache import cached, default_cache_folder

FACTS = {"text": "a", "number": 1}


class Maker:
    """Yields known content and counts how often it is asked."""

    def __init__(self, pieces=10, fail_at=None):
        self.calls, self.pieces, self.fail_at = 0, pieces, fail_at

    def __call__(self, counts):
        self.calls += 1
        for index in range(self.pieces):
            if index == self.fail_at:
                raise OSError("No space left on device")
            counts["pieces"] += 1
            columns = {"input_ids": np.arange(index, index + 7, dtype=np.uint16), "mask": np.full(7, index % 2, "u1")}
            yield "odd" if index % 2 else "even", columns


def expected(parity):
    return np.concatenate([np.arange(index, index + 7) for index in range(parity, 10, 2)])


def test_content_comes_back_and_is_made_once(tmp_path):
    make = Maker()
    for _ in range(2):
        entry = cached(FACTS, make, tmp_path)
        assert entry.counts == {"pieces": 10} and entry.parts.keys() == {"odd", "even"}
        for parity, part in enumerate(("even", "odd")):
            rows = entry.parts[part].columns
            assert np.array_equal(rows["input_ids"], expected(parity)) and rows["input_ids"].dtype == np.uint16
            assert (rows["mask"] == parity).all() and isinstance(rows["mask"], np.memmap)
    assert make.calls == 1
    assert cached(FACTS | {"number": 2}, make, tmp_path) and make.calls == 2
    assert entry.parts["odd"].sha256 != entry.parts["even"].sha256


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(OSError, match="No space"):
        cached(FACTS, Maker(fail_at=6), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] in ([".lock"], [])
    assert np.array_equal(cached(FACTS, Maker(), tmp_path).parts["odd"].columns["input_ids"], expected(1))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [flip, lambda file: file.write_bytes(file.read_bytes()[:-3]), lambda file: file.unlink(),
     lambda file: (file.parent / "index.json").write_text("{"), lambda file: (file.parent / "index.json").unlink()],
    ids=["a bit", "cut off", "gone", "index damaged", "index gone"],
)  # fmt: skip
def test_damage_is_seen_and_repaired(tmp_path, damage, caplog):
    make = Maker()
    cached(FACTS, make, tmp_path)
    damage(next(tmp_path.rglob("odd.input_ids.bin")))
    entry = cached(FACTS, make, tmp_path)
    assert make.calls == 2 and "damaged" in caplog.text
    assert np.array_equal(entry.parts["odd"].columns["input_ids"], expected(1))


def test_what_a_kill_left_is_overwritten(tmp_path):
    cached(FACTS, Maker(), tmp_path)
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    folder.rename(tmp_path / f".{folder.name}.partial")
    flip(next(tmp_path.rglob("odd.input_ids.bin")))
    assert np.array_equal(cached(FACTS, Maker(), tmp_path).parts["odd"].columns["input_ids"], expected(1))
    assert not list(tmp_path.glob(".*.partial"))


def test_mapped_rows_are_pickled_by_name(tmp_path):
    """A worker that is not forked gets a few hundred bytes, whatever the corpus, and the same tokens."""
    cached(FACTS, Maker(pieces=4000), tmp_path)
    row = cached(FACTS, Maker(), tmp_path).parts["odd"].columns["input_ids"]
    windows = TokenWindows(row[: len(row) // 16 * 16].reshape(-1, 16))
    for part in (windows, windows[3:5]):
        message = pickle.dumps(part)
        assert len(message) < 600
        assert np.array_equal(pickle.loads(message).input_ids, part.input_ids)
    assert np.array_equal(pickle.loads(pickle.dumps(row[1:9:2])), row[1:9:2])
    assert np.array_equal(pickle.loads(pickle.dumps(row[:8] + 1)), row[:8] + 1)


def make_slowly(folder, results):
    def make(counts):
        with (folder / "made").open("a") as log:
            log.write("x")
        for index in range(20):
            time.sleep(0.01)
            yield "all", {"input_ids": np.full(5, index)}

    results.put(int(cached({}, make, folder / "cache").parts["all"].columns["input_ids"].sum()))


def test_processes_that_start_at_once_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=make_slowly, args=(tmp_path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [950] * 4
    for process in processes:
        process.join()
    assert (tmp_path / "made").read_text() == "x"


def test_the_folder_is_that_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "moved")
    assert default_cache_folder() == tmp_path / "moved" / "modeling_treediff"
