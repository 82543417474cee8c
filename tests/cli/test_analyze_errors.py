"""Analysis of errors from the command line."""

import json
import sys

import pytest
from helpers.compared_models import compared_errors, save_compared
from helpers.models import tiny_model
from helpers.processes import REPOSITORY, load_example, run_python
from helpers.vocabularies import tokenizer_of

from benchmarks.quality.error_tables import check_errors, errors_section
from modeling_treediff import VocabularyTree
from modeling_treediff.evaluation.error_tables import error_markdown, summary


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    return save_compared(tmp_path_factory.mktemp("errors"), tokenizer)


def test_the_script_writes_what_the_benchmarks_render(saved, tmp_path, tokenizer):
    arguments = [
        saved / "tree",
        saved / "flat",
        "--text",
        saved / "text.txt",
        "--output",
        tmp_path / "out",
        "--seed",
        "1",
    ]
    ran = run_python(REPOSITORY / "examples" / "analyze_errors.py", *arguments, ACCELERATE_USE_CPU="true")
    assert ran.returncode == 0, ran.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["errors.json", "errors.md", "errors.png"]
    record = json.loads((tmp_path / "out" / "errors.json").read_text("utf-8"))
    for row, expected in zip(record["rows"], compared_errors(tokenizer)["rows"], strict=True):
        assert row["difference"]["total"]["value"] == pytest.approx(expected["difference"]["total"]["value"], rel=1e-4)
    section = errors_section(record)
    assert error_markdown(record) in section and (tmp_path / "out" / "errors.md").read_text("utf-8") in section
    assert all(sentence in " ".join(ran.stdout.replace("\n", " ").split()) for sentence in summary(record))
    with pytest.raises(ValueError, match=r"errors\.rows\[0\]\.difference"):
        check_errors(record | {"rows": [record["rows"][0] | {"difference": None}]})


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["analyze_errors.py", *map(str, arguments)])
    load_example("analyze_errors").main()


def test_one_model_alone_and_a_flat_one(saved, monkeypatch, capsys):
    for name, depth in (("tree", 2), ("flat", 1)):
        run_main(monkeypatch, saved / name, "--text", saved / "text.txt", "--counts-of", saved / "text.txt")
        shown = capsys.readouterr().out
        assert "difference" not in shown and f"level {depth}" in shown and f"level {depth + 1}" not in shown
        assert ("Clusters most often taken for others" in shown) == (depth > 1)


@pytest.mark.parametrize(
    ("models", "more", "message"),
    [
        (["flat", "tree"], [], "A model of another tree cannot be read"),
        (["tree", "other"], [], "different tokenizers"),
        (["tree"], ["--samples", "1"], "cannot visit the tree's 2 levels"),
        (["tree"], ["--limit", "0"], "--limit must be at least 1"),
        (["tree"], ["--text", "missing.txt"], "no text file missing.txt"),
    ],
)
def test_bad_input_is_explained(saved, monkeypatch, tokenizer, models, more, message):
    if "other" in models:
        tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[:8192]
        other = tokenizer_of(tokens[1], tokens[0], *tokens[2:])
        tiny_model(VocabularyTree.flat(8192)).save_pretrained(saved / "other", tokenizer=other)
    folders = [saved / name for name in models]
    with pytest.raises((ValueError, OSError), match=message):
        run_main(monkeypatch, *folders, "--text", saved / "text.txt", *more)
