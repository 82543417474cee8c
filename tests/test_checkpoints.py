"""What is saved loads elsewhere, unchanged or not at all."""

import errno
import itertools
import json
import os
import shutil
from functools import partial

import pytest
import torch
from helpers.models import IDS, TREES, tiny_model
from helpers.processes import run_python
from helpers.vocabularies import numbered_words
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, TreeDiffForMaskedLM, TreeDiffModel, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import FORMAT_VERSION, HEADS, NODE_EMBEDDINGS, SCHEDULES, TIME_WARPS
from modeling_treediff.hub import save_checkpoint

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LOAD_ELSEWHERE = """
import sys, torch
sys.modules["modeling_treediff"] = None  # as if the package were not installed: importing it raises
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
folder, out = sys.argv[1:]
nodes, logits = torch.arange(100, 112)[None], {}
assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True).mask_token_id == 100
for dtype in (torch.float32, torch.bfloat16):
    for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
        model = auto.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
    assert model.dtype == dtype, model.dtype
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).tree_sha256 == model.tree.sha256
    assert model.generation_config.num_steps == 7
    text = model.generate(max_new_tokens=4)
    assert text.max() < 100
    with torch.no_grad():
        logits[dtype] = model(nodes).logits
torch.save(logits, out)
"""


@pytest.fixture
def tokenizer():
    return numbered_words(100)


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    model.generation_config.num_steps = 7
    save_checkpoint(model, tmp_path / "model", tokenizer)
    return tmp_path / "model"


