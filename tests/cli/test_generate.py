"""Generation from the command line."""

import re
import sys

import pytest
from helpers.models import SEQUENTIAL, tiny_model
from helpers.processes import REPOSITORY, load_example, run_python
from PIL import Image


@pytest.fixture(scope="module")
def checkpoint(sample_tree, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewing") / "model"
    tiny_model(sample_tree, max_position_embeddings=64, **SEQUENTIAL).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SIZES = ["--max-new-tokens", "6", "--num-steps", "6"]


@pytest.fixture
def script(monkeypatch):
    """The script as a module: `main` with these arguments."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, arguments), *SIZES])
        load_example("generate").main()

    return main


def test_the_script_watches_and_writes_an_animation(checkpoint, tmp_path):
    """Without a terminal every draft is one plain line."""
    ran = run_python(
        REPOSITORY / "examples" / "generate.py",
        *[checkpoint, *SIZES, "--prompt", "We", "--watch", "--animation", tmp_path / "text.gif"],
    )
    assert ran.returncode == 0, ran.stderr
    first, *_, note = ran.stdout.splitlines()
    assert first == "pass 0 · open: 6 · level 1: 0 · tokens: 0: We _ _ _ _ _ _"
    assert "tokens: 6: We" in ran.stdout and "\x1b" not in ran.stdout
    with Image.open(tmp_path / "text.gif") as picture:
        assert note.endswith(f"{picture.n_frames} drafts")


def test_the_script_writes_a_page(script, checkpoint, tmp_path, capsys):
    script(checkpoint, "--infill", "We _ the _.", "--animation", tmp_path / "text.html")
    assert re.match(r"(?s)We.* the.*\.\n", capsys.readouterr().out)
    assert "<title>A text by model</title>" in (tmp_path / "text.html").read_text(encoding="utf-8")


def test_the_script_needs_the_package_only_for_watching(checkpoint, script, monkeypatch):
    """As where it is not installed: the checkpoint brings its own code."""
    code = f"""if True:
        import runpy, sys
        sys.modules["modeling_treediff"] = None
        sys.argv[0] = {str(REPOSITORY / "examples" / "generate.py")!r}
        runpy.run_path(sys.argv[0], run_name="__main__")"""
    more = ["--prompt", "We", "--temperature", "0.9,0.5", "--unmasking", "confidence", "--remasking-steps", "1"]
    ran = run_python(checkpoint, *SIZES, *more, code=code)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"step   0/\d: We _ _ _ _ _ _\n", ran.stdout)
    monkeypatch.setitem(sys.modules, "modeling_treediff", None)
    with pytest.raises(ImportError, match=r"--watch and --animation need the package .*modeling-treediff\[demo\]"):
        script(checkpoint, "--watch")


def test_the_script_writes_without_bad_words(script, checkpoint, capsys):
    script(checkpoint, "--steps-per-level", "2,3")
    drafts, text = capsys.readouterr().out.split("\n\n")
    assert "step   0/5: " in drafts
    word = text.split()[0]
    script(checkpoint, "--steps-per-level", "2,3", "--bad-words", word)
    assert word not in capsys.readouterr().out.split("\n\n")[1]


def test_the_script_refuses_other_files_before_it_loads_a_model(script):
    with pytest.raises(ValueError, match=r"a \.gif or an \.html file, not text\.mp4"):
        script("no/such/model", "--animation", "text.mp4")
