"""Texts as people ask for them: from nothing, after a prompt, in gaps; as snapshots, live, and in files."""

import re
import string

import pytest
import torch
from helpers.models import SEQUENTIAL, tiny_model
from helpers.processes import SAMPLE, last_line, run_here, run_treediff
from helpers.vocabularies import word_tokenizer

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.cli.generate import in_clusters, starting_nodes
from modeling_treediff.hub import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "model"
    model = tiny_model(VocabularyTree.from_pretrained(SAMPLE), **SEQUENTIAL)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SIZES = ["--max-new-tokens", "6", "--num-steps", "6"]


def test_a_text_is_watched_and_written_as_an_animation(checkpoint, tmp_path):
    """Without a terminal every draft is one plain line."""
    image = pytest.importorskip("PIL.Image")
    view = ["--watch", "--animation", tmp_path / "text.gif"]
    ran = run_treediff("generate", checkpoint, *SIZES, "--prompt", "We", *view)
    assert ran.returncode == 0, ran.stderr
    first, *_, note = ran.stdout.splitlines()
    assert first == "pass 0 · open: 6 · level 1: 0 · tokens: 0: We _ _ _ _ _ _"
    assert "tokens: 6: We" in ran.stdout and "\x1b" not in ran.stdout
    with image.open(tmp_path / "text.gif") as picture:
        assert note.endswith(f"{picture.n_frames} drafts")


def test_a_text_is_written_as_a_page(checkpoint, tmp_path):
    ran = run_here("generate", checkpoint, *SIZES, "--infill", "We _ the _.", "--animation", tmp_path / "text.html")
    assert re.match(r"(?s)We.* the.*\.\n", ran.stdout), ran.stderr
    assert "<title>A text by model</title>" in (tmp_path / "text.html").read_text(encoding="utf-8")


def test_settings_of_levels(checkpoint):
    levels = ["--temperature", "0.9", "0.5", "--steps-per-level", "2", "3", "--remasking-steps", "1"]
    ran = run_here("generate", checkpoint, "--max-new-tokens", "6", *levels)
    assert ran.returncode == 0 and "step   0/6: _" in ran.stdout, ran.stderr
    assert run_here("generate", checkpoint, *SIZES, "--steps-per-level", "auto", "--temperature", "2").returncode == 0


def test_a_text_is_written_without_bad_words(checkpoint):
    steps = ["--max-new-tokens", "6", "--steps-per-level", "2", "3"]
    drafts, text = run_here("generate", checkpoint, *steps).stdout.split("\n\n")
    assert "step   0/5: " in drafts
    word = next(word for word in text.split() if "\ufffd" not in word)  # whose bytes are no others
    assert word not in run_here("generate", checkpoint, *steps, "--bad-words", word).stdout.split("\n\n")[1]


def test_a_gap_becomes_a_token_of_the_cluster_of_a_word(checkpoint, tokenizer):
    """The written token is one of the cluster, since a given internal node becomes one of the tokens below it."""
    model = TreeDiffForDiffusionLM.from_pretrained(checkpoint)
    gapped = starting_nodes(tokenizer, model.config.mask_token_id, None, "The _ of _ and _.")
    nodes = in_clusters(gapped.clone(), ["people", "of"], model, tokenizer)
    people, of = (tokenizer.encode(word) for word in (" people", " of"))
    assert nodes[0][gapped[0] == model.config.mask_token_id].tolist() == [
        *model.tree.ancestors[[*people, *of], 1].tolist(),
        model.config.mask_token_id,
    ]
    assert torch.equal(nodes[gapped != model.config.mask_token_id], gapped[gapped != model.config.mask_token_id])
    flat = tiny_model(VocabularyTree.flat(tokenizer.vocab_size))
    with pytest.raises(ValueError, match="this model's is flat"):
        in_clusters(gapped, ["people"], flat, tokenizer)
    ran = run_here("generate", checkpoint, "--infill", "The _ of.", "--like", "people")
    assert ran.returncode == 0 and "step   0/" in ran.stdout and "The <" in ran.stdout.splitlines()[0], ran.stderr


