"""The cache of tokens: made once, whole or not there, mapped and not held."""

import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from modeling_treediff.text import TokenWindows, cached_tokens, pack_windows
from modeling_treediff.text.cached_tokens import NAME, TokenRow

FACTS = {"text": "a", "number": 1}
COLUMNS = {"input_ids": np.dtype(np.uint16), "mask": np.dtype(np.uint8)}


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
            yield (
                "odd" if index % 2 else "even",
                {"input_ids": np.arange(index, index + 7), "mask": np.full(7, index % 2)},
            )


def cached(make, folder, facts=FACTS):
    return cached_tokens.cached_tokens(facts, COLUMNS, make, folder)


def expected(parity, pieces=10):
    return np.concatenate([np.arange(index, index + 7) for index in range(parity, pieces, 2)])


@pytest.fixture(params=[1, 20, 2**18])
def block_tokens(request, monkeypatch):
    """Each piece a block of its own, several in one, all in one."""
    monkeypatch.setattr(cached_tokens, "BLOCK_TOKENS", request.param)


@pytest.mark.usefixtures("block_tokens")
def test_content_comes_back_and_is_made_once(tmp_path):
    make = Maker()
    for _ in range(2):
        entry = cached(make, tmp_path)
        assert entry.counts == {"pieces": 10} and entry.parts.keys() == {"odd", "even"}
        for parity, part in enumerate(("even", "odd")):
            rows = entry.parts[part].columns
            assert np.array_equal(rows["input_ids"][:], expected(parity)) and rows["input_ids"][:].dtype == np.uint16
            assert (rows["mask"][:] == parity).all() and rows["mask"][:3].dtype == np.uint8
    assert make.calls == 1
    assert cached(make, tmp_path, FACTS | {"number": 2}) and make.calls == 2
    assert entry.parts["odd"].sha256 != entry.parts["even"].sha256


@pytest.mark.usefixtures("block_tokens")
def test_a_row_is_read_like_an_array(tmp_path):
    row, array = cached(Maker(), tmp_path).parts["even"].columns["input_ids"], expected(0)
    assert len(row) == len(array)
    for start in range(len(array)):
        for stop in (start + 1, start + 6, start + 20, None):
            assert np.array_equal(row[start:stop], array[start:stop])


def test_the_hash_of_a_part_does_not_depend_on_its_blocks(tmp_path, monkeypatch):
    hashes = set()
    for block_tokens in (1, 20, 2**18):
        monkeypatch.setattr(cached_tokens, "BLOCK_TOKENS", block_tokens)
        hashes.add(cached(Maker(), tmp_path / str(block_tokens)).parts["odd"].sha256)
    assert len(hashes) == 1


def test_tokens_are_mapped_and_not_held(tmp_path):
    """Opening an entry and reading within a block allocates nothing; the entry's file is mapped into memory."""
    cached(Maker(pieces=4000), tmp_path)
    before = pyarrow.total_allocated_bytes()
    row = cached(Maker(), tmp_path).parts["odd"].columns["input_ids"]
    part = row[5:5000]
    assert pyarrow.total_allocated_bytes() - before < part.nbytes  # but for the names of the parts and the index
    assert not part.flags.owndata and not part.flags.writeable
    [file] = tmp_path.rglob("*.arrow")
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines if line.endswith(str(file))]
    address = part.__array_interface__["data"][0]
    assert any(start <= address < end for start, end in ranges)


def test_a_failure_leaves_nothing_behind_and_is_told_as_it_was(tmp_path, caplog):
    make = Maker(fail_at=6)
    with pytest.raises(OSError, match="No space left on device"):
        cached(make, tmp_path)
    assert make.calls == 1 and not caplog.text  # that is no damaged entry
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".lock"}
    assert np.array_equal(cached(Maker(), tmp_path).parts["odd"].columns["input_ids"][:], expected(1))


def flip(file):
    """Change a bit of the tokens, of which the file has about as many bytes as of all else."""
    content = bytearray(file.read_bytes())
    place = content.index(np.arange(1, 8, dtype="<u2").tobytes())
    content[place + 4] ^= 1
    replace(file, bytes(content))


def replace(file, content):
    """A new file: what is mapped from the old one stays as it is."""
    file.unlink()
    file.write_bytes(content)


def smaller_count(file):
    """An index that says one token less, of both parts, each of which has 35."""
    content = file.read_bytes()
    assert content.count(b'"count": 35') == 4
    replace(file, content.replace(b'"count": 35', b'"count": 34'))


def info(file):
    return file.parent / "dataset_info.json"


