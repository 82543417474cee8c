"""Where the default loses and gains against MDLM after the long training, on each of its texts: the same seed.

python -m benchmarks.quality.errors --seed 1   # benchmarks/results/errors_long_TEXT.json

The bound by kind of token and level, as `treediff analyze-errors` has it, on stretches spread over each text, given the
models of the best learning rates. Tokens are ordered by their frequency in the training text.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import REFERENCE
from benchmarks.places import RESULTS
from benchmarks.quality.packed_data import SELECTION, TRAINING, PackedData
from benchmarks.quality.record import Run, best_runs, read_runs
from benchmarks.quality.training import load_model
from modeling_treediff.cli.analyze_errors import describe
from modeling_treediff.evaluation import analyze_errors
from modeling_treediff.files.records import write_record

STRETCHES, WINDOWS = 8, 50  # of each text, of each stretch
SAMPLES = 4  # corruptions of a window


def main() -> None:
    """Analyse and write a record for each text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, help="of the trainings")
    options = parser.parse_args()
    for text, record in analyses(Path("runs", "quality", "long"), "tree", options.seed).items():
        write_record(RESULTS / f"errors_long_{text}.json", record, seed=0)


def analyses(folder: Path, contender: str, seed: int) -> dict[str, dict[str, Any]]:
    """Return by text what a contender loses and gains against MDLM.

    Args:
        folder: of a form, with the packed data and the runs.
        contender: its name.
        seed: of both trainings.

    """
    data, best = PackedData.load(folder / "data"), best_runs(read_runs(folder))
    runs = [Run(name, best[name]["learning_rate"], seed) for name in (contender, REFERENCE)]
    places = [folder / run.name / "model" for run in runs]
    models = [load_model(place) for place in places]
    compared = zip(("model", "reference"), places, models, strict=True)
    facts = {
        "counts_of": "the training text",
        "training_seed": seed,
        "models": {role: describe(str(place), model) for role, place, model in compared},
    }
    counts = np.bincount(data.rows[TRAINING], minlength=models[0].config.vocab_size)
    return {
        text: {"text": {"name": text}}
        | facts
        | analyze_errors(
            models[0],
            data.tokenizer,
            stretches(data, text, models[0].config.max_position_embeddings),
            reference=models[1],
            token_counts=counts,
            num_samples=SAMPLES,
        )
        for text in data.measured
        if text != SELECTION
    }


def stretches(data: PackedData, text: str, window: int) -> list[str]:
    """Return the documents of pieces spread evenly over a text, of as many tokens as some windows; all of a short text.

    Args:
        data: with the text.
        text: its name.
        window: tokens of a window.

    """
    row, length = data.rows[text], WINDOWS * window
    starts = np.linspace(0, max(0, len(row) - length), STRETCHES).astype(int)
    pieces = [row] if len(row) <= STRETCHES * length else [row[start : start + length] for start in starts]
    end = data.tokenizer.eos_token_id
    documents = [part.tolist() for piece in pieces for part in np.split(piece, np.flatnonzero(piece == end) + 1)]
    return [some for some in data.tokenizer.batch_decode(documents, skip_special_tokens=True) if some]


if __name__ == "__main__":
    main()
