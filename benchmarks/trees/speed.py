"""Time and memory of building trees, and how both grow with the vocabulary and the text.

python -m benchmarks.trees.speed --embeddings gpt2.safetensors --texts FILE ... --tokenizer FOLDER

Every run is a fresh process, and its wall time and peak resident memory are those of the whole process, imports and
reading included; what is reported is the median of the runs. Vocabularies smaller than the embeddings are their first
rows; larger ones repeat them with Gaussian noise of a third of each column's standard deviation, so that they keep
clusters of natural shape. Texts are repeated document by document, in random order, to the length wanted.
"""

import argparse
import cProfile
import json
import pstats
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks.places import RESULTS
from modeling_treediff.building import build_tree, count_text, load_embeddings
from modeling_treediff.building.balanced import smallest_branching
from modeling_treediff.files.records import write_record
from modeling_treediff.text import PIECE_CHARACTERS, encode_documents, iterate_documents, read_documents
from modeling_treediff.text.tree_tokenizer import tokenizer_size

RESULT = RESULTS / "tree_speed.json"
ROWS = 50_257
VOCABULARIES = (25_000, ROWS, 100_000, 200_000)
MEGABYTES = (25, 50, 100)
FEW_PAIRS = 2**18  # fewer than the texts have: the table fills up
PARTS = {
    "auction": "auction",
    "seeding": "_seed_centroids",
    "centroids": "centroids",
    "all clustering": "balanced_kmeans",
}


def main() -> None:
    """Measure everything, or, in a process of its own, do one thing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, required=True, help="matrix of 50,257 rows")
    parser.add_argument("--texts", nargs="+", type=Path, required=True, help="texts to repeat")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub id")
    parser.add_argument("--runs", type=int, default=3, help="runs per figure (default %(default)s)")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        what, file = args.one
        print(json.dumps(one(what, file, args.tokenizer)))
        return
    with tempfile.TemporaryDirectory() as folder:
        trees = [measure("tree", matrix(args.embeddings, size, Path(folder)), args) for size in VOCABULARIES]
        texts = [
            measure(what, text(args.texts, size, Path(folder)), args)
            for what, sizes in (("count", MEGABYTES), ("count-full", MEGABYTES[1:]))
            for size in sizes
        ]
    dimensions = load_embeddings(args.embeddings, ROWS).shape[1]
    facts = {"runs": args.runs, "dimensions": dimensions, "depth": 2, "trees": trees, "texts": texts}
    write_record(RESULT, facts, seed=0)


def measure(what: str, file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run one thing several times in fresh processes; return medians."""
    command = [sys.executable, "-m", "benchmarks.trees.speed", *sys.argv[1:], "--one", what, str(file)]
    runs = []
    for _ in range(args.runs):
        start = time.perf_counter()
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(ran.stdout.splitlines()[-1]) | {"wall_seconds": time.perf_counter() - start})
        print(what, file.name, runs[-1], flush=True)
    file.unlink()
    return {name: round(median(run[name] for run in runs), 3) for name in runs[0]}


def one(what: str, file: str, tokenizer: str) -> dict[str, float]:
    """Build a tree or count a text; return its size, its seconds by part and the peak memory of this process."""
    if what == "tree":
        facts = build(Path(file))
    else:
        facts = count(Path(file), tokenizer, **({"max_pairs": FEW_PAIRS} if what == "count-full" else {}))
    return facts | {"peak_gigabytes": peak_gigabytes()}


def peak_gigabytes() -> float:
    """Return the peak resident memory of this process: the kernel's own mark, as getrusage also knows the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def build(file: Path) -> dict[str, float]:
    """Build a tree of depth 2 from a saved matrix."""
    points, profile = np.load(file), cProfile.Profile()
    branching = smallest_branching(len(points), 2)
    profile.runcall(build_tree, points, branching, 2)
    seconds = {f"{part}_seconds": cumulative(profile, function) for part, function in PARTS.items()}
    return {"tokens": len(points), "branching": branching} | seconds


def cumulative(profile: cProfile.Profile, function: str) -> float:
    """Return the seconds spent in a function of `building`, calls from it included."""
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    return sum(figures[3] for (file, _, name), figures in stats.items() if name == function and "building" in file)


def count(file: Path, tokenizer: str, **limit: int) -> dict[str, float]:
    """Tokenise a text and count neighbours, as build_tree.py does, or in a table too small for the text."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    documents = iterate_documents(file, max_characters=PIECE_CHARACTERS)
    counts = count_text(encode_documents(loaded, documents), tokenizer_size(loaded), **limit)
    return {
        "megabytes": file.stat().st_size / 1e6,
        "tokens": int(counts.token_counts.sum()),
        "distinct_pairs": counts.follows.nnz,
        "dropped": counts.dropped,
        "largest_error": counts.largest_error,
        "max_pairs": limit.get("max_pairs", 2**24),
    }


def matrix(embeddings: Path, size: int, folder: Path) -> Path:
    """Write a matrix with this number of rows."""
    rows = load_embeddings(embeddings, ROWS)[:size]
    generator = np.random.default_rng(0)
    copies = [rows]
    while sum(map(len, copies)) < size:
        copies.append(rows + generator.normal(size=rows.shape).astype(np.float32) * rows.std(axis=0) / 3)
    file = folder / f"{size}.npy"
    np.save(file, np.concatenate(copies)[:size])
    return file


def text(sources: Iterable[Path], megabytes: int, folder: Path) -> Path:
    """Write a text of this size (megabytes) from the documents of the sources."""
    documents = [document for source in sources for document in read_documents(source)]
    shuffled, written = random.Random(0), 0
    file = folder / f"{megabytes}MB.txt"
    with file.open("wb") as stream:
        while written < megabytes * 1_000_000:
            shuffled.shuffle(documents)
            for document in documents:
                written += stream.write(document.encode() + b"\n\n")
                if written >= megabytes * 1_000_000:
                    break
    return file


if __name__ == "__main__":
    main()
