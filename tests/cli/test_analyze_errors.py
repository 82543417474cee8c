"""Analyses of errors as people ask for them: two models or one, printed and written."""

import json

import pytest
from helpers.compared_models import compared_errors, save_compared
from helpers.models import tiny_model
from helpers.processes import last_line, run_here, run_treediff
from helpers.vocabularies import tokenizer_of

from benchmarks.quality.error_tables import check_errors, errors_section
from modeling_treediff import VocabularyTree
from modeling_treediff.evaluation.error_tables import error_markdown, summary
from modeling_treediff.hub import save_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    return save_compared(tmp_path_factory.mktemp("errors"), tokenizer)


def test_record_tables_and_picture_are_what_the_benchmarks_render(saved, tmp_path, tokenizer):
    options = ["--text", saved / "text.txt", "--output", tmp_path / "out", "--seed", 1]
    ran = run_treediff("analyze-errors", saved / "tree", saved / "flat", *options, ACCELERATE_USE_CPU="true")
    assert ran.returncode == 0, ran.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["errors.json", "errors.md", "errors.png"]
    record = json.loads((tmp_path / "out" / "errors.json").read_text("utf-8"))
    for row, expected in zip(record["rows"], compared_errors(tokenizer)["rows"], strict=True):
        assert row["difference"]["total"]["value"] == pytest.approx(expected["difference"]["total"]["value"], rel=1e-4)
    section = errors_section(record)
    assert error_markdown(record) in section and (tmp_path / "out" / "errors.md").read_text("utf-8") in section
    assert all(sentence in " ".join(ran.stdout.split()) for sentence in summary(record))
    with pytest.raises(ValueError, match=r"errors\.rows\[0\]\.difference"):
        check_errors(record | {"rows": [record["rows"][0] | {"difference": None}]})


def test_one_model_alone_and_a_flat_one(saved):
    for name, depth in (("tree", 2), ("flat", 1)):
        ran = run_here("analyze-errors", saved / name, "--text", saved / "text.txt", "--counts-of", saved / "text.txt")
        assert ran.returncode == 0, ran.stderr
        assert "difference" not in ran.stdout
        assert f"level {depth}" in ran.stdout and f"level {depth + 1}" not in ran.stdout
        assert ("Clusters most often taken for others" in ran.stdout) == (depth > 1)


@pytest.mark.parametrize(
    ("models", "more", "message"),
    [
        (["flat", "tree"], [], "The levels of one tree cannot be read off a model of another"),
        (["tree", "other"], [], "different tokenizers"),
        (["tree"], ["--samples", "1"], "cannot visit the tree's 2 levels"),
        (["tree"], ["--limit", "0"], "--limit must be at least 1"),
        (["tree"], ["--text", "missing.txt"], "no text file missing.txt"),
    ],
)
def test_bad_input_is_explained(saved, tokenizer, models, more, message):
    if "other" in models:
        tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[:8192]
        other = tokenizer_of(tokens[1], tokens[0], *tokens[2:])
        save_checkpoint(tiny_model(VocabularyTree.flat(8192)), saved / "other", other)
    ran = run_here("analyze-errors", *(saved / name for name in models), "--text", saved / "text.txt", *more)
    assert ran.returncode == (2 if "--limit" in more else 1) and message in last_line(ran)
