"""Loading from a folder and from the Hub: all that users of transformers ask for, from the repository alone."""

import hashlib
import json
import os
import re

import huggingface_hub
import pytest
import torch
from helpers.hub_double import HubDouble
from helpers.models import tiny_model
from helpers.processes import run_python
from helpers.vocabularies import numbered_words
from safetensors.torch import load_file, save
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, TreeDiffForMaskedLM, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import FORMAT_VERSION
from modeling_treediff.hub import push, save_checkpoint
from modeling_treediff.modeling_treediff import TreeDiffModel

REPO = "someone/a-model"
NODES = torch.arange(100, 112)[None]


@pytest.fixture(scope="module")
def model():
    tree = random_tree(100, branching=5, depth=3, seed=1, metadata={"tokenizer": "a test"})
    model = tiny_model(tree, head="node")
    model.generation_config.num_steps = 7
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The model in shards, with its tokenizer."""
    path = tmp_path_factory.mktemp("saved") / "model"
    save_checkpoint(model, path, numbered_words(100), max_shard_size="40KB")
    return path


@pytest.fixture(scope="module")
def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- without the package --------------------------------------------------------------------------------------------

LOAD = """
import json, pathlib, socket, sys
port, source, code, out = sys.argv[1:]
sys.modules["modeling_treediff"] = None  # as if the package were not installed: importing it raises
connect, asked = socket.socket.connect, []
def watched(self, address):
    asked.append(address[1])
    return connect(self, address)
socket.socket.connect = watched
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
places = json.loads(source)
for name, place in places.items():
    place = [place.pop("source")], place | {"trust_remote_code": True}
    load = lambda auto, **options: auto.from_pretrained(*place[0], **place[1], **options)
    results = {
        "causal": load(AutoModelForCausalLM),
        "masked": load(AutoModelForMaskedLM),
        "bfloat16": load(AutoModel, dtype=torch.bfloat16),
        "cpu": load(AutoModel, device_map="cpu"),
        "auto": load(AutoModel, device_map="auto"),
        "eager": load(AutoModel, attn_implementation="eager"),
        "sdpa": load(AutoModel, attn_implementation="sdpa"),
    }
    assert results["eager"].config._attn_implementation == "eager"
    assert {type(model).__name__ for model in results.values()} == {"TreeDiffForDiffusionLM", "TreeDiffForMaskedLM"}
    for model in results.values():
        assert model.generation_config.num_steps == 7 and model.tree.metadata["tokenizer"] == "a test"
        assert str(model.device) == "cpu"
    assert load(AutoConfig).tree_sha256 == model.tree.sha256
    assert load(AutoTokenizer).mask_token_id == 100
    assert model.generate(max_new_tokens=4).max() < 100
    with torch.no_grad():
        logits = {kind: model(torch.arange(100, 112)[None]).logits for kind, model in results.items()}
    torch.save({"logits": logits, "states": {kind: model.state_dict() for kind, model in results.items()}}, out + name)
# What was executed are the repository's own files.
for name, module in list(sys.modules.items()):
    if name.startswith("transformers_modules.") and getattr(module, "__file__", None):
        run = pathlib.Path(module.__file__)
        if run.name != "__init__.py":
            assert run.read_bytes() == pathlib.Path(code, run.name).read_bytes(), run
