"""Data of the tasks in this folder: the held-out addresses of the embedded sample, offline."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from modeling_treediff.text import read_documents

SAMPLE = Path(__file__).parents[2] / "tree_artifacts" / "sotu-8k" / "validation.txt.xz"
CONTEXT, ENDING = 40, 8  # words
QUESTIONS = 10  # of each address
CHOICES = 4


def addresses(**metadata: Any) -> dict[str, Dataset]:
    """Return the addresses as the only split, one row of `text` each."""
    return {"validation": Dataset.from_list([{"text": text} for text in read_documents(SAMPLE)])}


def questions(**metadata: Any) -> dict[str, Dataset]:
    """Return rows of `context`, its own `ending`, `choices` with endings of other addresses, and the right `answer`."""
    words = [text.split() for text in read_documents(SAMPLE)]
    passages = [[_passage(address, index) for index in range(QUESTIONS)] for address in words]
    rows = []
    for place, own in enumerate(passages):
        for index, (context, ending) in enumerate(own):
            others = [passages[(place + step) % len(passages)][index][1] for step in range(1, CHOICES)]
            answer = (place + index) % CHOICES
            choices = [*others[:answer], ending, *others[answer:]]
            rows.append({"context": context, "ending": ending, "choices": choices, "answer": answer})
    return {"validation": Dataset.from_list(rows)}


def _passage(words: list[str], index: int) -> tuple[str, str]:
    """Return words from a place in an address, and those that follow; the places are evenly spread."""
    start = index * (len(words) - CONTEXT - ENDING) // QUESTIONS
    return " ".join(words[start : start + CONTEXT]), " ".join(words[start + CONTEXT : start + CONTEXT + ENDING])
