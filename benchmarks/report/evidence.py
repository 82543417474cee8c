"""What the records say: benchmarks/README.md, section by section and in short, and README.md's first table."""

import math
from typing import Any

from benchmarks.contenders import AUTOREGRESSIVE, REFERENCE
from benchmarks.generation import figures as generation_figures
from benchmarks.markdown import marks, table
from benchmarks.matched_models import BUDGET, DEPTH
from benchmarks.memory import tables as memory_tables
from benchmarks.memory.peaks import PRECISION
from benchmarks.memory.peaks import RECORDS as MEMORY_RECORDS
from benchmarks.places import FIGURES, RESULTS, ROOT
from benchmarks.quality import ablation_table, error_tables, trade_off_table
from benchmarks.quality import tables as quality_tables
from benchmarks.quality.packed_data import VALIDATION
from benchmarks.record_schema import Schema, read_record
from benchmarks.speed import tables as speed_tables
from modeling_treediff.evaluation.error_figure import draw_errors
from modeling_treediff.evaluation.error_tables import summary
from modeling_treediff.hub.records import TRAINING_RECORD

ERRORS, DEFAULT_ERRORS = RESULTS / "errors.json", RESULTS / "errors_default.json"
UNSEEN_ERRORS = RESULTS / "errors_unseen_before.json", RESULTS / "errors_unseen.json"
SCHEDULES = RESULTS / "generation_schedules.json"
CHILD, NODE, CHUNKED, DEFAULT = "tdlm-child", "tdlm-node", "mdlm-chunked", "tree-binomial"
FIRST = {  # of README.md
    REFERENCE: "MDLM",
    CHUNKED: "MDLM, loss in chunks",
    "hdlm": "HDLM",
    AUTOREGRESSIVE: "GPT-2",
    DEFAULT: "**tree, node head** (ours)",
}
SPEED_SIZE = "quality"  # of `benchmarks.speed.throughput`: the models of `benchmarks.quality.perplexity`

REFERENCE_MODEL = ROOT / "examples" / "classics-7m"
REFERENCE_SCHEMA: Schema = {
    **dict.fromkeys(("num_hidden_layers", "hidden_size", "tokens_seen", "sequence_length", "validation_tokens"), int),
    **dict.fromkeys(("nelbo", "unigram_entropy", "training_seconds"), float),
    **dict.fromkeys(("weights_dtype", "commit"), str),
    "parameters": dict,
    "weights_sha256": {"model.safetensors": str},
}
JUDGED = ("judged_reference", "judged_quickstart")

Record = dict[str, Any]


def sections() -> dict[tuple[str, str], str]:
    """Return what stands between which marks of the page."""
    quality, memory = quality_tables.read_quality("cpu"), memory_tables.read_memory()
    embeddings = ablation_table.read_part("embeddings")
    contents = {
        "quality table": quality_tables.main_table(quality),
        "zero-shot table": quality_tables.zero_shot_table(quality),
        "grid table": quality_tables.grid_table(quality),
        "reference tables": reference_tables(),
        "memory tables": memory_tables.peaks_table(memory) + "\n" + memory_tables.ratios_table(memory),
        "resident table": memory_tables.resident_table(memory_tables.read_memory(MEMORY_RECORDS["cpu"])),
        "speed tables": speed_tables.speed_tables(speed_tables.read_speed()),
        "error tables": error_tables.errors_section(read_record(ERRORS, error_tables.ERRORS_SCHEMA)),
        "default errors": error_tables.errors_in_short(read_record(DEFAULT_ERRORS, error_tables.ERRORS_SCHEMA)),
        "candidates table": ablation_table.candidates_table(ablation_table.read_part("candidates")),
        "embeddings table": ablation_table.embeddings_table(embeddings),
        "long embeddings table": ablation_table.embeddings_table(ablation_table.read_part("embeddings-long")),
        "budgets table": trade_off_table.budgets_table(trade_off_table.read_trade_offs(), embeddings),
        "trees table": ablation_table.trees_table(ablation_table.read_part("trees")),
        "schedules table": generation_figures.quality_table(
            read_record(SCHEDULES, generation_figures.SCHEMA), steps=(4, 8, 16, 32, 64)
        ),
        "unseen table": ablation_table.shares_table(ablation_table.read_part("unseen")),
        "shares table": ablation_table.shares_table(ablation_table.read_part("shares")),
        "unseen errors": error_tables.unseen_errors_table(
            *(read_record(file, error_tables.ERRORS_SCHEMA) for file in UNSEEN_ERRORS)
        ),
        "times table": ablation_table.times_table(ablation_table.read_part("times")),
        "ablation table": ablation_table.ablation_table(ablation_table.read_part("choices")),
    }
    return {marks(name): content for name, content in contents.items()}