assert set(asked) <= {int(port)}, asked
"""


def expected(model):
    """The models that each way to load should give, from the model itself."""
    masked = TreeDiffForMaskedLM(model.config).eval()
    masked.load_state_dict(model.state_dict())
    coarse = TreeDiffForDiffusionLM(model.config).eval()
    coarse.load_state_dict(model.state_dict())
    coarse = coarse.to(torch.bfloat16)
    return dict.fromkeys(("causal", "cpu", "auto", "eager", "sdpa"), model) | {"masked": masked, "bfloat16": coarse}


def assert_loads(model, out, names):
    """Equal weights to the bit, and logits up to the order of sums, which may differ from process to process."""
    for name in names:
        found = torch.load(f"{out}{name}")
        for kind, wanted in expected(model).items():
            torch.testing.assert_close(found["states"][kind], dict(wanted.state_dict()), rtol=0, atol=0)
            tolerance = 2e-2 if kind == "bfloat16" else 1e-4
            with torch.no_grad():
                logits = wanted(NODES).logits
            torch.testing.assert_close(found["logits"][kind], logits, rtol=tolerance, atol=tolerance)


def load_elsewhere(places, folder, tmp_path, port=0, **environment):
    ran = run_python(port, json.dumps(places), folder, tmp_path / "out-", code=LOAD, cwd=str(tmp_path), **environment)
    assert ran.returncode == 0, ran.stderr


def test_a_hub_repository_loads_by_its_own_code_alone_and_offline_ever_after(model, folder, files, tmp_path):
    """Main, a branch and a subfolder: downloaded by a fresh process, then from its cache when there is no Hub."""
    inside = {name if name.endswith(".py") else f"in/side/{name}": content for name, content in files.items()}
    with HubDouble() as hub:
        repository = hub.put(REPO, files)
        repository.commit("dev", inside | {"malware.py": b"raise SystemExit('executed')"}, "elsewhere")
        places = {
            "main": {"source": REPO},
            "commit": {"source": REPO, "revision": repository.refs["main"]},
            "dev": {"source": REPO, "revision": "dev", "subfolder": "in/side"},
        }
        load_elsewhere(places, folder, tmp_path, hub.port, **hub.environment(tmp_path / "home"))
        own = (f"/api/models/{REPO}", f"/{REPO}/resolve/", "/large/")
        assert {request.method for request in hub.requests} <= {"GET", "HEAD"}
        assert all(request.path.startswith(own) for request in hub.requests)
        assert not [request for request in hub.requests if "malware" in request.path]
    assert_loads(model, tmp_path / "out-", places)
    for name in places:
        (tmp_path / f"out-{name}").unlink()
    offline = hub.environment(tmp_path / "home", HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(tmp_path / "new modules"))
    load_elsewhere(places, folder, tmp_path, **offline)
    assert_loads(model, tmp_path / "out-", places)


def test_a_folder_loads_by_its_own_code_alone(model, folder, tmp_path):
    environment = {"HF_HOME": str(tmp_path / "home")}
    load_elsewhere({"folder": {"source": str(folder)}}, folder, tmp_path, **environment)
    assert_loads(model, tmp_path / "out-", ["folder"])


# ---- with the package -----------------------------------------------------------------------------------------------


def test_with_the_package_nothing_is_trusted_and_no_code_is_fetched(hub, model, folder, files):
    hub.put(REPO, files)
    for source in (folder, REPO):
        assert isinstance(AutoConfig.from_pretrained(source), TreeDiffConfig)
        assert AutoTokenizer.from_pretrained(source).mask_token_id == 100
        for auto in (AutoModel, AutoModelForCausalLM):
            loaded = auto.from_pretrained(source)
            assert type(loaded) is TreeDiffForDiffusionLM
            with torch.no_grad():
                assert torch.equal(loaded(NODES).logits, model(NODES).logits)
        assert type(AutoModelForMaskedLM.from_pretrained(source)) is TreeDiffForMaskedLM
        body = TreeDiffModel.from_pretrained(source)
        assert torch.equal(body.embed_nodes.weight, model.model.embed_nodes.weight)
    assert not [request for request in hub.requests if request.path.endswith(".py")]


def test_a_download_that_breaks_off_goes_on_where_it_was(hub, model, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    push(model, REPO)
    hub.mend()
    TreeDiffForDiffusionLM.from_pretrained(REPO, cache_dir=tmp_path / "first")
    weights = hub.repositories[REPO].files()["model.safetensors"]
    place = f"/large/{hashlib.sha256(weights).hexdigest()}"
    number = [(request.method, request.path) for request in hub.requests].index(("GET", place))
    hub.break_off(number + 1, "halfway")
    loaded = TreeDiffForDiffusionLM.from_pretrained(REPO, cache_dir=tmp_path / "second")
    start = len(weights) // 2 // 4096 * 4096
    assert f"bytes={start}-" in [request.headers.get("Range") for request in hub.requests]
    with torch.no_grad():
        assert torch.equal(loaded(NODES).logits, model(NODES).logits)


def test_loading_tells_what_it_found_to_those_who_ask(folder):
    loaded, info = TreeDiffForDiffusionLM.from_pretrained(folder, output_loading_info=True)
    assert isinstance(loaded, TreeDiffForDiffusionLM) and not info["missing_keys"]


# ---- repositories in which something is wrong -----------------------------------------------------------------------


class Executed:
    """What its unpickling does is what a pickle can do."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def first_shard(files):
    return min(name for name in files if name.startswith("model-0"))


def without_weights(files):
    return {name: content for name, content in files.items() if not name.startswith("model") or name.endswith(".py")}


def with_tensors(files, folder, change):
    """Weights in one file, of which `change` makes others."""
    tensors = {}
    for shard in sorted(folder.glob("model-*.safetensors")):
        tensors |= load_file(shard)
    return without_weights(files) | {"model.safetensors": save(change(tensors), metadata={"format": "pt"})}


