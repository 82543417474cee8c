"""What `benchmarks.quality.conversion` records, and the table of it in docs/how_to/convert.md."""

from typing import Any

from benchmarks.markdown import table
from benchmarks.places import RESULTS
from benchmarks.record_schema import Schema, check_schema

RECORD = RESULTS / "conversion.json"
RECORDS = (RECORD, *(RESULTS / f"conversion_blocks{size}.json" for size in ("", "_whole")))  # of the guide
ARMS = {"random": "random weights", "embeddings": "its embeddings", "converted": "all that is copied"}
BLOCKS = " in blocks"  # what the name of an arm ends with that writes in blocks
SCHEMA: Schema = {
    "source": str,
    "commit": str,
    **dict.fromkeys(("steps", "batch_size", "sequence_length", "layers", "hidden_size", "vocabulary"), int),
    **dict.fromkeys(("learning_rate", "unigram_entropy"), float),
    "arms": dict,
}
ARM: Schema = {
    **dict.fromkeys(("nelbo", "nelbo_standard_error", "seconds"), float),
    "curve": [{"step": int, "nelbo": float}],
}


def conversion_table(record: dict[str, Any]) -> str:
    """Return the arms side by side, as Markdown; gains are over random weights of the same kind."""
    check_schema(record, SCHEMA, "conversion")
    starts = ["random" + BLOCKS * arm.endswith(BLOCKS) for arm in record["arms"]]
    check_schema(record["arms"], dict.fromkeys(["random", *starts, *record["arms"]], ARM), "conversion.arms")
    rows = []
    for (arm, figures), start in zip(record["arms"].items(), starts, strict=True):
        title = ARMS[arm.removesuffix(BLOCKS)]
        if arm.endswith(BLOCKS):
            title += f", in blocks of {record['block_size']}"
        curve = [f"{point['nelbo']:.3f}" for point in figures["curve"]]
        final = f"{figures['nelbo']:.3f} ± {figures['nelbo_standard_error']:.3f}"
        rows.append([title, *curve[::2], final, f"{record['arms'][start]['nelbo'] - figures['nelbo']:+.3f}"])
    steps = [f"step {point['step']}" for point in record["arms"]["random"]["curve"][::2]]
    return table(("start", *steps, "at the end, nats/token", "gain over random weights"), rows) + (
        f"\n{record['source']} ({record['layers']} layers of {record['hidden_size']}, V = {record['vocabulary']:,}), "
        f"{record['steps']} steps of {record['batch_size']} x {record['sequence_length']} tokens; unigram entropy "
        f"{record['unigram_entropy']:.3f}; ± is one standard error; during the run on fewer windows; one seed; commit "
        f"{record['commit']}.\n"
    )
