"""Render the recorded quickstart runs into the README's table.

python benchmarks/render_readme.py            # after: copy runs/*/result.json to benchmarks/results/
python benchmarks/render_readme.py --check    # fail if the README does not show the recorded numbers
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from modeling_treediff.atomic_files import write_atomically

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
RUNS = {"tree (TDLM)": "quickstart_tree.json", "flat (MDLM)": "quickstart_flat.json"}
START, END = "<!-- quickstart table -->\n", "<!-- end of quickstart table -->"


def row(name: str, record: dict[str, Any]) -> str:
    """Return one line of the table."""
    millions = sum(record["parameters"].values()) / 1e6
    head = record["parameters"]["head"] / 1e6
    memory = record["peak_memory_bytes"]["allocated"] or record["peak_memory_bytes"]["resident"]
    cells = [
        f"{name}, {record['num_hidden_layers']} layers",
        f"{millions:.2f}M ({head:.2f}M)",
        f"{record['steps']}",
        f"{record['training_seconds']:.0f} s",
        f"{memory / 2**30:.2f} GiB",
        f"{record['nelbo']:.3f} ± {record['nelbo_standard_error']:.3f}",
        f"{math.exp(record['nelbo']):.0f}",
        f"{record['unigram_entropy'] - record['nelbo']:+.3f}",
    ]
    return "| " + " | ".join(cells) + " |\n"


def table() -> str:
    """Return the table and the facts of the runs, from the result files."""
    records = {name: json.loads((RESULTS / file).read_text(encoding="utf-8")) for name, file in RUNS.items()}
    first = next(iter(records.values()))
    shared = ("unigram_entropy", "validation_tokens", "steps", "seed", "versions", "device", "window", "commit")
    for name, record in records.items():
        if differing := [key for key in shared if record[key] != first[key]]:
            raise ValueError(f"{name} was not run under the same protocol: {', '.join(differing)} differ.")
    lines = [
        "| model | parameters (head) | steps | training time | peak memory | "
        "validation NELBO, nats/token | perplexity ≤ | "
        "below unigram |\n",
        "|---|---|---|---|---|---|---|---|\n",
        *(row(name, record) for name, record in records.items()),
        f"\nUnigram entropy of the held-out text: {first['unigram_entropy']:.3f} nats/token. "
        f"{first['device']}, torch {first['versions']['torch']}, seed {first['seed']}, commit {first['commit']}; "
        "full records in `benchmarks/results/`.\n",
    ]
    return "".join(lines)


def main() -> None:
    """Write or check the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    rendered = before + START + table() + END + rest.split(END)[1]
    if options.check:
        sys.exit(None if rendered == text else "README.md does not show the recorded results: run render_readme.py.")
    write_atomically(README, lambda path: path.write_text(rendered, encoding="utf-8"))


if __name__ == "__main__":
    main()
