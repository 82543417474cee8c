"""Model cards and the records behind them."""

import json
import re
import shutil

from modeling_treediff.hub.card import render_card

MEASURED = ("Training", "Likelihood of further texts")  # sections


def record(folder, name="result.json"):
    return json.loads((folder / name).read_text("utf-8"))


def section(card: str, title: str) -> str:
    return re.search(rf"^#+ {title}\n(.*?)(?=^##+ )", card, re.MULTILINE | re.DOTALL)[1]


def numbers(text: str) -> list[str]:
    return re.findall(r"\d[\d.,]*", text)


def without_records(model, folder, tmp_path) -> str:
    left_out = shutil.ignore_patterns("result.json", "evaluation.json")
    return render_card(model, shutil.copytree(folder, tmp_path / "bare" / folder.name, ignore=left_out))