def reference_tables() -> str:
    """Return what is known of the reference checkpoint, and of the model of `make quickstart` beside it."""
    known = read_record(REFERENCE_MODEL / TRAINING_RECORD, REFERENCE_SCHEMA)
    parameters, tokens = sum(known["parameters"].values()), known["tokens_seen"]
    hours = known["training_seconds"] / 3600
    facts = (
        f"{parameters / 1e6:.1f}M parameters, {known['num_hidden_layers']} layers of {known['hidden_size']}, after "
        f"{tokens / 1e6:.1f}M tokens, in {hours:.1f} hours, in windows of {known['sequence_length']}: at most "
        f"{known['nelbo']:.3f} nats per token on {known['validation_tokens']:,} held-out tokens, whose unigram entropy "
        f"is {known['unigram_entropy']:.3f}; weights in {known['weights_dtype']}, trained at commit "
        f"{known['commit']}.\n"
    )
    return f"{facts}\n{judged_table()}"


def judged_table() -> str:
    """Return what the judge says of texts by the reference and by the quickstart's model, beside real text of each."""
    rows, protocols = [], []
    for name in JUDGED:
        record = read_record(RESULTS / f"{name}.json", generation_figures.SCHEMA)
        protocols.append({field: record["protocol"][field] for field in ("judge", "texts", "length")})
        if name == JUDGED[0]:
            (model,) = record["models"].values()
            check_reference(model["weights_sha256"], f"{name}.json")
        real, *_ = (one for one in record["references"] if one["name"] == generation_figures.REAL)
        for point in record["points"]:
            nats, own = point["judge"]["nats_per_token"], real["judge"]["nats_per_token"]
            entropies = f"{point['statistics']['entropy']:.2f} ({real['statistics']['entropy']:.2f})"
            passes, error = f"{point['forward_passes']:.0f}", point["judge"]["standard_error"]
            cells = (passes, f"{nats:.2f} ± {error:.2f}", f"{own:.2f}", f"{nats - own:+.2f}", entropies)
            rows.append([point["model"], point["sampler"], *cells])
    protocol = protocols[0]
    if any(other != protocol for other in protocols):
        raise ValueError(f"{' and '.join(JUDGED)} have other judges, numbers or lengths of texts: measure them alike.")
    header = (
        "model",
        "sampler",
        "passes",
        "nats/token of the judge",
        "of real text",
        "above it",
        "entropy (real text)",
    )
    return table(header, rows) + (
        f"\nThe judge is {protocol['judge']}; {protocol['texts']} texts of {protocol['length']} tokens for each row, ± "
        "one standard error; entropy of the tokens of a text, in nats: below that of real text, a text is duller. Real "
        "text is what the model was not trained on, of the same kind and length, in its own tokens.\n"
    )


def check_reference(weights_sha256: str, name: str) -> None:
    """Raise ValueError if a record is of other weights than the reference checkpoint's."""
    own = read_record(REFERENCE_MODEL / TRAINING_RECORD, REFERENCE_SCHEMA)["weights_sha256"]["model.safetensors"]
    if weights_sha256 != own:
        raise ValueError(f"{name} is of other weights than {REFERENCE_MODEL.name}: measure these, and render again.")


def headline() -> str:
    """Return the findings as a list, each with its scale."""
    quality = quality_tables.read_quality("cpu")
    errors = read_record(DEFAULT_ERRORS, error_tables.ERRORS_SCHEMA)
    points = [_measured_memory(memory_tables.read_memory(MEMORY_RECORDS["cpu"])), _memory(memory_tables.read_memory())]
    points += [_speed(speed_tables.read_speed()), quality_tables.headline(quality)]
    texts = quality_tables.zero_shot_texts(quality)
    points.append(ablation_table.headline(ablation_table.read_part("candidates"), texts))
    points.append(ablation_table.shares_headline(ablation_table.read_part("unseen"), texts))
    title = errors["models"]["model"]["title"]
    points.append(f"**Where the tree errs**, {title} against MDLM. {' '.join(summary(errors)[1:3])}")
    return "".join(f"- {point}\n" for point in points)


def first_table() -> str:
    """Return the models that a newcomer asks about side by side: memory, speed and perplexity, each with its scale."""
    memory, speed = memory_tables.read_memory(MEMORY_RECORDS["cpu"]), speed_tables.read_speed()
    quality = quality_tables.read_quality("cpu")
    batch = max(row["batch_size"] for row in memory["rows"])
    steps = [
        row
        for row in (*memory["rows"], *memory.get("autoregressive", []))
        if (row["precision"], row["batch_size"]) == (PRECISION, batch)
    ]
    resident = {row["contender"]: f"{row['resident_bytes'] / memory_tables.GIBIBYTE:.1f} GiB" for row in steps}
    rates = tokens_per_second(speed)
    ours = DEFAULT if DEFAULT in quality["best"] else NODE
    rows = []
    for name, title in FIRST.items():
        measured = {CHUNKED: REFERENCE, DEFAULT: ours}.get(name, name)  # a loss in chunks is the same loss
        run = quality_tables.runs_of(quality, measured)[0]
        perplexity = math.exp(run["texts"][VALIDATION]["nats"])
        bound = "" if name == AUTOREGRESSIVE else "≤ "
        rows.append([title, resident.get(name, ""), f"{rates[name]:,.0f} tokens/s", f"{bound}{perplexity:.0f}"])
    protocol = quality["protocol"]
    tokens = protocol["steps"] * protocol["batch_size"] * protocol["sequence_length"]
    small_size = f"{run['parameters'] / 1e6:.1f}M parameters"
    header = (
        "model",
        f"memory of a training step ({steps[0]['parameters'] / 1e6:.0f}M parameters, batch of {batch} x "
        f"{memory['sequence_length']} tokens)",
        f"training speed ({small_size}, one CPU thread)",
        f"perplexity of held-out text ({small_size}, after {tokens / 1e6:.1f}M tokens; lower is better)",
    )
    return table(header, rows) + (
        "\nAll models have equally many parameters; ≤ marks an upper bound. These are small trials on a CPU, far from "
        "convergence: [Evidence](benchmarks/README.md) has what stands behind each figure, more models, intervals, and "
        "texts on which older trees were worse.\n"
    )


