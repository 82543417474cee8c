"""What `benchmarks.quality.conversion` records, and the table of it in docs/how_to/convert.md."""

from typing import Any

from benchmarks.markdown import table
from benchmarks.places import RESULTS
from benchmarks.record_schema import Schema, check_schema

RECORD = RESULTS / "conversion.json"
ARMS = ("random", "embeddings", "converted")
SCHEMA: Schema = {
    "source": str,
    "commit": str,
    **dict.fromkeys(("steps", "batch_size", "sequence_length", "layers", "hidden_size", "vocabulary"), int),
    **dict.fromkeys(("learning_rate", "unigram_entropy"), float),
    "arms": {
        arm: {"nelbo": float, "nelbo_standard_error": float, "seconds": float, "curve": [{"step": int, "nelbo": float}]}
        for arm in ARMS
    },
}


def conversion_table(record: dict[str, Any]) -> str:
    """Return the arms side by side, as Markdown."""
    check_schema(record, SCHEMA, "conversion")
    random = record["arms"]["random"]["nelbo"]
    titles = {"random": "random weights", "embeddings": "its embeddings", "converted": "all that is copied"}
    rows = []
    for arm in ARMS:
        figures = record["arms"][arm]
        curve = [f"{point['nelbo']:.3f}" for point in figures["curve"]]
        final = f"{figures['nelbo']:.3f} ± {figures['nelbo_standard_error']:.3f}"
        rows.append([titles[arm], *curve[::2], final, f"{random - figures['nelbo']:+.3f}"])
    steps = [f"step {point['step']}" for point in record["arms"]["random"]["curve"][::2]]
    return table(("start", *steps, "at the end, nats/token", "gain"), rows) + (
        f"\n{record['source']} ({record['layers']} layers of {record['hidden_size']}, V = {record['vocabulary']:,}), "
        f"{record['steps']} steps of {record['batch_size']} x {record['sequence_length']} tokens; unigram entropy "
        f"{record['unigram_entropy']:.3f}; during the run on fewer windows; one seed; commit {record['commit']}.\n"
    )
