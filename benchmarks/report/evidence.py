"""What the records say: benchmarks/README.md, section by section and in short, and README.md's first table."""

import math
from collections.abc import Iterable
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
from benchmarks.quality.packed_data import SELECTION, VALIDATION
from benchmarks.record_schema import Schema, read_record
from benchmarks.speed import attention, step_parts
from benchmarks.speed import tables as speed_tables
from benchmarks.speed.throughput import RECORDS as SPEED_RECORDS
from modeling_treediff.evaluation.error_figure import draw_errors
from modeling_treediff.hub.records import TRAINING_RECORD

UNSEEN_ERRORS = RESULTS / "errors_unseen_before.json", RESULTS / "errors_unseen.json"
SCHEDULES = RESULTS / "generation_schedules.json"
BLOCKS_JUDGED, PERTURBED_JUDGED = RESULTS / "generation_blocks.json", RESULTS / "generation_perturbed.json"
PERTURBED_INFILLING, PERTURBED_PASSES, PERTURBED_FEW = (
    RESULTS / f"generation_perturbed_{what}.json" for what in ("infilling", "passes", "few_steps")
)
CHUNKED, DEFAULT = "mdlm-chunked", "tree"
FIRST = {  # of README.md
    REFERENCE: "MDLM",
    CHUNKED: "MDLM, loss in chunks",
    "hdlm": "HDLM",
    AUTOREGRESSIVE: "GPT-2",
    DEFAULT: "**tree** (ours)",
}
LANGUAGES = {"German": "de", "Japanese": "ja"}
LONG = "long"  # form of `benchmarks.quality.perplexity`, and size of `benchmarks.speed.throughput`: the same models
LONG_SPEED, STOPPED = RESULTS / "speed_long.json", RESULTS / "long_stopped.json"

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
    quality, short, memory = *map(quality_tables.read_quality, (LONG, "cpu")), memory_tables.read_memory()
    languages = {name: quality_tables.read_quality(form) for name, form in LANGUAGES.items()}
    embeddings = ablation_table.read_part("embeddings")
    contents = {
        "quality table": quality_tables.main_table(quality),
        "lasting table": quality_tables.lasting_table(quality, [read_record(STOPPED, quality_tables.STOPPED_SCHEMA)]),
        "zero-shot table": quality_tables.zero_shot_table(quality),
        "grid table": quality_tables.grid_table(quality),
        "short quality table": quality_tables.main_table(short),
        "short zero-shot table": quality_tables.zero_shot_table(short),
        "short grid table": quality_tables.grid_table(short),
        "languages table": quality_tables.languages_table(languages),
        "reference tables": reference_tables(),
        "memory tables": memory_tables.peaks_table(memory) + "\n" + memory_tables.ratios_table(memory),
        "resident table": memory_tables.resident_table(memory_tables.read_memory(MEMORY_RECORDS["cpu"])),
        "attention table": attention.attention_table(read_record(attention.RECORD, attention.SCHEMA)),
        "step parts table": step_parts.step_parts_table(read_record(step_parts.RECORD, step_parts.SCHEMA)),
        "GPU tables": gpu_tables(),
        "speed tables": speed_tables.speed_tables(speed()),
        "errors by text": error_tables.texts_table(errors(quality)),
        "error tables": error_tables.errors_section(errors(quality)[VALIDATION]),
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


def speed() -> Record:
    """Return what was measured at all sizes, those of the long trainings first.

    Raises:
        ValueError: the records are not of one commit and machine.

    """
    first, other = speed_tables.read_speed(LONG_SPEED), speed_tables.read_speed()
    same = ("commit", "device", "precision", "freed_memory_kept")
    if differing := [name for name in same if first[name] != other[name]]:
        raise ValueError(f"speed.json and {LONG_SPEED.name} differ in {', '.join(differing)}: measure both alike.")
    return first | {"sizes": first["sizes"] + other["sizes"]}


def errors(quality: Record) -> dict[str, Record]:
    """Return by text where the default loses and gains against MDLM after the long training."""
    return {
        text: read_record(RESULTS / f"errors_{LONG}_{text}.json", error_tables.ERRORS_SCHEMA)
        for text in (VALIDATION, *quality_tables.zero_shot_texts(quality))
    }


def gpu_tables(folder: Path = RESULTS) -> str:
    """Return what a GPU has measured of memory, speed and quality, of the records that a folder has."""
    memory, rates = (folder / records["cuda"].name for records in (MEMORY_RECORDS, SPEED_RECORDS))
    found = []
    if memory.exists():
        found.append(memory_tables.measured_table(memory_tables.read_memory(memory)))
    if rates.exists():
        found.append(speed_tables.speed_tables(speed_tables.read_speed(rates)))
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
    quality = quality_tables.read_quality(LONG)
    memory = memory_tables.read_memory(MEMORY_RECORDS["cpu"])
    points = [_memory(memory), _speed(speed()), _quality(quality), _against_gpt2(quality)]
    return "".join(f"- {point}\n" for point in points)


def first_table() -> str:
    """Return the models that a newcomer asks about side by side: memory, speed and perplexity, each with its scale."""
    memory, quality = memory_tables.read_memory(MEMORY_RECORDS["cpu"]), quality_tables.read_quality(LONG)
    batch = max(row["batch_size"] for row in memory["rows"])
    steps = [
        row
        for row in (*memory["rows"], *memory.get("autoregressive", []))
        if (row["precision"], row["batch_size"]) == (PRECISION, batch)
    ]
    resident = {row["contender"]: f"{row['resident_bytes'] / memory_tables.GIBIBYTE:.1f} GiB" for row in steps}
    rates = tokens_per_second()
    rows = []
    for name, title in FIRST.items():
        runs = quality_tables.runs_of(quality, REFERENCE if name == CHUNKED else name)  # which is the same loss
        perplexities = ", ".join(f"{math.exp(run['texts'][VALIDATION]['nats']):.0f}" for run in runs)
        bound = "" if name == AUTOREGRESSIVE else "≤ "
        rows.append([title, resident.get(name, ""), f"{rates[name]:,.0f} tokens/s", f"{bound}{perplexities}"])
    (run, *_) = quality_tables.runs_of(quality, DEFAULT)
    small_size = f"{run['parameters'] / 1e6:.1f}M parameters"
    header = (
        "model",
        f"memory of a training step ({steps[0]['parameters'] / 1e6:.0f}M parameters, batch of {batch} x "
        f"{memory['sequence_length']} tokens)",
        f"training speed ({small_size}, one CPU thread, fp32)",
        f"perplexity of held-out text ({small_size}, after {quality_tables.tokens_seen(quality) / 1e6:.0f}M tokens; "
        "one or two seeds; lower is better)",
    )
    return table(header, rows) + (
        "\nAll models of a column have equally many parameters; ≤ marks an upper bound. These are small models, "
        "measured on a CPU and far from convergence; the lead over MDLM shrank as training went on, and where it ends "
        "is not known. [Evidence](benchmarks/README.md) has what stands behind each figure, more models, intervals, "
        "texts of other kinds, and what did not come out as claimed.\n"
    )


def draw_figures() -> None:
    """Draw all figures of the page."""
    memory_tables.draw(memory_tables.read_memory())
    speed_tables.draw(speed())
    generation_figures.draw(
        read_record(generation_figures.RECORD, generation_figures.SCHEMA), generation_figures.FIGURE
    )
    quality = quality_tables.read_quality(LONG)
    quality_tables.draw(quality, tokens_per_second(), FIGURES / "quality.png")
    draw_errors(errors(quality)[VALIDATION], FIGURES / "errors.png")
    trade_off_table.draw(trade_off_table.read_trade_offs(), ablation_table.read_part("embeddings"))


def tokens_per_second() -> dict[str, float]:
    """Return the training speed of the models of the long trainings, measured apart in another precision."""
    (size,) = (size for size in speed()["sizes"] if size["name"] == LONG)
    return {row["contender"]: row["tokens_per_second"] for row in size["training"] if BUDGET in row["matched"]}


def _memory(record: Record) -> str:
    batch = max(row["batch_size"] for row in record["rows"])
    rows = [*memory_tables.select(record, precision=PRECISION, batch_size=batch), *record["autoregressive"]]
    found = {
        row["contender"]: f"{row['resident_bytes'] / memory_tables.GIBIBYTE:.1f} GiB"
        for row in rows
        if (row["precision"], row["batch_size"]) == (PRECISION, batch)
    }
    return (
        "**Memory**: a training step of our tree model, the default of `treediff train`, takes "
        f"{found[DEFAULT]}. MDLM's takes {found[REFERENCE]}, with its logits in chunks {found[CHUNKED]}, HDLM's "
        f"{found['hdlm']}, GPT-2's {found[AUTOREGRESSIVE]}. "
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
        f"**Time**: the tree trains on {ratios(DEFAULT)} times the tokens per second of MDLM; MDLM with its logits in "
        f"chunks on {ratios(CHUNKED)}, HDLM on {ratios('hdlm')}, GPT-2 on {ratios(AUTOREGRESSIVE)} times. "
        f"(As many parameters, {len(record['sizes'])} sizes, {record['device']}, {record['precision']}.)"
    )


def _quality(quality: Record) -> str:
    texts = quality_tables.zero_shot_texts(quality)
    seeds = list(quality["best"][DEFAULT]["ratios"].values())

    def joined(ratios: Iterable[float]) -> str:
        return " and ".join(f"{ratio:.2f}" for ratio in ratios)

    held_out, others = (joined(seed[windows]["ratio"] for seed in seeds) for windows in (VALIDATION, SELECTION))
    elsewhere = [seed[text]["ratio"] for seed in seeds for text in texts]
    run, steps = quality_tables.runs_of(quality, REFERENCE)[0], quality["protocol"]["steps"]
    early, late = (joined(quality_tables.over_mdlm(quality, step, DEFAULT)) for step in (steps // 16, steps))
    return (
        f"**Quality**: the bound on the perplexity of held-out text is {held_out} times MDLM's with {len(seeds)} "
        f"seeds, on other windows of it {others} times, on {len(texts)} texts of other kinds {min(elsewhere):.2f} to "
        f"{max(elsewhere):.2f} times. The lead shrinks as training goes on: {early} times after a sixteenth of "
        f"the tokens, {late} after all. ({run['parameters'] / 1e6:.1f}M parameters, "
        f"{quality_tables.tokens_seen(quality) / 1e6:.0f}M tokens.)"
    )


def _against_gpt2(quality: Record) -> str:
    ours, (gpt2, *_) = (
        [run["texts"][VALIDATION]["nats"] for run in quality_tables.runs_of(quality, name)]
        for name in (DEFAULT, AUTOREGRESSIVE)
    )
    return (
        f"**Behind GPT-2**: the tree's perplexity is at most {math.exp(max(ours) - gpt2):.2f} times that of GPT-2, "
        "which writes from left to right alone."
    )