def draw_figures() -> None:
    """Draw all figures of the page."""
    memory_tables.draw(memory_tables.read_memory())
    speed = speed_tables.read_speed()
    speed_tables.draw(speed)
    generation_figures.draw(
        read_record(generation_figures.RECORD, generation_figures.SCHEMA), generation_figures.FIGURE
    )
    quality_tables.draw(quality_tables.read_quality("cpu"), tokens_per_second(speed), FIGURES / "quality.png")
    draw_errors(read_record(ERRORS, error_tables.ERRORS_SCHEMA), FIGURES / "errors.png")
    trade_off_table.draw(trade_off_table.read_trade_offs(), ablation_table.read_part("embeddings"))


def tokens_per_second(speed: Record) -> dict[str, float]:
    """Return the training speed at the size of the quality benchmark, same budget, by contender."""
    (size,) = (size for size in speed["sizes"] if size["name"] == SPEED_SIZE)
    speeds = {row["contender"]: row["tokens_per_second"] for row in size["training"] if BUDGET in row["matched"]}
    return speeds | {"tdlm-random": speeds[CHILD], "tree-binomial": speeds[NODE]}  # the same networks


def _measured_memory(record: Record) -> str:
    batch = max(row["batch_size"] for row in record["rows"])
    rows = memory_tables.select(record, precision=PRECISION, batch_size=batch)
    found = {row["contender"]: f"{row['resident_bytes'] / memory_tables.GIBIBYTE:.1f} GiB" for row in rows}
    return (
        f"**Memory measured**: a training step takes {found[DEFAULT]} where MDLM takes {found[REFERENCE]}, MDLM with "
        f"its loss in chunks {found[CHUNKED]} and HDLM {found['hdlm']}; {rows[0]['parameters'] / 1e6:.0f}M parameters "
        f"each, the tree's spent on depth, batch {batch}, {record['sequence_length']} tokens, "
        f"d = {rows[0]['hidden_size']}, GPT-2's vocabulary, {PRECISION}, on a CPU. Plans and measurements differ by at "
        f"most {memory_tables.largest_deviation(record):.1%}."
    )


def _memory(record: Record) -> str:
    def at(contender: str, hidden_size: int, batch: int) -> float:
        fields = {"vocab_size": memory_tables.VOCABULARY, "hidden_size": hidden_size, "batch_size": batch}
        (row,) = (r for r in memory_tables.select(record, contender=contender, **fields) if BUDGET in r["matched"])
        return memory_tables.ratio(record, row)

    sizes = sorted({row["hidden_size"] for row in record["rows"]})
    small, large = sizes[0], sizes[-1]
    return (
        f"**Memory planned** for larger batches and models, with MDLM's parameters spent on depth (node head): "
        f"{at(NODE, small, 32):.2f} of MDLM's at d = {small}, {at(NODE, large, 32):.2f} at d = {large} (batch 32, "
        f"{record['sequence_length']} tokens, GPT-2's vocabulary, {PRECISION}). MDLM with its loss in "
        f"chunks needs {at(CHUNKED, small, 32):.2f} and {at(CHUNKED, large, 32):.2f}."
    )


def _speed(record: Record) -> str:
    def ratio(size: Record, contender: str, matched: str) -> float:
        (row,) = (r for r in size["training"] if r["contender"] == contender and matched in r["matched"])
        return row["ratio"]

    parts = [
        f"{ratio(size, CHILD, BUDGET):.2f} and {ratio(size, NODE, BUDGET):.2f} (child and node head) with equal "
        f"parameters, {ratio(size, CHILD, DEPTH):.2f} and {ratio(size, NODE, DEPTH):.2f} with equal depth, at "
        f"V = {size['vocab_size']:,}, d = {size['hidden_size']}"
        for size in record["sizes"]
    ]
    return f"**Training speed** divided by that of MDLM, in tokens per second, {record['device']}: {'; '.join(parts)}."
