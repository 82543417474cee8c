"""Folders of the repository that benchmarks read and write."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "benchmarks" / "figures"
ARTIFACTS = ROOT / "tree_artifacts"
SAMPLE = ARTIFACTS / "sotu-8k"  # the embedded text with its tokenizer and tree
