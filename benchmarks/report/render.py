"""Rendering of recorded results, and of parameter counts, into the tables of README.md, docs/ and two more pages.

python -m benchmarks.report.render            # after: copy runs/*/result.json to benchmarks/results/quickstart_*.json
python -m benchmarks.report.render --check    # fail if a page does not show the recorded numbers

The other pages are benchmarks/README.md and tree_artifacts/README.md.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, WIDER
from benchmarks.generation.approximate_cache import RECORD as CACHE_RECORD
from benchmarks.generation.approximate_cache import SCHEMA as CACHE_SCHEMA
from benchmarks.generation.approximate_cache import cache_table
from benchmarks.generation.figures import RECORD as QUALITY_RECORD
from benchmarks.generation.figures import quality_table
from benchmarks.generation.kinds import RECORD as KINDS_RECORD
from benchmarks.generation.kinds import SCHEMA as KINDS_SCHEMA
from benchmarks.generation.kinds import kinds_table
from benchmarks.generation.lengths import RECORD as LENGTHS_RECORD
from benchmarks.generation.lengths import SCHEMA as LENGTHS_SCHEMA
from benchmarks.generation.lengths import lengths_table
from benchmarks.markdown import fill, marks
from benchmarks.markdown import table as markdown_table
from benchmarks.memory.peaks import PRECISION, TREE
from benchmarks.memory.tables import HIDDEN_SIZE, VOCABULARY, read_memory, select
from benchmarks.places import ARTIFACTS, RESULTS, ROOT
from benchmarks.quality.conversion_table import RECORDS as CONVERSION_RECORDS
from benchmarks.quality.conversion_table import conversion_table
from benchmarks.record_schema import Schema, check_schema, read_record
from benchmarks.report.evidence import check_reference, draw_figures, first_table, headline, sections
from benchmarks.speed.block_steps import RECORD as STEPS_RECORD
from benchmarks.speed.block_steps import SCHEMA as STEPS_SCHEMA
from benchmarks.speed.block_steps import block_steps_table
from benchmarks.trees import tables as tree_tables
from modeling_treediff import TreeDiffConfig, VocabularyTree
from modeling_treediff.building.budget import budget_config, count_parameters
from modeling_treediff.files.atomic_files import write_atomically

HOW_TO = ROOT / "docs" / "how_to"
RUNS = {"tree": "quickstart_tree", "flat (MDLM)": "quickstart_flat"}
SEEDS = {0: "", 1: "_seed1"}  # -> end of the file's name
MEMORY_BATCHES = (4, 32)
# Title -> contender and variant of the flat model, and the tree's variant beside it.
MEMORY_VARIANTS = {
    "whatever autograd keeps": ("mdlm", "plain", "plain"),
    "the default: nothing that is cheap to repeat": ("mdlm", "lean", "lean"),
    "the same, MLPs repeated in five of six layers": ("mdlm", "recompute", "recompute"),
    "the default; flat: loss in chunks": ("mdlm-chunked", "lean", "lean"),
}
SPEED_PARTS = ("backbone_milliseconds", "head_milliseconds", "rest_milliseconds")
SPEED_FIGURES = ("milliseconds", "ratio", "ratio_lower_quartile", "ratio_upper_quartile", *SPEED_PARTS)
SPEED_COUNTS = ("batch", "length", "vocabulary", "branching", "turns", "hidden_size", "layers", "threads")
SPEED_SCHEMA: Schema = {**dict.fromkeys(SPEED_COUNTS, int), "measured_on": str, "orders": dict}


def row(name: str, record: dict[str, Any]) -> str:
    """Return one line of the table."""
    millions = sum(record["parameters"].values()) / 1e6
    head = record["parameters"]["head"] / 1e6
    memory = record["peak_memory_bytes"]["allocated"] or record["peak_memory_bytes"]["resident"]
    cells = [
        f"{name}, {record['num_hidden_layers']} layers",
        f"{millions:.2f}M ({head:.2f}M)",
        f"{record['seed']}",
        f"{record['training_seconds']:.0f} s",
        f"{memory / 2**30:.2f} GiB",
        f"{record['nelbo']:.3f} ± {record['nelbo_standard_error']:.3f}",
        f"{math.exp(record['nelbo']):.0f}",
        f"{record['unigram_entropy'] - record['nelbo']:+.3f}",
    ]
    return "| " + " | ".join(cells) + " |\n"


def table() -> str:
    """Return the table and the facts of the runs, from the result files."""
    runs = [
        (name, seed, json.loads((RESULTS / f"{file}{ending}.json").read_text(encoding="utf-8")))
        for name, file in RUNS.items()
        for seed, ending in SEEDS.items()
    ]
    first = runs[0][2]
    shared = ("unigram_entropy", "validation_tokens", "steps", "versions", "device", "sequence_length", "commit")
    for name, seed, record in runs:
        differing = [key for key in shared if record[key] != first[key]] + ["seed"] * (record["seed"] != seed)
        if differing:
            raise ValueError(f"{name}, {seed}, was not run under the same protocol: {', '.join(differing)} differ.")
    lines = [
        "| model | parameters (head) | seed | training time | peak memory | "
        "validation NELBO, nats/token | perplexity ≤ | "
        "below unigram |\n",
        "|---|---|---|---|---|---|---|---|\n",
        *(row(name, record) for name, _, record in runs),
        f"\n{first['steps']} steps; unigram entropy of the held-out text: {first['unigram_entropy']:.3f} nats/token. "
        f"{first['device']}, torch {first['versions']['torch']}, commit {first['commit']}; "
        "full records in `benchmarks/results/`.\n",
    ]
    return "".join(lines)


def budget_table() -> str:
    """Return what a flat model's parameters buy with a tree: GPT-2's vocabulary at two sizes."""
    flat_tree, tree = VocabularyTree.flat(50257), VocabularyTree.from_pretrained(ARTIFACTS / "gpt2")
    lines = ["| model | layers | embedding | layers' part | head | total |\n", "|---|---|---|---|---|---|\n"]
    for hidden_size, heads, layers in ((768, 12, 12), (1024, 16, 24)):
        sizes = {"hidden_size": hidden_size, "num_attention_heads": heads}
        flat = TreeDiffConfig.from_tree(flat_tree, num_hidden_layers=layers, **sizes)
        budget = sum(count_parameters(flat).values())
        wider = sizes | {"hidden_size": round(WIDER * hidden_size)}
        rows = {
            "flat (MDLM)": flat,
            "tree, `child` head": budget_config(tree, budget, head="child", **sizes),
            "tree, the default": budget_config(tree, budget, **wider),
        }
        for name, config in rows.items():
            parts = count_parameters(config)
            counts = (parts["embedding"], parts["layers"] + parts["norm"], parts["head"], sum(parts.values()))
            cells = [
                f"{name}, d = {config.hidden_size}",
                str(config.num_hidden_layers),
                *(f"{n / 1e6:.1f}M" for n in counts),
            ]
            lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def variance_table() -> str:
    """Return the estimators of the bound side by side."""
    record = json.loads((RESULTS / "likelihood_variance.json").read_text(encoding="utf-8"))
    lines = ["| estimator | mean, nats/token | standard deviation | variance, plain = 1 |\n", "|---|---|---|---|\n"]
    for name, figures in record["estimators"].items():
        cells = [
            name,
            f"{figures['mean']:.3f}",
            f"{figures['standard_deviation']:.4f}",
            f"1 / {figures['variance_ratio']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines) + (
        f"\n{record['repeats']} repetitions on {record['windows']} windows of {record['sequence_length']} tokens, "
        f"{record['samples']} passes each; commit {record['commit']}.\n"
    )


def memory_table() -> str:
    """Return planned peaks of a training step, flat against the tree of equal parameters."""
    record = read_memory()
    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN_SIZE}

    def row(batch: int, contender: str, variant: str) -> Mapping[str, Any]:
        rows = select(record, batch_size=batch, contender=contender, variant=variant, **sizes)
        return next(row for row in rows if "budget" in row["matched"])

    lines = []
    for batch in MEMORY_BATCHES:
        for title, (contender, variant, of_tree) in MEMORY_VARIANTS.items():
            flat, tree = row(batch, contender, variant), row(batch, TREE, of_tree)
            peaks = (f"{model['peak_bytes'] / 2**30:.2f} GiB" for model in (flat, tree))
            lines.append([str(batch), title, *peaks, f"{tree['peak_bytes'] / flat['peak_bytes']:.2f}"])
    schema: Schema = {"commit": str, "cpu_step_seconds": dict.fromkeys(("plain", "lean", "recompute"), float)}
    timed = read_record(RESULTS / "memory_step_times.json", schema)
    times = timed["cpu_step_seconds"]
    return markdown_table(("batch", "what backward keeps", "flat (MDLM)", "tree", "tree / flat"), lines) + (
        f"\nd = {HIDDEN_SIZE}, windows of {record['sequence_length']} tokens, GPT-2's vocabulary, "
        f"{PRECISION}, AdamW, equal parameters: {flat['layers']} layers against {tree['layers']} that are "
        f"{CONTENDERS[TREE].width:g} times as wide. Processor time of a step of the tree's model: the default "
        f"{times['lean'] / times['plain'] - 1:+.1%} against what autograd "
        f"keeps, repeated MLPs {times['recompute'] / times['lean'] - 1:+.1%} against the default. Commits "
        f"{record['commit']} and {timed['commit']}.\n"
    )


def robustness() -> str:
    """Return what the fault injector and the long run found."""
    faults, soak = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("fault_injection", "soak")
    )
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(faults["kills"].items()))
    equal = "equal" if faults["final_weights_equal"] and faults["losses_equal"] else "DIFFER FROM"
    return (
        f"Measured: a run killed with SIGKILL {sum(faults['kills'].values())} times ({kinds}) resumed "
        f"{faults['resumed']} times; its final weights and all its losses {equal} those of an undisturbed run, bit for "
        f"bit (`benchmarks/robustness/fault_injection.py`, commit {faults['commit']}). In {soak['minutes']:.0f} "
        f"minutes and {soak['steps']} steps with validation, samples and checkpoints all the time, the resident "
        f"memory of {soak['mean_mib']:.0f} MiB moved by {soak['slope_mib_per_hour']:+.1f} MiB "
        f"per hour (`benchmarks/robustness/soak.py`, commit {soak['commit']}).\n"
    )


def speed_table() -> str:
    """Return the time of a forward pass of generation, flat against tree."""
    record = json.loads((RESULTS / "generation_speed.json").read_text(encoding="utf-8"))
    check_schema(record, SPEED_SCHEMA, "generation_speed")
    rows = []
    for order, models in record["orders"].items():
        for name, figures in models.items():
            check_schema(figures, dict.fromkeys(SPEED_FIGURES, float), f"generation_speed.orders.{order}.{name}")
            low, high = figures["ratio_lower_quartile"], figures["ratio_upper_quartile"]
            parts = (f"{figures[part]:.1f} ms" for part in SPEED_PARTS)
            ratio = f"{figures['ratio']:.2f} ({low:.2f} to {high:.2f})"
            rows.append([f"`{order}`", name, f"{figures['milliseconds']:.1f} ms", ratio, *parts])
    header = ("order", "model", "a pass", "time / flat", "backbone", "head", "choosing and drawing")
    return markdown_table(header, rows) + (
        f"\n{record['batch']} texts of {record['length']} tokens, V = {record['vocabulary']:,}, K = "
        f"{record['branching']}, d = {record['hidden_size']}, {record['layers']} layers; medians (and quartiles) of "
        f"{record['turns']} whole calls in turns; {record['measured_on']}, {record['threads']} threads; commit "
        f"{record['commit']}.\n"
    )


def contents() -> dict[Path, dict[tuple[str, str], str]]:
    """Return what goes between which marks, for each page."""
    quality = json.loads(QUALITY_RECORD.read_text(encoding="utf-8"))
    conversion, *in_blocks = (
        conversion_table(json.loads(record.read_text(encoding="utf-8"))) for record in CONVERSION_RECORDS
    )
    cache = read_record(CACHE_RECORD, CACHE_SCHEMA)
    check_reference(cache["weights_sha256"], CACHE_RECORD.name)
    return {
        ROOT / "benchmarks" / "README.md": sections()
        | {marks("evidence"): headline(), marks("quickstart table"): table()},
        ARTIFACTS / "README.md": tree_tables.sections(),
        ROOT / "README.md": {marks("first table"): first_table()},
        HOW_TO / "memory.md": {marks("budget table"): budget_table(), marks("memory table"): memory_table()},
        HOW_TO / "constraints.md": {marks("kinds table"): kinds_table(read_record(KINDS_RECORD, KINDS_SCHEMA))},
        HOW_TO / "blocks.md": {
            marks("approximate cache table"): cache_table(cache),
            marks("block steps table"): block_steps_table(read_record(STEPS_RECORD, STEPS_SCHEMA)),
            marks("lengths table"): lengths_table(read_record(LENGTHS_RECORD, LENGTHS_SCHEMA)),
        },
        HOW_TO / "training.md": {marks("robustness"): robustness()},
        HOW_TO / "convert.md": {
            marks("conversion table"): conversion,
            marks("conversion in blocks table"): "\n".join(in_blocks),
        },
        HOW_TO / "evaluation.md": {marks("variance table"): variance_table()},
        HOW_TO / "generation.md": {
            marks("generation quality table"): quality_table(quality),
            marks("generation speed table"): speed_table(),
        },
    }


def main() -> None:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args()
    if not options.check:
        draw_figures()
    for page, parts in contents().items():
        text = rendered = page.read_text(encoding="utf-8")
        for between, content in parts.items():
            rendered = fill(rendered, between, content)
        if options.check and rendered != text:
            sys.exit(f"{page.relative_to(ROOT)} does not show the recorded results: run benchmarks.report.render.")
        if not options.check:
            write_atomically(page, partial(Path.write_text, data=rendered, encoding="utf-8"))


if __name__ == "__main__":
    main()
