"""The reference checkpoint: its text out of five public-domain ones, and the trained model rounded to bf16.

here=runs/reference   # TEXTS holds sotu, spurgeon, mhcc, web_bible and austen, each .txt.xz
python -m benchmarks.quality.reference text TEXTS $here/classics.txt
treediff build-tree --text $here/classics.txt --train-tokenizer 8192 --license cc0-1.0 --output $here/classics-8k
treediff train --text $here/classics.txt --tree $here/classics-8k ... --output $here/model   # options: in the card
python -m benchmarks.quality.reference save $here/model $here/classics.txt examples/classics-7m

Judged beside the model of `make quickstart`, each with real text that it has not seen:

python -m benchmarks.quality.reference held-out $here/classics.txt $here/held_out.txt
python -m benchmarks.generation.quality classics-7m=examples/classics-7m --text $here/held_out.txt \
    --judge runs/SmolLM2-135M-Instruct --samplers random "random, top-p 0.9" confidence --passes 64 \
    --record benchmarks/results/judged_reference.json --figure $here/judged.png
python -m benchmarks.generation.quality quickstart=runs/quickstart/model --judge runs/SmolLM2-135M-Instruct \
    --samplers random "random, top-p 0.9" confidence --passes 64 \
    --record benchmarks/results/judged_quickstart.json --figure $here/judged_quickstart.png

What is saved has weights of 2 bytes, in which it is measured again, and is loaded as fp32: a CPU computes with that.
"""

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.quality.packed_data import spread
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.cli.saved_model import load_model
from modeling_treediff.cli.train import draw_samples
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.files.json_files import read_json, write_json
from modeling_treediff.hub import save_checkpoint, weights_sha256, write_card
from modeling_treediff.hub.records import CURVES_NAME, TRAINING_RECORD
from modeling_treediff.text import Corpus, read_documents
from modeling_treediff.text.documents import split_documents
from modeling_treediff.training import DataOptions, open_training_data

WORKS = ("sotu", "spurgeon", "mhcc", "web_bible")  # a document is an address, a psalm or a book
NOVELS = "austen"  # wrapped lines, and chapters under headings
CHAPTER = re.compile(r"\n(?=\s*chapter\s+[ivxlc\d]+\.?\s*\n)", re.IGNORECASE)
LEAST = 500  # characters of a chapter: less is a line of a table of contents
WINDOWS = 4096  # measured at most
DESCRIPTION = (
    "five texts in the public domain, 35 MB: State of the Union addresses (1790 on), Spurgeon's Treasury of David, "
    "Matthew Henry's Concise Commentary, the World English Bible, and six novels by Jane Austen"
)
LICENSE = "public domain; of the State of the Union addresses CC0-1.0"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    text = commands.add_parser("text", help="join the texts")
    text.add_argument("folder", type=Path, help="of the texts, NAME.txt.xz")
    text.add_argument("output", type=Path, help="file to write")
    save = commands.add_parser("save", help="round the weights, measure, and write a complete checkpoint")
    save.add_argument("model", type=Path, help="folder that `treediff train` wrote")
    save.add_argument("text", type=Path, help="that it was trained on")
    save.add_argument("output", type=Path, help="folder to write")
    held_out = commands.add_parser("held-out", help="write the documents that training does not see")
    held_out.add_argument("text", type=Path, help="the joined texts")
    held_out.add_argument("output", type=Path, help="file to write")
    options = parser.parse_args()
    if options.what == "text":
        write_text(options.output, documents(options.folder))
    elif options.what == "held-out":
        write_text(options.output, split_documents(read_documents(options.text), DataOptions.hold_out_every)[1])
    else:
        save_rounded(options.model, options.text, options.output)


def write_text(file: Path, documents: list[str]) -> None:
    """Write documents with blank lines between them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    joined = "\n\n".join(documents) + "\n"
    write_atomically(file, lambda path: path.write_text(joined, encoding="utf-8"))


def documents(folder: Path) -> list[str]:
    """Return the documents of all texts; of the novels the chapters, without line breaks in paragraphs."""
    found = [document for name in WORKS for document in read_documents(folder / f"{name}.txt.xz")]
    paragraphs = list(read_documents(folder / f"{NOVELS}.txt.xz"))
    chapters = CHAPTER.split("\n\n".join(paragraphs))
    unwrapped = ["\n".join(map(unwrap, chapter.split("\n\n"))) for chapter in chapters]
    return found + [chapter for chapter in unwrapped if len(chapter) > LEAST]


def unwrap(paragraph: str) -> str:
    """Return a paragraph in one line."""
    return " ".join(paragraph.split())


def save_rounded(source: Path, text: Path, output: Path) -> None:
    """Write the model with its weights rounded to bf16, its record with what these were measured to reach, its card."""
    model, tokenizer = load_model(str(source), dtype=torch.float32)
    rounded = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.base_model.tree_tables.metadata["license"] = LICENSE
    save_checkpoint(model, output, tokenizer, state_dict=rounded)
    shutil.copyfile(source / CURVES_NAME, output / CURVES_NAME)
    model = TreeDiffForDiffusionLM.from_pretrained(output)
    record = read_json(source / TRAINING_RECORD)
    record |= {"weights_dtype": "bfloat16", "weights_sha256": weights_sha256(output), "text_description": DESCRIPTION}
    record |= measured(model, text, tokenizer, record["seed"], record["hold_out_every"])
    record["samples"] = draw_samples(output, tokenizer)
    write_json(output / TRAINING_RECORD, record)
    write_card(model, output)


def measured(
    model: TreeDiffForDiffusionLM, text: Path, tokenizer: PreTrainedTokenizerBase, seed: int, every: int
) -> dict[str, Any]:
    """Return the bound on the held-out text as `treediff train` measures it."""
    options = DataOptions(model.config.max_position_embeddings, hold_out_every=every)
    _, validation = open_training_data(Corpus(text), tokenizer, options)
    bound = model.nelbo(spread(validation, WINDOWS), generator=torch.Generator().manual_seed(seed))
    return {
        "nelbo": bound.value,
        "nelbo_standard_error": bound.standard_error,
        "level_losses": bound.level_losses,
        "validation_tokens": bound.num_tokens,
    }


if __name__ == "__main__":
    main()