@pytest.mark.parametrize(
    "damage",
    [flip, smaller_count, lambda file: replace(file, file.read_bytes()[:-300]), lambda file: replace(file, b""),
     lambda file: file.unlink(), lambda file: info(file).write_text("{"), lambda file: info(file).unlink()],
    ids=["a bit", "smaller count", "cut off", "empty", "gone", "info damaged", "info gone"],
)  # fmt: skip
def test_damage_is_seen_and_repaired(tmp_path, damage, caplog):
    make = Maker()
    cached(make, tmp_path)
    [file] = tmp_path.rglob("*.arrow")
    damage(file)
    has_info = info(file).exists()  # without it there is no entry
    entry = cached(make, tmp_path)
    assert make.calls == 2 and ("damaged" in caplog.text) == has_info
    assert np.array_equal(entry.parts["odd"].columns["input_ids"][:], expected(1))
    cached(make, tmp_path)
    assert make.calls == 2


def with_index(file, text):
    """Write another index into an entry, all else as it is."""
    with pyarrow.memory_map(str(file)) as source:
        table = pyarrow.ipc.open_stream(source).read_all()
    number = table.schema.get_field_index("index")
    column = pyarrow.array([*table.column(number).to_pylist()[:-1], text], table.schema.field(number).type)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.set_column(number, table.schema.field(number), column))
    replace(file, sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    "index",
    [None, "", "{", "[]", "null", "3", "{}", '{"parts": null, "counts": {}}', '{"parts": [], "counts": {}}',
     '{"parts": {"odd": 3}, "counts": {}}', '{"parts": {"odd": {"other": {}}}, "counts": {}}',
     '{"parts": {}, "counts": {}}', '{"parts": {}}', '{"parts": {}, "counts": {"pieces": "many"}}'],
)  # fmt: skip
def test_an_entry_with_any_other_index_is_made_again(tmp_path, index, caplog):
    make = Maker()
    cached(make, tmp_path)
    [file] = tmp_path.rglob("*.arrow")
    with_index(file, index)
    entry = cached(make, tmp_path)
    assert make.calls == 2 and f"in {tmp_path} are damaged" in caplog.text
    assert entry.counts == {"pieces": 10} and np.array_equal(entry.parts["odd"].columns["input_ids"][:], expected(1))


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"null", b'{"splits": 3}', b'{"features": []}'])
def test_an_entry_with_any_other_info_is_made_again(tmp_path, content, caplog):
    make = Maker()
    cached(make, tmp_path)
    [file] = tmp_path.rglob("*.arrow")
    info(file).write_bytes(content)
    cached(make, tmp_path)
    assert make.calls == 2 and "damaged" in caplog.text


def make_and_wait(folder):
    def make(counts):
        for number in range(10**6):
            yield "odd", {"input_ids": np.full(100, number), "mask": np.zeros(100, int)}
            if number == 100:
                (folder / "waiting").touch()
                time.sleep(600)

    cached_tokens.BLOCK_TOKENS = 500
    cached(make, folder / "cache")


def test_a_killed_run_leaves_no_entry(tmp_path):
    """Killed in the midst of writing blocks: the next run makes all, none of the killed one's tokens among them."""
    process = multiprocessing.get_context("fork").Process(target=make_and_wait, args=(tmp_path,))
    process.start()
    while not (tmp_path / "waiting").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert any(file.stat().st_size for file in tmp_path.rglob("*.arrow"))  # a beginning was written
    make = Maker()
    entry = cached(make, tmp_path / "cache")
    assert make.calls == 1 and np.array_equal(entry.parts["odd"].columns["input_ids"][:], expected(1))
    assert not list(tmp_path.rglob("*incomplete"))


def test_mapped_rows_are_pickled_by_name(tmp_path):
    """A worker that is not forked gets a few thousand bytes, whatever the corpus, and the same tokens."""
    cached(Maker(pieces=4000), tmp_path)
    row = cached(Maker(), tmp_path).parts["odd"].columns["input_ids"]
    windows = TokenWindows(pack_windows(row, 16))
    message = pickle.dumps(windows)
    assert len(message) < 3000 < row[:].nbytes
    copy = pickle.loads(message)
    assert isinstance(copy.input_ids.row, TokenRow) and np.array_equal(copy.input_ids[:], windows.input_ids[:])
    part = pickle.dumps(windows[3:5])
    assert len(part) < 3000 and np.array_equal(pickle.loads(part).input_ids, windows.input_ids[3:5])


def make_slowly(folder, results):
    def make(counts):
        with (folder / "made").open("a") as log:
            log.write("x")
        for index in range(20):
            time.sleep(0.01)
            yield "all", {"input_ids": np.full(5, index), "mask": np.zeros(5, int)}

    results.put(int(cached(make, folder / "cache").parts["all"].columns["input_ids"][:].sum()))


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
    cached(Maker(), None)
    assert [file.relative_to(tmp_path).parts[:2] for file in tmp_path.rglob("*.arrow")] == [("moved", NAME)]