def without_tree(tensors):
    return {name: tensor for name, tensor in tensors.items() if "table_" not in name}


def without(tensors, word):
    return {name: tensor for name, tensor in tensors.items() if word not in name}


def with_nan(tensors, name="model.embed_nodes.nodes.weight"):
    tensors[name][3] = float("nan")
    return tensors


def with_index(files, **changes):
    index = json.loads(files["model.safetensors.index.json"])
    return files | {"model.safetensors.index.json": json.dumps(index | changes).encode()}


def with_a_pickle_in_the_index(files, folder, tmp_path):
    torch.save({"weight": Executed(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    mapped = dict.fromkeys(json.loads(files["model.safetensors.index.json"])["weight_map"], "pytorch_model.bin")
    return with_index(files, weight_map=mapped) | {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()}


def with_another_tree(files, tmp_path):
    random_tree(90, 5, 3).save_pretrained(tmp_path / "tree")
    return files | {file.name: file.read_bytes() for file in (tmp_path / "tree").iterdir()}


def with_config(files, **fields):
    return files | {"config.json": json.dumps(json.loads(files["config.json"]) | fields).encode()}


def with_a_pickle(files, folder, tmp_path):
    torch.save({"weight": Executed(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    return without_weights(files) | {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()}


def without_field(config, name):
    return json.dumps({key: value for key, value in json.loads(config).items() if key != name}).encode()


TABLE = "model.tree_tables.table_ancestors"
WRONG = {
    "no tree": (
        lambda files, folder, _: with_tensors(files, folder, without_tree),
        "not those of its config.json, missing: (model.)?tree_tables.table_ancestors, .* Restore the original files",
    ),
    "no tensor of a name": (
        lambda files, folder, _: with_tensors(files, folder, lambda tensors: without(tensors, "layers.1.mlp.up_proj")),
        "not those of its config.json, missing: .*layers.1.mlp.up_proj.weight. Restore the original files",
    ),
    "none of the network's tensors": (
        lambda files, folder, _: with_tensors(files, folder, lambda tensors: without(tensors, "backbone")),
        "not those of its config.json, missing: .*, or start what misses at random with ignore_mismatched_sizes=True",
    ),
    "a tensor of no use": (
        lambda files, folder, _: with_tensors(files, folder, lambda tensors: tensors | {"model.more": torch.ones(2)}),
        "not those of its config.json, unexpected: (model.)?more. Restore",
    ),
    "NaN in the weights": (
        lambda files, folder, _: with_tensors(files, folder, with_nan),
        "not those of its config.json, infinite or NaN: (model.)?embed_nodes.nodes.weight. Restore",
    ),
    "a table of the tree in too small numbers": (
        lambda files, folder, _: with_tensors(
            files, folder, lambda tensors: tensors | {TABLE: tensors[TABLE].to(torch.int8)}
        ),
        "The tree's table `ancestors` names nodes outside",
    ),
    "a config without the number of layers": (
        lambda files, *_: files | {"config.json": without_field(files["config.json"], "num_hidden_layers")},
        "not those of its config.json, missing: .*layers.10",
    ),
    "an index that names a pickle": (
        with_a_pickle_in_the_index,
        "names pytorch_model.bin: only safetensors are",
    ),
    "an index without a map": (
        lambda files, *_: with_index(files, weight_map=None),
        "is damaged: it has no weight_map",
    ),
    "an index with a list": (
        lambda files, *_: with_index(files, weight_map=["model"]),
        "is damaged: it has no weight_",
    ),
    "an index of nothing": (lambda files, *_: with_index(files, weight_map={}), "is damaged: it has no weight_map"),
    "an index without metadata": (
        lambda files, *_: with_index(files, metadata=None),
        "is damaged: it has no weight_map",
    ),
    "an index of files elsewhere": (
        lambda files, *_: with_index(files, weight_map={"head": "../model.safetensors"}),
        "names ../model.safetensors: only safetensors are",
    ),
    "an index that is no JSON": (
        lambda files, *_: files | {"model.safetensors.index.json": b"{"},
        "is damaged: it has no weight_map. Restore the original file",
    ),
    "another tree beside the weights": (
        lambda files, _, tmp_path: with_another_tree(files, tmp_path),
        "not the one of the config .* Restore the original files",
    ),
    "a vocabulary of another size": (
        lambda files, *_: with_config(files, vocab_size=90, num_tree_nodes=121),
        "not those of its config.json, .*mismatched: .* Restore the original files",
    ),
    "a truncated shard": (
        lambda files, *_: files | {first_shard(files): files[first_shard(files)][:-100]},
        "are damaged, or not those of its config.json .* Save or download them again",
    ),
    "a missing shard": (
        lambda files, *_: {name: content for name, content in files.items() if name != first_shard(files)},
        "holds no model-00001-of-000.*.safetensors, .*: complete the files",
    ),
    "a pickle": (
        with_a_pickle,
        "holds no model.safetensors, and a pickle such as pytorch_model.bin is never loaded, since it can run code: "
        "complete the files, or ask their author for safetensors",
    ),
    "a newer format": (
        lambda files, *_: with_config(files, format_version=FORMAT_VERSION + 1, head="of the future"),
        f"saved in format {FORMAT_VERSION + 1}, this version of modeling-treediff reads up to {FORMAT_VERSION}: "
        "upgrade the package, or load with trust",
    ),
}

LOAD_WRONG = """
import json, sys
sys.modules["modeling_treediff"] = None
from transformers import AutoModel, AutoModelForMaskedLM
errors = {}
for source in json.loads(sys.argv[1]):
    try:
        AutoModel.from_pretrained(source, trust_remote_code=True)
    except Exception as error:
        errors[source] = str(error)
print(json.dumps(errors))
"""


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_repository_is_refused_in_a_sentence_that_says_what_to_do(hub, folder, files, tmp_path, case):
    spoil, message = WRONG[case]
    spoiled = spoil(files, folder, tmp_path)
    hub.put(REPO, spoiled)
    (tmp_path / "folder").mkdir()
    for name, content in spoiled.items():
        (tmp_path / "folder" / name).write_bytes(content)
    for source in (REPO, tmp_path / "folder"):
        for auto in (AutoModel, TreeDiffForMaskedLM, TreeDiffModel):
            with pytest.raises((OSError, ValueError), match=message) as error:
                auto.from_pretrained(source)
            assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()
    assert not [request for request in hub.requests if "pytorch_model.bin" in request.path]


def test_an_adapter_that_is_missing_is_not_taken_for_the_weights(monkeypatch, folder):
    """Errors about files of others keep their own words."""
    for words in ("someone/a-model has no file named adapter_model.safetensors", "no my-model.safetensors, no x"):

        def fail(*_, words=words, **__):
            raise OSError(words)

        monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", fail)
        with pytest.raises(OSError, match=f"^{words}$"):
            TreeDiffForDiffusionLM.from_pretrained(folder)


def test_remote_code_refuses_the_same_repositories(folder, files, tmp_path):
    """In a fresh process without the package, where the code that refuses is the repository's own.

    There, as the error says, a newer format loads by the newer code that its repository brings.
    """
    newer = with_config(files, format_version=FORMAT_VERSION + 1)
    here, there = (f"FORMAT_VERSION = {version}".encode() for version in (FORMAT_VERSION, FORMAT_VERSION + 1))
    code = newer["configuration_treediff.py"].replace(here, there)
    with HubDouble() as hub:
        hub.put("someone/newer", newer | {"configuration_treediff.py": code})
        sources = {}
        for number, (spoil, message) in enumerate(WRONG.values()):
            place = tmp_path / str(number)
            place.mkdir()
            hub.put(f"someone/model-{number}", spoil(files, folder, place))
            sources[f"someone/model-{number}"] = message
        environment = hub.environment(tmp_path / "home")
        ran = run_python(json.dumps(["someone/newer", *sources]), code=LOAD_WRONG, cwd=str(tmp_path), **environment)
        assert ran.returncode == 0, ran.stderr
        errors = json.loads(ran.stdout.splitlines()[-1])
        assert errors.keys() == sources.keys()
        for source, message in sources.items():
            assert re.search(message, errors[source]) and "\n" not in errors[source], errors[source]
        asked = [request.path for request in hub.requests if not request.path.startswith("/large/")]
        assert all(any(source in path for source in ("someone/newer", *sources)) for path in asked)
        assert not [path for path in asked if "pytorch_model.bin" in path]
    assert not list(tmp_path.glob("*/executed"))


def test_pickles_are_not_loaded_on_demand_either(folder):
    with pytest.raises(ValueError, match="leave out use_safetensors"):
        TreeDiffForDiffusionLM.from_pretrained(folder, use_safetensors=False)


def test_a_tree_of_a_newer_format_asks_for_an_upgrade(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_treediff.vocabulary_tree.FORMAT_VERSION", 2)
    tree.save_pretrained(tmp_path)
    monkeypatch.undo()
    with pytest.raises(OSError, match="has a newer format than 1: upgrade"):
        VocabularyTree.from_pretrained(tmp_path)
