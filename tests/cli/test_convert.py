"""Conversion of a checkpoint from the command line."""

import json

import torch
from helpers.processes import REPOSITORY, SAMPLE, last_line, run_here
from safetensors.torch import load_file
from transformers import AutoTokenizer

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.conversion import REPORT_NAME


def test_the_model_that_is_made_loads_and_writes(checkpoints, tmp_path):
    folder, original = checkpoints("llama")
    options = ("--layers", 1, "--head", "node", "--output")
    ran = run_here("convert", folder, *options, tmp_path / "made")
    assert "copied    node embeddings" in ran.stdout and "further layers" in ran.stdout, ran.stderr
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
    again = run_here("convert", folder, *options, tmp_path / "again", "--tree", tmp_path / "made")
    assert again.returncode == 0, again.stderr
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("made", "again"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_flat_tree_is_there_for_mdlm(checkpoints, tmp_path):
    ran = run_here("convert", checkpoints("bert")[0], "--tree", "flat", "--output", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert TreeDiffForDiffusionLM.from_pretrained(tmp_path).config.tree_depth == 1


def test_what_cannot_be_is_refused_before_anything_is_written(checkpoints, tmp_path):
    folder, _ = checkpoints("gpt2")
    bert_tree = REPOSITORY / "tree_artifacts" / "bert-base-uncased"
    for arguments, message in (
        ([SAMPLE], "has no config.json"),
        ([folder, "--tree", bert_tree], "another vocabulary: it calls token 0"),
        ([folder, "--layers", "9"], "has 2 layers; 9"),
    ):
        ran = run_here("convert", *arguments, "--output", tmp_path / "out")
        assert ran.returncode == 1 and message in last_line(ran)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path):
    ran = run_here("convert", tmp_path / "nothing", "--output", tmp_path / "out")
    assert ran.returncode == 1 and last_line(ran).startswith("treediff convert: error: ")
    assert "There is no folder or Hub repository" in last_line(ran)