def test_loads_offline_where_the_package_is_not_installed(model, checkpoint, tmp_path):
    out = tmp_path / "logits.pt"
    ran = run_python(checkpoint, out, code=LOAD_ELSEWHERE, HF_HOME=str(tmp_path / "hf"), cwd=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    for dtype, logits in torch.load(out).items():
        expected = model.to(dtype)(torch.arange(100, 112)[None]).logits
        close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
        torch.testing.assert_close(logits, expected, **close)


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
    with pytest.raises(ValueError, match="not those of its config.json, .*mismatched: "):
        TreeDiffForDiffusionLM.from_pretrained(checkpoint)


def test_tables_of_another_integer_type_are_the_same_tree(model, checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    small = {name: one.to(torch.int32) if "table_" in name else one for name, one in tensors.items()}
    save_file(small, checkpoint / "model.safetensors", metadata={"format": "pt"})
    again = TreeDiffForDiffusionLM.from_pretrained(checkpoint)
    assert {buffer.dtype for buffer in again.buffers()} == {torch.int64} and again.tree.sha256 == model.tree.sha256


def test_a_head_of_another_kind_starts_at_random_when_asked_for(model, checkpoint):
    with pytest.raises(ValueError, match="missing: head"):
        TreeDiffForDiffusionLM.from_pretrained(checkpoint, head="leaf")
    other = TreeDiffForDiffusionLM.from_pretrained(checkpoint, head="leaf", ignore_mismatched_sizes=True)
    assert torch.equal(other.model.embed_nodes.weight, model.model.embed_nodes.weight)
    body = TreeDiffModel.from_pretrained(checkpoint)  # whose head is of no use
    assert torch.equal(body.embed_nodes.weight, model.model.embed_nodes.weight)


def test_a_model_without_its_tree_is_refused_also_when_asked_for(checkpoint):
    tensors = {name: one for name, one in load_file(checkpoint / "model.safetensors").items() if "table_" not in name}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing: model.tree_tables.table_ancestors"):
        TreeDiffForDiffusionLM.from_pretrained(checkpoint, ignore_mismatched_sizes=True)


def test_a_variant_is_saved_beside_the_other_weights(model, checkpoint):
    card = (checkpoint / "README.md").read_text("utf-8")
    model.save_pretrained(checkpoint, variant="low")
    assert {path.name for path in checkpoint.glob("model*")} >= {"model.safetensors", "model.low.safetensors"}
    assert TreeDiffForDiffusionLM.from_pretrained(checkpoint, variant="low").tree.sha256 == model.tree.sha256
    assert (checkpoint / "README.md").read_text("utf-8") == card


@pytest.mark.parametrize("options", [{"push_to_hub": True}, {"tokenizer": None}])
def test_saving_says_where_else_to_push_and_to_save_a_tokenizer(model, tmp_path, options):
    with pytest.raises(ValueError, match="use push_to_hub, tokenizer.save_pretrained, or modeling_treediff.hub"):
        model.save_pretrained(tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_a_model_whose_tree_was_changed_is_not_saved(model, tmp_path):
    model.model.tree_tables.table_representative[100] += 1
    for save in (model.save_pretrained, lambda folder: save_checkpoint(model, folder)):
        with pytest.raises(ValueError, match="not the one of the config|representative"):
            save(tmp_path / "model")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_tensors_of_older_formats_have_their_new_names(model, checkpoint, tmp_path):
    """Format 2 had the tree's tables beside the layers, and a config without a number for what is new since."""
    tensors = {
        name.replace("tree_tables.", ""): one for name, one in load_file(checkpoint / "model.safetensors").items()
    }
    assert "model.table_children" in tensors
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text()) | {"format_version": 2}
    del config["tokenizer_sha256"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    nodes = torch.arange(100, 112)[None]
    for kind in (TreeDiffForDiffusionLM, TreeDiffForMaskedLM):
        older = kind.from_pretrained(checkpoint)
        assert older.config.format_version == FORMAT_VERSION and older.tree.sha256 == model.tree.sha256
    older = TreeDiffForDiffusionLM.from_pretrained(checkpoint)
    assert torch.equal(older(nodes).logits, model(nodes).logits)
    older.save_pretrained(tmp_path / "again")
    assert torch.equal(TreeDiffForDiffusionLM.from_pretrained(tmp_path / "again")(nodes).logits, model(nodes).logits)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def full(*_, **__):
    raise SafetensorError("I/O error: No space left on device (os error 28)")


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("place", "fails"),
    [
        ("transformers.modeling_utils.safe_save_file", full),
        ("transformers.modeling_utils.PreTrainedConfig.save_pretrained", no_space),
        ("modeling_treediff.vocabulary_tree.VocabularyTree.save_pretrained", no_space),
    ],
)
def test_a_full_disk_leaves_a_folder_as_it_was(model, checkpoint, tmp_path, monkeypatch, place, fails):
    before, other = contents(checkpoint), tiny_model(model.tree, seed=1)
    monkeypatch.setattr(place, fails)
    for folder in (checkpoint, tmp_path / "new"):
        for save in (other.save_pretrained, partial(save_checkpoint, other)):
            said = f"could not be written to {folder}, whose files stay as they were .*No space left"
            with pytest.raises(OSError, match=said):
                save(folder)
    monkeypatch.undo()
    assert contents(checkpoint) == before and not list((tmp_path / "new").iterdir())
    other.save_pretrained(checkpoint)
    assert contents(checkpoint)["model.safetensors"] != before["model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "vocabulary_tree.safetensors", "model.safetensors.index.json"])
def test_a_folder_in_the_way_of_a_file_costs_no_weights(model, tmp_path, name):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with pytest.raises(OSError, match=f"{name} is a folder"):
        tiny_model(model.tree, seed=1).save_pretrained(tmp_path, max_shard_size="40KB")
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}


def test_weights_of_a_variant_replace_their_own_alone(model, checkpoint):
    for seed, size in enumerate(("20KB", "40KB", "1GB", "40KB"), start=1):
        other = tiny_model(model.tree, seed=seed)
        other.save_pretrained(checkpoint, max_shard_size=size, variant="low")
        again = TreeDiffForDiffusionLM.from_pretrained(checkpoint, variant="low")
        assert torch.equal(again.model.embed_nodes.weight, other.model.embed_nodes.weight)
        index = checkpoint / "model.safetensors.index.low.json"
        named = (
            set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.low.safetensors"}
        )
        assert {file.name for file in checkpoint.glob("model.low*")} == named
    assert torch.equal(
        TreeDiffForDiffusionLM.from_pretrained(checkpoint).model.embed_nodes.weight, model.model.embed_nodes.weight
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("rope_theta", float("nan")), ("schedule", "foo"), ("num_timesteps", 0), ("hidden_size", "a"), ("vocab_size", 4)],
)
def test_a_config_that_would_not_load_is_not_saved(model, tmp_path, name, value):
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=f"{name}|{value}|4 tokens"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_generation_config_of_transformers_is_not_saved(model, tmp_path):
    model.generation_config = GenerationConfig(num_beams=2)
    with pytest.raises(ValueError, match="must be a TreeDiffGenerationConfig, got GenerationConfig"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_that_are_no_numbers_load_when_asked_for(model, tmp_path):
    """A run that diverged can be looked at."""
    with torch.no_grad():
        model.model.embed_nodes.weight[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="infinite or NaN"):
        TreeDiffForDiffusionLM.from_pretrained(tmp_path)
    diverged = TreeDiffForDiffusionLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert diverged.tree.sha256 == model.tree.sha256 and diverged.model.embed_nodes.weight[3].isnan().all()


def test_weights_given_by_a_state_dict_are_verified_anew(model):
    state = model.state_dict()
    other = tiny_model(random_tree(100, 5, 3, seed=2))
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="not the one of the config"):
        other(torch.tensor([[100]]))


def test_a_model_is_loaded_from_config_and_state_dict_alone(model):
    kind, nodes = type(model), torch.arange(100, 112)[None]
    again = kind.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert torch.equal(again(nodes).logits, model(nodes).logits)


def test_a_model_made_of_config_and_state_dict_compiles_whole(model):
    twin = TreeDiffForDiffusionLM(model.config).eval()
    twin.load_state_dict(model.state_dict())
    compiled = torch.compile(twin, fullgraph=True, backend="eager")
    nodes = torch.arange(100, 112)[None]
    torch.testing.assert_close(compiled(nodes).logits, model(nodes).logits)


def test_weights_in_other_files_replace_those_that_were_there(model, checkpoint):
    """One file, shards, fewer shards, one file: what is loaded is always what was saved last."""
    own = checkpoint / "model_backup.safetensors"
    own.write_bytes(b"of the user")
    for seed, size in enumerate(("20KB", "40KB", "1GB", "40KB"), start=1):
        other = tiny_model(model.tree, seed=seed)
        other.save_pretrained(checkpoint, max_shard_size=size)
        again = TreeDiffForDiffusionLM.from_pretrained(checkpoint)
        assert all(torch.equal(one, two) for one, two in zip(other.parameters(), again.parameters(), strict=True))
    assert not (checkpoint / "model.safetensors").exists() and own.read_bytes() == b"of the user"
    assert not list(checkpoint.glob(".*"))


def test_plain_saving_is_what_transformers_saves_and_the_tree(model, tmp_path):
    model.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.glob("*.safetensors"))
    model.save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir() if file.suffix != ".py"}
    tree = {"vocabulary_tree.safetensors", "vocabulary_tree.json"}
    assert names == tree | {"config.json", "generation_config.json", "model.safetensors"}
    loaded = TreeDiffForDiffusionLM.from_pretrained(tmp_path)
    assert loaded.tree.sha256 == model.tree.sha256 and loaded.tree.metadata == model.tree.metadata