def test_other_files_are_refused_before_a_model_is_loaded():
    ran = run_here("generate", "no/such/model", "--animation", "text.mp4")
    assert ran.returncode == 1 and "a .gif or an .html file, not text.mp4" in last_line(ran)


@pytest.mark.parametrize(
    "options",
    [[], ["--prompt", "The people of the United States"], ["--infill", "the United____ of America,__ peace"]],
    ids=["unconditional", "prompt", "infill"],
)
def test_generation_shows_the_text_becoming_concrete(checkpoint, options):
    run = run_here if options else run_treediff
    ran = run("generate", checkpoint, "--num-steps", "6", "--max-new-tokens", "8", *options)
    assert ran.returncode == 0, ran.stderr
    *drafts, blank, text = ran.stdout.rstrip("\n").split("\n", 6)
    assert len(drafts) == 5 and drafts[0].startswith("step   0/6: ") and blank == ""
    assert "_" in drafts[0] and "<" not in drafts[0]  # first all is open,
    assert any("<" in draft for draft in drafts)  # then clusters appear,
    assert "_" not in text  # in the end there are only tokens
    for part in re.split("_+", options[1]) if options else []:
        assert part in text


def test_generation_errors_are_one_line(checkpoint, tmp_path):
    for arguments, message, code in (
        ([checkpoint, "--prompt", "a", "--infill", "b"], "--prompt and --infill exclude each other", 2),
        ([checkpoint, "--steps-per-level", "2,3"], "--steps-per-level takes numbers or auto", 2),
        ([checkpoint, "--num-steps", "1"], "num_steps=1 is too small", 1),
        ([checkpoint, "--temperature", "0"], "temperature must be positive", 1),
        ([checkpoint, "--infill", "no gap"], "needs at least one _", 1),
        ([checkpoint, "--prompt", "a", "--like", "b"], "give a text with gaps", 2),
        ([checkpoint, "--infill", "a _", "--like", "a", "b"], "--like has 2 words for 1 gaps", 1),
        ([checkpoint, "--infill", "a _", "--like", "zxqj"], "'zxqj' is not one token", 1),
        ([checkpoint, "--prompt", "word " * 30], "more than the model's 16", 1),
        ([tmp_path / "nowhere"], "nowhere", 1),
    ):
        ran = run_here("generate", "--max-new-tokens", "8", *arguments)
        said = [line for line in ran.stderr.splitlines() if line and "Loading weights" not in line]
        assert message in last_line(ran) and len(said) == 1 and ran.returncode == code


def test_a_prompt_is_tokens_and_a_gap_an_open_position(tokenizer):
    root = 9999
    assert starting_nodes(tokenizer, root, None, None) is None
    prompt = starting_nodes(tokenizer, root, "The state", None)
    assert tokenizer.decode(prompt[0]) == "The state"
    infill = starting_nodes(tokenizer, root, None, "We must __ our _.")[0]
    assert (infill == root).sum() == 3
    assert tokenizer.decode(infill[infill != root]) == "We must our."  # the space before a gap is a part of it
    with pytest.raises(ValueError, match="at least one _"):
        starting_nodes(tokenizer, root, None, "We must")


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x00", "\u202e", "\x1b]0;title\x07", "\r"])
def test_what_a_model_writes_cannot_control_the_terminal(tmp_path, hostile):
    words = {f"a{hostile}{number}": number for number in range(99)} | {"<eos>": 99}
    save_checkpoint(tiny_model(random_tree(100, 10, 2)), tmp_path, word_tokenizer(words))
    ran = run_here("generate", tmp_path, "--num-steps", "4", "--max-new-tokens", "8")
    assert ran.returncode == 0, ran.stderr
    assert not set(hostile) & set(ran.stdout) - set(string.printable[:95])


def test_line_breaks_of_a_text_stay(tmp_path):
    words = {f"a\n{number}": number for number in range(99)} | {"<eos>": 99}
    save_checkpoint(tiny_model(random_tree(100, 10, 2)), tmp_path, word_tokenizer(words))
    text = run_here("generate", tmp_path, "--num-steps", "4", "--max-new-tokens", "8").stdout.rpartition("\n\n")[2]
    assert text.count("\n") >= 8
