"""What is saved loads elsewhere, unchanged or not at all."""

import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.models import tiny_model
from helpers.processes import REPOSITORY, run_python
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree

SHIPPED = {
    "atomic_files.py",
    "backbone_treediff.py",
    "bad_words_treediff.py",
    "canvas_treediff.py",
    "card_metadata_treediff.py",
    "card_values_treediff.py",
    "child_choice_treediff.py",
    "configuration_treediff.py",
    "diffusion_process.py",
    "generation_config_treediff.py",
    "generation_treediff.py",
    "heads_treediff.py",
    "hub_upload.py",
    "lean_operations_treediff.py",
    "level_schedules.py",
    "likelihood_treediff.py",
    "lost_levels.py",
    "mask_token.py",
    "masked_lm_treediff.py",
    "model_card_treediff.py",
    "model_records_treediff.py",
    "modeling_treediff.py",
    "pretrained_treediff.py",
    "refinement_treediff.py",
    "schedule_base.py",
    "token_constraints_treediff.py",
    "tree_files.py",
    "tree_sketch_treediff.py",
    "tree_tables.py",
    "unmasking_treediff.py",
    "version.py",
    "vocabulary_tree.py",
}

LOAD_ELSEWHERE = """
import sys, torch
sys.modules["modeling_treediff"] = None  # as if the package were not installed: importing it raises
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
folder, dtype, out = sys.argv[1:]
nodes = torch.arange(100, 112)[None]
for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
    model = auto.from_pretrained(folder, trust_remote_code=True, dtype=getattr(torch, dtype))
assert model.dtype == getattr(torch, dtype), model.dtype
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).tree_sha256 == model.tree.sha256
assert model.generation_config.num_steps == 7
text = model.generate(max_new_tokens=4)
assert text.max() < 100
assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True).mask_token_id == 100
with torch.no_grad():
    torch.save(model(nodes).logits, out)
"""


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models

    words = {f"word{index}": index for index in range(99)} | {"<eos>": 99}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<eos>")), eos_token="<eos>", unk_token="<eos>"
    )


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    model.generation_config.num_steps = 7
    model.save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    return tmp_path / "model"


