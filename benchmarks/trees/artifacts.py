"""Build and measure trees for many tokenizers and languages, by the examples' own commands.

python -m benchmarks.trees.vocabularies --packages FOLDER --output runs/vocabularies
python -m benchmarks.trees.artifacts --data ../shared/data --vocabularies runs/vocabularies [--only gpt2 help-de ...]

Every 20th document of each text is held out; trees are built from the others and measured on the held-out ones. The
ready trees go to tree_artifacts/NAME, the rest to runs/trees; every report goes to benchmarks/results/trees/NAME.json,
from which `python -m benchmarks.report.render` makes the tables of tree_artifacts/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoTokenizer, GPT2Tokenizer

from benchmarks.places import ARTIFACTS, RESULTS, ROOT, SAMPLE
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.files.records import write_record
from modeling_treediff.text import read_documents, split_documents

WORK = ROOT / "runs" / "trees"
HELD_OUT_EVERY = 20
PUBLIC_DOMAIN = ("sotu", "spurgeon", "mhcc", "austen")
LANGUAGES = ("en-us", "de", "fr", "ja", "zh-cn")


@dataclass(frozen=True)
class Recipe:
    """What one tree is built from; names of texts are keys of `find_text`."""

    tokenizer: str
    texts: tuple[str, ...]
    embeddings: str | None = None
    depth: int = 2
    method: str | None = None
    license: str | None = None

    @property
    def ready(self) -> bool:
        """Whether the tree is kept in the repository: if its license is stated."""
        return self.license is not None


GPT2 = Recipe(
    "{work}/gpt2", PUBLIC_DOMAIN, "{data}/embeddings/gpt2_from_smollm2_128d.safetensors", license="Apache-2.0"
)
EVERYTHING = PUBLIC_DOMAIN + tuple(f"help-{language}" for language in LANGUAGES)
RECIPES = {
    SAMPLE.name: Recipe(str(SAMPLE), texts=(SAMPLE.name,), license="PDDL-1.0"),
    "gpt2": GPT2,
    "gpt2-d3": replace(GPT2, depth=3),
    "gpt2-d4": replace(GPT2, depth=4, license=None),
    "gpt2-embeddings-only": replace(GPT2, method="balanced-kmeans", license=None),
    "gpt2-text-only": replace(GPT2, embeddings=None, license=None),
    "bert-base-uncased": replace(
        GPT2, tokenizer="{work}/bert-base-uncased", embeddings="{vocabularies}/minilm/embedding.safetensors"
    ),
    "cl100k": Recipe("{vocabularies}/cl100k", texts=EVERYTHING),
    "o200k": Recipe("{vocabularies}/o200k", texts=EVERYTHING),
    **{
        f"help-{language}": Recipe(f"{{vocabularies}}/tokenizer-{language}", texts=(f"help-{language}",))
        for language in LANGUAGES
    },
}


def main() -> None:
    """Build, measure and record the trees asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with corpora, tokenizers and embeddings")
    parser.add_argument("--vocabularies", type=Path, required=True, help="output of benchmarks.trees.vocabularies")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME")
    args = parser.parse_args()
    places = {"data": args.data, "vocabularies": args.vocabularies, "work": WORK / "tokenizers"}
    save_tokenizers(places)
    for name in args.only:
        print(f"== {name}", flush=True)
        record(name, RECIPES[name], places)


def record(name: str, recipe: Recipe, places: dict[str, Path]) -> None:
    """Build one tree, measure it on held-out text, write the record."""
    parts = [split(text, places) for text in recipe.texts]
    training, held_out = zip(*parts, strict=True)
    output = (ARTIFACTS if recipe.ready else WORK) / name
    embeddings = ["--embeddings", recipe.embeddings.format(**places)] if recipe.embeddings else []
    arguments = ["--tokenizer", recipe.tokenizer.format(**places), *embeddings, "--text", *map(str, training)]
    arguments += ["--depth", str(recipe.depth), *(["--method", recipe.method] if recipe.method else [])]
    arguments += ["--license", recipe.license] if recipe.license else []
    start = time.perf_counter()
    peak = run("build_tree.py", *arguments, "--output", str(output))
    facts = {
        "name": name,
        "texts": list(recipe.texts),
        "build_seconds": round(time.perf_counter() - start, 1),
        "build_peak_gigabytes": round(peak, 2),
    }
    joined, report = WORK / f"{name}.held-out.txt", WORK / f"{name}.json"
    write_atomically(joined, lambda path: path.write_bytes(b"\n\n".join(part.read_bytes() for part in held_out)))
    run("inspect_tree.py", str(output), *embeddings, "--text", str(joined), "--json", str(report))
    (RESULTS / "trees").mkdir(parents=True, exist_ok=True)
    write_record(
        RESULTS / "trees" / f"{name}.json", facts | {"report": json.loads(report.read_text(encoding="utf-8"))}, seed=0
    )


def save_tokenizers(places: dict[str, Path]) -> None:
    """Save the published tokenizers under their own names, as `AutoTokenizer` loads them."""
    gpt2 = places["data"] / "tokenizers" / "gpt2"
    tokenizer = GPT2Tokenizer(vocab=str(gpt2 / "vocab.json"), merges=str(gpt2 / "merges.txt"))
    tokenizer.save_pretrained(places["work"] / "gpt2")
    bert = AutoTokenizer.from_pretrained(places["vocabularies"] / "minilm")
    bert.backend_tokenizer.no_truncation()  # the sentence model's settings are not the vocabulary's
    bert.backend_tokenizer.no_padding()
    bert.eos_token = bert.sep_token  # what stands between documents; BERT names none
    bert.save_pretrained(places["work"] / "bert-base-uncased")


def find_text(name: str, places: dict[str, Path]) -> Path:
    """Return the file of a text."""
    if name.startswith("help-"):
        return places["vocabularies"] / f"{name}.txt.xz"
    found = sorted((places["data"] / "corpora" / "train").glob(f"{name}*"))
    if not found:
        raise FileNotFoundError(f"{places['data']} has no training text {name}.")
    return found[0]


def split(name: str, places: dict[str, Path]) -> tuple[Path, Path]:
    """Write the training and the held-out part of a text, once; return both files."""
    training, held_out = WORK / "texts" / f"{name}.txt", WORK / "texts" / f"{name}.held-out.txt"
    training.parent.mkdir(parents=True, exist_ok=True)
    if name == SAMPLE.name:  # split already
        write_documents(held_out, read_documents(SAMPLE / "validation.txt.xz"))
        return SAMPLE / "train.txt.xz", held_out
    if not (training.is_file() and held_out.is_file()):
        parts = split_documents(read_documents(find_text(name, places)), HELD_OUT_EVERY)
        for file, documents in zip((training, held_out), parts, strict=True):
            write_documents(file, documents)
    return training, held_out


def write_documents(file: Path, documents: list[str]) -> None:
    """Write a text with blank lines between its documents."""
    write_atomically(file, lambda path: path.write_text("\n\n".join(documents) + "\n", encoding="utf-8"))


def run(script: str, *arguments: str) -> float:
    """Run one of the examples; return its peak resident memory in GB, or this process's if that is more."""
    process = subprocess.Popen([sys.executable, str(ROOT / "examples" / script), *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise subprocess.CalledProcessError(code, script)
    return usage.ru_maxrss / 1e6


if __name__ == "__main__":
    main()
