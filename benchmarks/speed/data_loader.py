"""Tokens per second of the data loader alone: windows, shuffling, corruption, collation.

python -m benchmarks.speed.data_loader
"""

import argparse
import time
from pathlib import Path

from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from benchmarks.places import RESULTS, SAMPLE
from modeling_treediff import LevelSchedule, TreeDiffConfig, VocabularyTree
from modeling_treediff.files.records import write_record
from modeling_treediff.text import Corpus, TokenWindows
from modeling_treediff.training import DataOptions, DiffusionCollator, StreamedWindows, open_training_data

RESULT = RESULTS / "loader_speed.json"
SECONDS = 5.0  # of a measurement, after the first batches


def tokens_per_second(
    data: TokenWindows | StreamedWindows, collator: DiffusionCollator, batch_size: int, workers: int
) -> float:
    """Take batches for `SECONDS`, after a start that fills the workers' queues."""
    loader = iter(DataLoader(data.dataset(0, 10**9, 0), batch_size, collate_fn=collator, num_workers=workers))
    for _ in range(20):
        next(loader)
    taken, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        taken += next(loader)["input_ids"].numel()
    return taken / (time.perf_counter() - started)


def main() -> None:
    """Measure all settings on the embedded sample and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16, help="windows (default %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULT, help="(default %(default)s)")
    options = parser.parse_args()
    tree, tokenizer = VocabularyTree.from_pretrained(SAMPLE), AutoTokenizer.from_pretrained(SAMPLE)
    collator = DiffusionCollator(tree, LevelSchedule.from_config(TreeDiffConfig.from_tree(tree)))
    rows = []
    for sequence_length in (64, 512):
        for streaming, workers in ((False, 0), (False, 1), (False, 2), (True, 0), (True, 1)):
            settings = DataOptions(sequence_length, streaming=streaming)
            validation = Corpus(SAMPLE / "validation.txt.xz")
            data, _ = open_training_data(Corpus(SAMPLE / "train.txt.xz"), tokenizer, settings, validation)
            speed = tokens_per_second(data, collator, options.batch_size, workers)
            rows.append(
                {
                    "sequence_length": sequence_length,
                    "streaming": streaming,
                    "workers": workers,
                    "tokens_per_second": speed,
                }
            )
            print(
                f"{sequence_length:4d} {'streamed' if streaming else 'cached':8}  {workers} workers  {speed:12,.0f}/s"
            )
    write_record(options.output, {"batch_size": options.batch_size, "rows": rows}, seed=0)


if __name__ == "__main__":
    main()
