"""A checkpoint is complete, and whole at every moment."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.processes import REPOSITORY
from helpers.vocabularies import numbered_words
from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.hub import save_checkpoint


@pytest.fixture
def tokenizer():
    return numbered_words(100)


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    save_checkpoint(model, tmp_path / "model", tokenizer)
    return tmp_path / "model"


def test_a_folder_holds_all_that_is_needed_and_nothing_else(checkpoint):
    entry = REPOSITORY / "modeling_treediff" / "modeling_treediff.py"
    names = {path.name for path in checkpoint.iterdir()}
    code = {name for name in names if name.endswith(".py")}
    assert code == {file.rsplit("/", 1)[-1] for file in get_relative_import_files(str(entry))} | {entry.name}
    tree = {"vocabulary_tree.safetensors", "vocabulary_tree.json"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert (
        names - code == {"model.safetensors", "config.json", "generation_config.json", "README.md"} | tree | tokenizer
    )
    assert AutoTokenizer.from_pretrained(checkpoint).mask_token_id == 100


def test_the_main_process_alone_writes(model, tmp_path):
    save_checkpoint(model, tmp_path / "model", is_main_process=False)
    assert not (tmp_path / "model").exists()


def test_weights_that_were_gathered_are_the_ones_saved(model, tmp_path):
    state = {name: value + 1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_checkpoint(model, tmp_path, state_dict=dict(state))
    loaded = TreeDiffForDiffusionLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)


def test_an_older_checkpoint_is_replaced_and_what_else_lies_there_stays(model, checkpoint):
    """Older ones brought the template of their card, in the syntax of then; it is read no more."""
    (checkpoint / "model_card.md").write_text("$mark $parameters_all", "utf-8")
    (checkpoint / "notes.txt").write_text("mine", "utf-8")
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    save_checkpoint(TreeDiffForDiffusionLM.from_pretrained(checkpoint), checkpoint)
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before


def test_saving_over_shards_leaves_only_the_new_weights(model, tmp_path):
    save_checkpoint(model, tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        model.model.embed_nodes.weight.add_(1)
    for size in ("1GB", "10KB"):
        save_checkpoint(model, tmp_path, max_shard_size=size)
        again = TreeDiffForDiffusionLM.from_pretrained(tmp_path)
        assert torch.equal(again.model.embed_nodes.weight, model.model.embed_nodes.weight)
    assert not (tmp_path / "model.safetensors").exists()


def test_wrong_tokenizer_is_refused_before_anything_is_written(model, tokenizer, tmp_path):
    tokenizer.add_tokens(["one more"])
    with pytest.raises(ValueError, match="100 leaves but the tokenizer has 101"):
        save_checkpoint(model, tmp_path / "new", tokenizer)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("limit", [None, 8, 500])
def test_the_saved_tokenizer_knows_how_long_a_text_the_model_reads(model, tokenizer, tmp_path, limit):
    """A limit of its own that is shorter stays."""
    if limit:
        tokenizer.model_max_length = limit
    before, longest = tokenizer.model_max_length, model.config.max_position_embeddings
    save_checkpoint(model, tmp_path, tokenizer)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.model_max_length == min(limit or longest, longest) and tokenizer.model_max_length == before
    words = saved(["word1"] * 1000, is_split_into_words=True, truncation=True)
    assert len(words["input_ids"]) == saved.model_max_length


SAVE_FOREVER = """
import os, sys
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.hub import save_checkpoint
for _ in sys.stdin:  # for each line a process, without the seconds that importing takes
    if os.fork() == 0:
        model, process = TreeDiffForDiffusionLM.from_pretrained(sys.argv[1]), os.getpid()
        while True:
            model.model.embed_nodes.weight.data.add_(1)
            save_checkpoint(model, sys.argv[1])
            if process:
                print(process, flush=True)
            process = None
    os.wait()
    print("ended", flush=True)
"""


def test_a_kill_while_saving_leaves_a_checkpoint_that_loads(model, checkpoint):
    """SIGKILL at random moments of saving over an existing checkpoint: it is whole each time."""
    moments = random.Random(0)
    start, completed = model.model.embed_nodes.weight.detach().clone(), 0
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, checkpoint], start_new_session=True, **pipes)
    try:
        for _ in range(4):
            process.stdin.write(b"again\n")
            process.stdin.flush()
            saving = int(process.stdout.readline())
            time.sleep(moments.uniform(0.02, 0.4))
            os.kill(saving, signal.SIGKILL)
            assert process.stdout.readline() == b"ended\n"
            weight = TreeDiffForDiffusionLM.from_pretrained(checkpoint).model.embed_nodes.weight
            saves = (weight - start).mean().round()
            torch.testing.assert_close(weight, start + saves, rtol=0, atol=1e-3)  # one whole state, not a mixture
            completed = max(completed, int(saves))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert completed > 0
