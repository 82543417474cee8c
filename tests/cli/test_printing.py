"""Printing decides nothing: results are written before they are shown, and lost output ends no command."""

import io
import json
import os
import pty
import signal
import sys
import time

import pytest
from helpers.broken_outputs import broken_output
from helpers.processes import SAMPLE, run_here
from helpers.tiny_run import logged, tiny_run

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.hub import save_checkpoint
from modeling_treediff.vocabulary_tree import TREE_WEIGHTS_NAME

SIZES = ["--layers", "1", "--hidden-size", "16", "--heads", "2", "--sequence-length", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A model over the sample's tree, and a text."""
    folder = tmp_path_factory.mktemp("printing")
    tree = VocabularyTree.from_pretrained(SAMPLE)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    save_checkpoint(TreeDiffForDiffusionLM.from_tree(tree, **sizes), folder / "model", tokenizer)
    (folder / "text.txt").write_text("\n\n".join(["The state of the Union is strong. " * 20] * 6))
    return folder


class Interrupted(io.StringIO):
    """An output at which the user presses Ctrl-C as soon as something appears."""

    def write(self, text: str) -> int:
        raise KeyboardInterrupt


SHOWN = {
    "evaluate": (["{0}/model", "{0}/text.txt", "--json", "{1}/figures.json"], "figures.json"),
    "analyze-errors": (["{0}/model", "--text", "{0}/text.txt", "--output", "{1}"], "errors.png"),
    "plan-memory": ([*SIZES, "--json", "{1}/plan.json"], "plan.json"),
    "inspect-tree": (["{0}/tree", "--html", "{1}/tree.html"], "tree.html"),
    "generate": (["{0}/model", "--max-new-tokens", "4", "--animation", "{1}/text.html"], "text.html"),
    "convert": (["{2}", "--tree", "flat", "--output", "{1}/converted"], "converted/model.safetensors"),
}


@pytest.mark.parametrize("command", SHOWN)
def test_a_result_is_written_before_it_is_shown(folder, tmp_path, command, tree, checkpoints):
    words, written = SHOWN[command]
    tree.save_pretrained(folder / "tree")
    foreign = checkpoints("bert")[0] if command == "convert" else ""
    with pytest.raises(KeyboardInterrupt):
        run_here(command, *(word.format(folder, tmp_path, foreign) for word in words), output=Interrupted())
    assert (tmp_path / written).stat().st_size > 100


@pytest.mark.parametrize(
    ("kind", "encoding", "code"),
    [("full", "utf-8", 1), ("gone", "utf-8", 1), ("left", "utf-8", 0), ("left", "ascii", 0), ("full", "cp1252", 1)],
)
def test_a_command_that_prints_its_result_says_that_it_could_not(folder, tmp_path, kind, encoding, code):
    """But for a reader that has seen enough; what it writes is there."""
    with broken_output(kind, encoding) as output:
        words = [folder / "model", folder / "text.txt", "--json", tmp_path / "figures.json"]
        ran = run_here("evaluate", *words, output=output)
    assert ran.returncode == code and ("evaluate: not all could be printed: " in ran.stderr) == bool(code)
    assert json.loads((tmp_path / "figures.json").read_text())["texts"]


@pytest.mark.parametrize(
    "words",
    [
        ["push", "{0}/model", "someone/a-model", "--dry-run"],
        ["push", "{0}/model", "someone/a-model", "--config", "{0}/dry.yaml"],
        ["train", "--text", "{0}/text.txt", "--hold-out-every", "3", *SIZES, "--output", "{1}/out", "--dry-run"],
    ],
    ids=["push", "by a file", "train"],
)
@pytest.mark.parametrize("kind", ["full", "left"])
def test_a_dry_run_that_could_not_be_shown_has_failed(folder, tmp_path, words, kind):
    (folder / "dry.yaml").write_text("dry_run: true\n")
    with broken_output(kind) as output:
        ran = run_here(*(word.format(folder, tmp_path) for word in words), output=output)
    assert ran.returncode == (kind == "full"), ran.stderr
    assert ("not all could be printed" in ran.stderr) == (kind == "full")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_an_encoding_lacks_ends_no_command(folder, encoding):
    output = io.TextIOWrapper(io.BytesIO(), encoding)
    ran = run_here("evaluate", folder / "model", folder / "text.txt", output=output)
    assert ran.returncode == 0 and b"\\u2264" in output.buffer.getvalue(), ran.stderr


@pytest.mark.parametrize(
    ("command", "kind", "written"),
    [("train", "left", "result.json"), ("train", "full", "result.json"), ("build-tree", "gone", TREE_WEIGHTS_NAME)],
)
def test_a_command_whose_result_is_a_folder_ends_well(folder, tmp_path, command, kind, written):
    words = ["--tokenizer", SAMPLE, "--method", "random"]
    if command == "train":
        words = ["--text", folder / "text.txt", "--hold-out-every", 3, *SIZES, "--batch-size", 4, "--max-steps", 2]
        words += ["--warmup-steps", 0, "--validate-every", 1, "--save-every", 1]
    with broken_output(kind) as output:
        ran = run_here(command, *words, "--output", tmp_path / "out", output=output)
    assert ran.returncode == 0 and (tmp_path / "out" / written).exists(), ran.stderr
    assert ("not all could be printed" in ran.stderr) == (kind != "left")


def test_a_terminal_that_is_closed_stops_a_run_and_loses_nothing(tmp_path):
    """SIGHUP, and every write fails from then on; with a progress bar, a step after the other."""
    child, terminal = pty.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started under
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
            tiny_run(tmp_path, max_steps=500, save_every=0, batch_size=2, validate_every=3)
        except SystemExit as stop:
            os._exit(stop.code)
        except BaseException:
            os._exit(1)
    while len(logged(tmp_path)) < 3:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.read(terminal, 2**16)
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    done = len(logged(tmp_path))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{done:07d}"]