def test_folder_holds_all_that_is_needed(checkpoint):
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= SHIPPED | {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"}
    assert names >= {"vocabulary_tree.safetensors", "vocabulary_tree.json"}
    assert not [name for name in names if name.startswith(".")]


def test_shipped_files_are_the_relative_imports_of_the_model():
    package = REPOSITORY / "modeling_treediff"
    found = {os.path.basename(file) for file in get_relative_import_files(str(package / "modeling_treediff.py"))}
    assert found | {"modeling_treediff.py"} == SHIPPED


def test_shipped_files_import_only_what_every_user_has_and_siblings():
    """Every import anywhere in them: a sibling by name, Python's own, one of five packages, or asked for before."""
    known = {"torch", "transformers", "numpy", "safetensors", "huggingface_hub"} | sys.stdlib_module_names
    for name in SHIPPED:
        nodes = list(ast.walk(ast.parse((REPOSITORY / "modeling_treediff" / name).read_text(encoding="utf-8"))))
        asked = [node for node in nodes if isinstance(node, ast.If) and "_available()" in ast.unparse(node.test)]
        optional = [node for condition in asked for node in ast.walk(condition)]
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in SHIPPED, (name, node.module)
            elif isinstance(node, ast.Import | ast.ImportFrom) and node not in optional:
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert known.issuperset(module.split(".")[0] for module in modules), (name, modules)
            elif isinstance(node, ast.Name | ast.Attribute):  # nor by a name made up while running
                called = node.id if isinstance(node, ast.Name) else node.attr
                assert called not in ("__import__", "import_module"), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loads_offline_where_the_package_is_not_installed(model, checkpoint, tmp_path, dtype):
    out = tmp_path / "logits.pt"
    ran = run_python(checkpoint, dtype, out, code=LOAD_ELSEWHERE, HF_HOME=str(tmp_path / "hf"), cwd=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    expected = model.to(getattr(torch, dtype))(torch.arange(100, 112)[None]).logits
    assert torch.equal(torch.load(out), expected)


FROM_THE_HUB = """
import sys
sys.modules["modeling_treediff"] = None
from transformers import AutoModel
for options in ({}, {"revision": "dev"}, {"subfolder": "inside"}):
    model = AutoModel.from_pretrained("someone/a-model", trust_remote_code=True, **options)
    assert model.generation_config.num_steps == 7 and model.tree.metadata["tokenizer"] == "a test"
model.save_pretrained(sys.argv[1])
assert AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).tree.sha256 == model.tree.sha256
"""


def test_loads_from_the_hubs_cache(checkpoint, tmp_path):
    """The layout of a downloaded repository: helper files are looked up differently there than in a folder."""
    repository, commit = tmp_path / "hub" / "models--someone--a-model", "a" * 40
    snapshot = repository / "snapshots" / commit
    shutil.copytree(checkpoint, snapshot)
    shutil.copytree(checkpoint, snapshot / "inside")
    (repository / "refs").mkdir()
    for name in ("main", "dev"):
        (repository / "refs" / name).write_text(commit)
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": str(tmp_path / "hub"), "cwd": str(tmp_path)}
    ran = run_python(tmp_path / "again", code=FROM_THE_HUB, **environment)
    assert ran.returncode == 0, ran.stderr


def test_weights_of_other_sizes_are_refused(checkpoint):
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ValueError, match="other sizes than its config.json names"):
        TreeDiffForDiffusionLM.from_pretrained(checkpoint)


def test_a_variant_is_saved_beside_the_other_weights(model, checkpoint):
    model.save_pretrained(checkpoint, variant="low")
    assert {path.name for path in checkpoint.glob("model*")} >= {"model.safetensors", "model.low.safetensors"}
    assert TreeDiffForDiffusionLM.from_pretrained(checkpoint, variant="low").tree.sha256 == model.tree.sha256
    with pytest.raises(ValueError, match="call model.push_to_hub"):
        model.save_pretrained(checkpoint, push_to_hub=True)


def test_checkpoint_keeps_provenance_over_two_generations(model, checkpoint, tmp_path):
    again = TreeDiffForDiffusionLM.from_pretrained(checkpoint)
    again.save_pretrained(tmp_path / "again")
    tree = VocabularyTree.from_pretrained(tmp_path / "again")
    assert tree.metadata == model.tree.metadata and tree.metadata["tokenizer"] == "a test"
    assert tree.sha256 == model.tree.sha256 == again.config.tree_sha256


def test_saving_over_shards_leaves_only_the_new_weights(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        model.model.embed_nodes.weight.add_(1)
    for size in ("1GB", "10KB"):
        model.save_pretrained(tmp_path, max_shard_size=size)
        again = TreeDiffForDiffusionLM.from_pretrained(tmp_path)
        assert torch.equal(again.model.embed_nodes.weight, model.model.embed_nodes.weight)
    assert not (tmp_path / "model.safetensors").exists()


def test_wrong_tokenizer_is_refused_before_anything_is_written(model, tokenizer, tmp_path):
    tokenizer.add_tokens(["one more"])
    with pytest.raises(ValueError, match="100 leaves but the tokenizer has 101"):
        model.save_pretrained(tmp_path / "new", tokenizer=tokenizer)
    assert not (tmp_path / "new").exists()


def test_truncated_weights_are_refused(checkpoint):
    file = checkpoint / "model.safetensors"
    content = file.read_bytes()
    for size in (len(content) - 100, len(content) // 2, 10, 0):
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match="damaged"):
            TreeDiffForDiffusionLM.from_pretrained(checkpoint)


def test_a_tampered_tree_is_refused_wherever_it_lies(checkpoint):
    weights = checkpoint / "model.safetensors"
    original = weights.read_bytes()

    def refused(message):
        with pytest.raises(ValueError, match=message):
            TreeDiffForDiffusionLM.from_pretrained(checkpoint)

    tensors = load_file(weights)
    name = next(key for key in tensors if key.endswith("table_ancestors"))
    tensors[name][0, 1] = tensors[name][-1, 1]
    save_file(tensors, weights, metadata={"format": "pt"})
    refused("parents|contradicts")

    other = VocabularyTree.random(100, 5, 3, seed=2)  # valid in itself, but another tree
    tensors |= {key: getattr(other, key.split("table_")[1]) for key in tensors if ".table_" in key}
    save_file(tensors, weights, metadata={"format": "pt"})
    refused("in the weights .* is not the one the model was trained with")

    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    refused(".")

    weights.write_bytes(original)
    TreeDiffForDiffusionLM.from_pretrained(checkpoint)
    other.save_pretrained(checkpoint)
    refused("vocabulary_tree.safetensors .* is not the one the model was trained with")
    (checkpoint / "vocabulary_tree.safetensors").write_bytes(b"garbage")
    refused("damaged")
    for file in checkpoint.glob("vocabulary_tree.*"):
        if file.suffix != ".py":
            file.unlink()
    TreeDiffForDiffusionLM.from_pretrained(checkpoint)  # the weights alone are enough to run


def test_a_model_made_from_a_config_alone_says_that_it_has_no_tree(model):
    from transformers import AutoModel

    empty = AutoModel.from_config(model.config)
    for use in (lambda: empty.tree, lambda: empty.generate(num_steps=3), lambda: empty.nelbo(torch.tensor([[1]]))):
        with pytest.raises(ValueError, match="no tree yet: make it with from_tree"):
            use()
    empty.load_state_dict(model.state_dict())
    assert empty.tree.sha256 == model.tree.sha256


def test_a_vocabulary_of_one_token_is_a_vocabulary(tmp_path):
    tiny_model(VocabularyTree.flat(1)).save_pretrained(tmp_path)
    assert TreeDiffForDiffusionLM.from_pretrained(tmp_path).generate(max_new_tokens=2).tolist() == [[0, 0]]


def test_config_of_another_tree_is_refused(checkpoint):
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"tree_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="the config names 0000"):
        TreeDiffForDiffusionLM.from_pretrained(checkpoint)


SAVE_FOREVER = """
import sys
from modeling_treediff import TreeDiffForDiffusionLM
model = TreeDiffForDiffusionLM.from_pretrained(sys.argv[1])
while True:
    model.model.embed_nodes.weight.data.add_(1)
    model.save_pretrained(sys.argv[1])
    print("saved", flush=True)
"""


def test_a_kill_while_saving_leaves_a_checkpoint_that_loads(model, checkpoint):
    """SIGKILL at random moments of saving over an existing checkpoint: it is whole each time."""
    moments = random.Random(0)
    start, completed = model.model.embed_nodes.weight.detach().clone(), 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(checkpoint)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        process.stdout.readline()
        time.sleep(moments.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        weight = TreeDiffForDiffusionLM.from_pretrained(checkpoint).model.embed_nodes.weight
        saves = (weight - start).mean().round()
        torch.testing.assert_close(weight, start + saves, rtol=0, atol=1e-3)  # one whole state, not a mixture
        completed = max(completed, int(saves))
    assert completed > 0


def test_a_model_trains_on_tiny_sizes_after_loading(checkpoint):
    """Loaded weights are parameters like any other: a step changes them, never the tree."""
    model = TreeDiffForDiffusionLM.from_pretrained(checkpoint)
    before, heads = model.tree.sha256, [parameter.detach().clone() for parameter in model.head.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    out = model.train()(torch.tensor([[100, 100]]), labels=torch.tensor([[1, 2]]), timesteps=torch.tensor([0.9]))
    out.loss.backward()
    optimizer.step()
    assert model.tree.sha256 == before
    assert not all(torch.equal(*pair) for pair in zip(model.head.parameters(), heads, strict=True))
