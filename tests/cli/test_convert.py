"""Conversion of a checkpoint from the command line."""

import json
import sys

import pytest
import torch
from helpers.processes import REPOSITORY, SAMPLE, load_example, run_python
from safetensors.torch import load_file
from transformers import AutoTokenizer

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.conversion import REPORT_NAME


@pytest.fixture
def run_script(monkeypatch):
    """Run examples/convert.py in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        load_example("convert").main()

    return run


def test_the_script_makes_a_model_that_loads_and_writes(checkpoints, run_script, tmp_path, capsys):
    folder, original = checkpoints("llama")
    options = ("--layers", "1", "--head", "node", "--output")
    run_script(folder, *options, tmp_path / "made")
    shown = capsys.readouterr().out
    assert "copied    node embeddings" in shown and "further layers" in shown
    report = json.loads((tmp_path / "made" / REPORT_NAME).read_text())
    assert (report["model_type"], report["layers"], report["source_layers"]) == ("llama", 1, 2)
    model = TreeDiffForDiffusionLM.from_pretrained(tmp_path / "made")
    assert model.config.head == "node" and model.tree.metadata["method"] == "balanced-kmeans"
    assert report["tree_sha256"] == model.tree.sha256
    assert torch.equal(model.model.backbone.layers[0].mlp.down_proj.weight, original.layers[0].mlp.down_proj.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert tokenizer.mask_token_id == model.config.mask_token_id
    written = model.generate(max_new_tokens=8, num_steps=8)
    assert written.shape == (1, 8) and written.max() < model.config.vocab_size
    run_script(folder, *options, tmp_path / "again", "--tree", tmp_path / "made")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("made", "again"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_flat_tree_is_there_for_mdlm(checkpoints, run_script, tmp_path):
    run_script(checkpoints("bert")[0], "--tree", "flat", "--output", tmp_path)
    assert TreeDiffForDiffusionLM.from_pretrained(tmp_path).config.tree_depth == 1


def test_the_script_refuses_before_it_writes(checkpoints, run_script, tmp_path):
    folder, _ = checkpoints("gpt2")
    bert_tree = REPOSITORY / "tree_artifacts" / "bert-base-uncased"
    for arguments, message in (
        ([SAMPLE], "has no config.json"),
        ([folder, "--tree", bert_tree], "another vocabulary: it calls token 0"),
        ([folder, "--layers", "9"], "has 2 layers; 9"),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            run_script(*arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_script_says_in_one_line_what_is_wrong(tmp_path):
    ran = run_python("examples/convert.py", tmp_path / "nothing", "--output", tmp_path / "out")
    (line,) = ran.stderr.strip().splitlines()[-1:]
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert line.startswith("convert.py: error: ") and "is neither a folder nor a Hub repository" in line