def test_checkpoint_keeps_provenance_over_two_generations(model, checkpoint, tmp_path):
    again = TreeDiffForDiffusionLM.from_pretrained(checkpoint)
    again.save_pretrained(tmp_path / "again")
    tree = VocabularyTree.from_pretrained(tmp_path / "again")
    assert tree.metadata == model.tree.metadata and tree.metadata["tokenizer"] == "a test"
    assert tree.sha256 == model.tree.sha256 == again.config.tree_sha256


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
    refused("share the path|parents|contradicts")

    other = random_tree(100, 5, 3, seed=2)  # valid in itself, but another tree
    tensors |= {key: getattr(other, key.split("table_")[1]) for key in tensors if ".table_" in key}
    save_file(tensors, weights, metadata={"format": "pt"})
    refused("in the weights .* is not the one of the config")

    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    refused(".")

    weights.write_bytes(original)
    TreeDiffForDiffusionLM.from_pretrained(checkpoint)
    other.save_pretrained(checkpoint)
    refused("vocabulary_tree.safetensors .* is not the one of the config")
    (checkpoint / "vocabulary_tree.safetensors").write_bytes(b"garbage")
    refused("damaged")
    for file in checkpoint.glob("vocabulary_tree.*"):
        if file.suffix != ".py":
            file.unlink()
    TreeDiffForDiffusionLM.from_pretrained(checkpoint)  # the weights alone are enough to run


def test_a_model_made_from_a_config_alone_says_that_it_has_no_tree(model):
    from transformers import AutoModel

    empty = AutoModel.from_config(model.config)
    nodes, times = torch.tensor([[100, 1]]), torch.tensor([0.5])
    uses = (
        lambda: empty.tree,
        lambda: empty.generate(num_steps=3),
        lambda: empty.nelbo(torch.tensor([[1]])),
        lambda: empty(nodes),
        lambda: empty.train()(nodes, labels=torch.tensor([[1, 1]]), timesteps=times),
        lambda: empty.model(nodes),
        lambda: TreeDiffForMaskedLM(model.config)(nodes),
        lambda: TreeDiffForDiffusionLM(TreeDiffConfig(vocab_size=100, **SMALL))(nodes),  # flat, and as empty
    )
    for use in uses:
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
    with pytest.raises(ValueError, match="not the one of the config .0000"):
        TreeDiffForDiffusionLM.from_pretrained(checkpoint)


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


@pytest.mark.parametrize("num_timesteps", [None, 6])
@pytest.mark.parametrize("time_warp", TIME_WARPS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("tree", TREES, ids=IDS)
def test_every_combination_of_fields_saves_loads_and_generates(tree, schedule, time_warp, num_timesteps, tmp_path):
    """Or is refused before it is made, where a position could fall by several levels in a discrete step."""
    process = {"schedule": schedule, "time_warp": time_warp, "num_timesteps": num_timesteps}
    if num_timesteps and (
        (schedule != "sequential" and tree.tree_depth > 1) or (time_warp == "cosine" and tree.tree_depth > 2)
    ):
        with pytest.raises(ValueError, match="could fall by several levels"):
            tiny_model(tree, **process)
        return
    nodes = torch.tensor([[3, tree.root_id, 7, tree.root_id]])
    changed = schedule != SCHEDULES[0] or num_timesteps  # with which heads and embeddings have nothing to do
    for head, embedding in (zip if changed else itertools.product)(HEADS, NODE_EMBEDDINGS):
        model = tiny_model(tree, head=head, node_embedding=embedding, **process)
        model.save_pretrained(tmp_path / head / embedding)
        again = TreeDiffForDiffusionLM.from_pretrained(tmp_path / head / embedding)
        results = []
        for one in (model, again):
            draws = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
            text = one.generate(nodes, num_steps=6, generator=draws[0])
            results.append((text, torch.tensor(one.nelbo(text, num_samples=6, generator=draws[1]).value)))
        torch.testing.assert_close(*results, rtol=0, atol=0)
