"""What the records say: benchmarks/README.md, section by section and in short, and README.md's first table."""

import math
from pathlib import Path
from typing import Any

from benchmarks.contenders import AUTOREGRESSIVE, REFERENCE
from benchmarks.generation import figures as generation_figures
from benchmarks.markdown import marks, table
from benchmarks.matched_models import BUDGET
from benchmarks.memory import tables as memory_tables
from benchmarks.memory.peaks import PRECISION
from benchmarks.memory.peaks import RECORDS as MEMORY_RECORDS
from benchmarks.places import FIGURES, RESULTS, ROOT
from benchmarks.quality import ablation_table, error_tables, trade_off_table
from benchmarks.quality import tables as quality_tables
from benchmarks.quality.packed_data import VALIDATION
from benchmarks.record_schema import Schema, read_record
from benchmarks.speed import attention, step_parts
from benchmarks.speed import tables as speed_tables
from benchmarks.speed.throughput import RECORDS as SPEED_RECORDS
from modeling_treediff.evaluation.error_figure import draw_errors
from modeling_treediff.hub.records import TRAINING_RECORD

ERRORS, DEFAULT_ERRORS = RESULTS / "errors.json", RESULTS / "errors_default.json"
UNSEEN_ERRORS = RESULTS / "errors_unseen_before.json", RESULTS / "errors_unseen.json"
SCHEDULES = RESULTS / "generation_schedules.json"
BLOCKS_JUDGED, PERTURBED_JUDGED = RESULTS / "generation_blocks.json", RESULTS / "generation_perturbed.json"
PERTURBED_INFILLING, PERTURBED_PASSES, PERTURBED_FEW = (
    RESULTS / f"generation_perturbed_{what}.json" for what in ("infilling", "passes", "few_steps")
)
CHILD, NODE, CHUNKED, DEFAULT = "tdlm-child", "tdlm-node", "mdlm-chunked", "tree"
FIRST = {  # of README.md
    REFERENCE: "MDLM",
    CHUNKED: "MDLM, loss in chunks",
    "hdlm": "HDLM",
    AUTOREGRESSIVE: "GPT-2",
    DEFAULT: "**tree** (ours)",
}
LANGUAGES = {"German": "de", "Japanese": "ja"}
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
    languages = {name: quality_tables.read_quality(form) for name, form in LANGUAGES.items()}
    embeddings = ablation_table.read_part("embeddings")
    contents = {
        "quality table": quality_tables.main_table(quality),
        "zero-shot table": quality_tables.zero_shot_table(quality),
        "grid table": quality_tables.grid_table(quality),
        "languages table": quality_tables.languages_table(languages),
        "reference tables": reference_tables(),
        "memory tables": memory_tables.peaks_table(memory) + "\n" + memory_tables.ratios_table(memory),
        "resident table": memory_tables.resident_table(memory_tables.read_memory(MEMORY_RECORDS["cpu"])),
        "attention table": attention.attention_table(read_record(attention.RECORD, attention.SCHEMA)),
        "step parts table": step_parts.step_parts_table(read_record(step_parts.RECORD, step_parts.SCHEMA)),
        "GPU tables": gpu_tables(),
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
        "blocks table": ablation_table.changed_table(ablation_table.read_part("blocks")),
        "blocks judged table": generation_figures.equal_entropy_table(
            read_record(BLOCKS_JUDGED, generation_figures.SCHEMA)
        ),
        "blocks causes table": ablation_table.changed_table(ablation_table.read_part("blocks-causes")),
        "perturbed table": ablation_table.changed_table(ablation_table.read_part("perturbed")),
        "perturbed judged table": generation_figures.equal_entropy_table(
            read_record(PERTURBED_JUDGED, generation_figures.SCHEMA)
        ),
        "perturbed few steps table": generation_figures.equal_entropy_table(
            read_record(PERTURBED_FEW, generation_figures.SCHEMA), steps=8
        ),
        "perturbed passes table": generation_figures.quality_table(
            read_record(PERTURBED_PASSES, generation_figures.SCHEMA), steps=(8, 64, 512)
        ),
        "perturbed infilling table": generation_figures.equal_entropy_table(
            read_record(PERTURBED_INFILLING, generation_figures.SCHEMA)
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


def gpu_tables(folder: Path = RESULTS) -> str:
    """Return what a GPU has measured of memory, speed and quality, of the records that a folder has."""
    memory, speed = (folder / records["cuda"].name for records in (MEMORY_RECORDS, SPEED_RECORDS))
    found = []
    if memory.exists():
        found.append(memory_tables.measured_table(memory_tables.read_memory(memory)))
    if speed.exists():
        found.append(speed_tables.speed_tables(speed_tables.read_speed(speed)))
    if (folder / "quality_gpu.json").exists():
        found.append(quality_tables.main_table(quality_tables.read_quality("gpu", folder)))
    return "\n".join(found) or "Nothing here has been measured on a GPU yet.\n"


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
    """Return the findings in four lines, each with its scale."""
    quality, unseen = quality_tables.read_quality("cpu"), ablation_table.read_part("unseen")
    points = [_memory(memory_tables.read_memory(MEMORY_RECORDS["cpu"])), _speed(speed_tables.read_speed())]
    points += [_quality(quality, unseen), _against_gpt2(quality)]
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
        "\nAll models have equally many parameters; ≤ marks an upper bound. The perplexity in the last line is that of "
        "an older tree model, `sequential`, without shared table and lookahead, trained beside the others. These are "
        "small trials on a CPU, far from convergence: [Evidence](benchmarks/README.md) has what stands behind each "
        "figure, more models, intervals, and texts on which older trees were worse.\n"
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
    return speeds | {"tdlm-random": speeds[CHILD], "tdlm-node": speeds["tree-binomial"]}  # the same networks


def _memory(record: Record) -> str:
    batch = max(row["batch_size"] for row in record["rows"])
    rows = [*memory_tables.select(record, precision=PRECISION, batch_size=batch), *record["autoregressive"]]
    found = {
        row["contender"]: f"{row['resident_bytes'] / memory_tables.GIBIBYTE:.1f} GiB"
        for row in rows
        if (row["precision"], row["batch_size"]) == (PRECISION, batch)
    }
    return (
        f"**Memory**: a training step of the default takes {found[DEFAULT]}. MDLM's takes {found[REFERENCE]}, with its "
        f"loss in chunks {found[CHUNKED]}, HDLM's {found['hdlm']}, GPT-2's {found[AUTOREGRESSIVE]}. "
        f"({rows[0]['parameters'] / 1e6:.0f}M parameters each, {batch} x {record['sequence_length']} tokens, "
        f"{PRECISION}, measured on a CPU.)"
    )


def _speed(record: Record) -> str:
    def ratios(contender: str) -> str:
        found = [
            row["ratio"]
            for size in record["sizes"]
            for row in size["training"]
            if row["contender"] == contender and BUDGET in row["matched"]
        ]
        return f"{min(found):.2f} to {max(found):.2f}"

    return (
        f"**Time**: the default trains on {ratios(DEFAULT)} times the tokens per second of MDLM; MDLM "
        f"with its loss in chunks on {ratios(CHUNKED)}, HDLM on {ratios('hdlm')}, GPT-2 on {ratios(AUTOREGRESSIVE)} "
        f"times. (As many parameters, {len(record['sizes'])} sizes, {record['device']}.)"
    )


def _quality(quality: Record, unseen: Record) -> str:
    held_out = " and ".join(f"{ratio:.2f}" for ratio in ablation_table.to_mdlm(unseen, VALIDATION))
    texts = quality_tables.zero_shot_texts(quality)
    elsewhere = [ratio for text in texts for ratio in ablation_table.to_mdlm(unseen, text)]
    hdlm = next(iter(quality["best"]["hdlm"]["ratios"].values()))[VALIDATION]["ratio"]
    run, protocol = quality_tables.runs_of(quality, REFERENCE)[0], quality["protocol"]
    seen = protocol["steps"] * protocol["batch_size"] * protocol["sequence_length"]
    return (
        f"**Quality** (of the default before): the bound on the perplexity of held-out text is {held_out} times MDLM's "
        "with two seeds, on "
        f"{len(texts)} texts of other kinds {min(elsewhere):.2f} to {max(elsewhere):.2f} times; HDLM's is "
        f"{hdlm:.2f} times on held-out text. "
        f"({run['parameters'] / 1e6:.1f}M parameters, {seen / 1e6:.1f}M tokens: a small trial.)"
    )


def _against_gpt2(quality: Record) -> str:
    ratios = quality["best"][AUTOREGRESSIVE]["ratios"]
    (ratio,) = (one[VALIDATION]["ratio"] for one in ratios.values())
    return (
        f"**Not ahead of GPT-2**: its perplexity is {ratio:.2f} times MDLM's, far below that of all models here which "
        "write in any order."
    )
