"""Models made from tiny random checkpoints of other architectures: what is equal, what is said of the rest."""

import hashlib
import importlib
import json
import lzma
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.processes import REPOSITORY, SAMPLE, load_example, run_python
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.conversion import (
    FAMILIES,
    REPORT_NAME,
    check_same_tokens,
    convert,
    load_source,
)
from modeling_treediff.conversion.node_vectors import node_vectors, path_increments
from modeling_treediff.conversion.sources import with_end_of_document
from modeling_treediff.text import read_documents

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
WIDTH = {"intermediate_size": 24, "max_position_embeddings": 40}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
FIELDS = {
    "bert": WIDTH,
    "roberta": WIDTH | {"pad_token_id": 1},
    "gpt2": {"n_inner": 24, "n_positions": 40},
    "llama": WIDTH | ROTARY | {"num_key_value_heads": 4, "rms_norm_eps": 1e-4},
    "mistral": WIDTH | ROTARY | {"num_key_value_heads": 2, "head_dim": None},
    "qwen2": WIDTH | ROTARY | {"num_key_value_heads": 2},
}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}
WITH_A_HEAD = {"bert": AutoModelForMaskedLM, "roberta": AutoModelForMaskedLM}
# The path's sum, in fp32, of numbers of about 0.2 to 1.
ROUNDING = {"rtol": 0.0, "atol": 3e-7}


def save_checkpoint(folder, tokenizer, kind, **fields):
    """Save a model with its head, as checkpoints are, and its tokenizer; return it without the head."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SPECIAL, **({"vocab_size": 8192 + 8} | SIZES | FIELDS[kind] | fields))
    model = WITH_A_HEAD.get(kind, AutoModelForCausalLM).from_config(config)
    for name, parameter in model.named_parameters():  # norms and biases, too, so that a copy of them shows
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.base_model.eval()


@pytest.fixture(scope="module")
def sample_tree():
    return VocabularyTree.from_pretrained(SAMPLE)


@pytest.fixture(scope="module")
def checkpoints(tokenizer, tmp_path_factory):
    """Folder and model of each kind, made when first asked for."""
    made = {}

    def checkpoint(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = folder, save_checkpoint(folder, tokenizer, kind)
        return made[kind]

    return checkpoint


def attention_of(kind, original, index):
    """The four projections of a layer (out, in), as the modules of transformers hold them."""
    if kind in ("bert", "roberta"):
        attention = original.encoder.layer[index].attention
        modules = (attention.self.query, attention.self.key, attention.self.value, attention.output.dense)
        return [module.weight for module in modules]
    if kind == "gpt2":
        attention = original.h[index].attn
        return [*attention.c_attn.weight.T.split(16), attention.c_proj.weight.T]
    attention = original.layers[index].self_attn
    groups = attention.num_key_value_groups
    repeated = [
        torch.cat([block for block in module.weight.split(4) for _ in range(groups)])  # 4 features a head
        for module in (attention.k_proj, attention.v_proj)
    ]
    return [attention.q_proj.weight, *repeated, attention.o_proj.weight]


def count(tensors):
    return sum(tensor.numel() for tensor in tensors)


def parameters_of(parts):
    return sum(part.parameters for part in parts)


# ---- vectors of nodes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_path_gives_every_node_the_mean_of_its_tokens(depth):
    tree = VocabularyTree.random(60, branching=60 if depth == 1 else 8, depth=depth)
    token_VE = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    vector_NE = node_vectors(token_VE, tree)
    increment_NE = path_increments(vector_NE, tree)
    for node in range(tree.num_nodes):
        below = [token for token in range(60) if node in tree.ancestors[token].tolist()]
        torch.testing.assert_close(vector_NE[node], token_VE[below].mean(dim=0), rtol=1e-6, atol=1e-6)
        path = tree.ancestors[below[0], : int(tree.depth[node]) + 1]
        torch.testing.assert_close(increment_NE[path].sum(dim=0), vector_NE[node], rtol=1e-6, atol=1e-6)
    assert torch.equal(vector_NE[:60], token_VE)


# ---- copies -----------------------------------------------------------------------------------------------------


def input_vectors(model):
    """What the model's first layer gets for every node: (N, E)."""
    seen = []
    hook = model.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model.model(torch.arange(model.config.num_tree_nodes)[:, None])
    hook.remove()
    return seen[0][:, 0]


@pytest.mark.parametrize("node_embedding", ["path", "free"])
@pytest.mark.parametrize("kind", FIELDS)
def test_inputs_are_the_tokens_vectors_and_their_means(checkpoints, sample_tree, kind, node_embedding):
    folder, original = checkpoints(kind)
    model, _ = convert(load_source(str(folder)), sample_tree, node_embedding=node_embedding)
    with torch.no_grad():
        vector_NE = input_vectors(model)
    token_VE = original.get_input_embeddings().weight.detach()[: sample_tree.vocab_size]
    torch.testing.assert_close(vector_NE[: sample_tree.vocab_size], token_VE, **ROUNDING)
    torch.testing.assert_close(vector_NE[sample_tree.root_id], token_VE.mean(dim=0), **ROUNDING)
    for cluster in sample_tree.children[0, :3]:
        below = sample_tree.ancestors[:, 1] == cluster
        torch.testing.assert_close(vector_NE[cluster], token_VE[below].mean(dim=0), **ROUNDING)


@pytest.mark.parametrize("kind", FIELDS)
def test_layers_are_the_sources_where_they_agree(checkpoints, sample_tree, kind):
    folder, original = checkpoints(kind)
    model, report = convert(load_source(str(folder)), sample_tree)
    for index, layer in enumerate(model.model.backbone.layers):
        ours = [getattr(layer.self_attn, f"{name}_proj").weight for name in "qkvo"]
        for copy, theirs in zip(ours, attention_of(kind, original, index), strict=True):
            assert torch.equal(copy, theirs)
    # Every parameter of the model is accounted for once, and so is every one of the source.
    assert parameters_of(report.copied + report.new) == count(model.parameters())
    whole = kind in ("llama", "mistral", "qwen2")
    assert {part.part for part in report.new} == ({"head"} if whole else {"MLPs", "norms", "head"})
    attention = 2 * sum(
        16 * 4 * heads for heads in (4, 4, *[original.config.to_dict().get("num_key_value_heads", 4)] * 2)
    )
    biases = count(tensor for name, tensor in original.named_parameters() if name.endswith("bias"))
    embeddings = original.get_input_embeddings().weight.numel()
    expected = biases if whole else count(original.parameters()) - embeddings - attention
    assert parameters_of(report.left_out) == expected


@pytest.mark.parametrize("kind", FIELDS)
def test_sizes_are_the_sources(checkpoints, sample_tree, kind):
    folder, _ = checkpoints(kind)
    config = convert(load_source(str(folder)), sample_tree)[0].config
    expected = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    expected |= {"max_position_embeddings": 38 if kind == "roberta" else 40, "initializer_range": 0.2}
    expected |= {"rope_theta": 500.0 if "rope_parameters" in FIELDS[kind] else 10000.0}
    expected |= {"rms_norm_eps": FIELDS[kind].get("rms_norm_eps", 1e-6), "eos_token_id": 0}
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_llama_without_its_causal_mask_is_our_backbone(tmp_path, tokenizer, sample_tree, heads):
    """Also with grouped queries. The reference is transformers' LlamaModel under a mask that hides nothing."""
    original = save_checkpoint(tmp_path, tokenizer, "llama", num_key_value_heads=heads)
    model = convert(load_source(str(tmp_path)), sample_tree)[0].eval()
    token_ids = torch.randint(sample_tree.vocab_size, (3, 11), generator=torch.Generator().manual_seed(0))
    nothing_hidden = torch.zeros(3, 1, 11, 11)
    with torch.no_grad():
        ours = model.model(token_ids).last_hidden_state
        theirs = original(token_ids, attention_mask=nothing_hidden, use_cache=False).last_hidden_state
        causal = original(token_ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    assert (ours - causal).abs().max() > 0.1  # the mask does matter


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_first_layers_alone(checkpoints, sample_tree, kind):
    folder, original = checkpoints(kind)
    model, report = convert(load_source(str(folder)), sample_tree, layers=1)
    assert len(model.model.backbone.layers) == model.config.num_hidden_layers == report.layers == 1
    assert torch.equal(model.model.backbone.layers[0].self_attn.q_proj.weight, attention_of(kind, original, 0)[0])
    layer = (original.h if kind == "gpt2" else original.layers)[1]
    further = next(part for part in report.left_out if part.part == "further layers")
    assert further.parameters == count(layer.parameters())


def test_heads_of_another_size_are_not_copied_and_the_rest_is(tmp_path, tokenizer, sample_tree):
    original = save_checkpoint(tmp_path, tokenizer, "llama", head_dim=8)
    model, report = convert(load_source(str(tmp_path)), sample_tree)
    notes = {part.note for part in report.new if part.part == "attention"}
    assert notes == {"shape (32, 16) there, (16, 16) here", "shape (16, 32) there, (16, 16) here"}
    assert torch.equal(model.model.backbone.layers[1].mlp.up_proj.weight, original.layers[1].mlp.up_proj.weight)
    assert model.nelbo(torch.arange(32).view(2, 16), num_samples=4).value > 0


def test_what_a_llama_does_otherwise_is_said(tmp_path, tokenizer, sample_tree):
    rotary = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    save_checkpoint(tmp_path, tokenizer, "llama", rope_parameters=rotary, hidden_act="gelu", attention_bias=True)
    _, report = convert(load_source(str(tmp_path)), sample_tree)
    assert {"biases", "MLPs", "rotary scaling", "causal mask"} <= {part.part for part in report.left_out}
    assert {part.part for part in report.new} == {"MLPs", "head"}


def test_a_tokenizer_that_only_separates_texts_ends_documents_with_that():
    bert = AutoTokenizer.from_pretrained(REPOSITORY / "tree_artifacts" / "bert-base-uncased")
    bert.eos_token = None
    assert with_end_of_document(bert).eos_token == "[SEP]"
    bert.eos_token = bert.sep_token = None
    with pytest.raises(ValueError, match="neither eos_token nor sep_token"):
        with_end_of_document(bert)


def test_a_hub_id_in_shards_is_read_from_the_cache(tmp_path, monkeypatch, tokenizer, sample_tree):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c" * 40)
    snapshot = repository / "snapshots" / ("c" * 40)
    original = save_checkpoint(snapshot, tokenizer, "llama")
    original.save_pretrained(snapshot, max_shard_size="100KB")
    (snapshot / "model.safetensors").unlink()
    source = load_source("someone/model", cache_dir=tmp_path)
    shards = sorted(snapshot.glob("model-*.safetensors"))
    assert (source.name, source.commit, sorted(source.weights_sha256)) == (
        *("someone/model", "c" * 40),
        [shard.name for shard in shards],
    )
    assert source.weights_sha256[shards[0].name] == hashlib.sha256(shards[0].read_bytes()).hexdigest()
    model, report = convert(source, sample_tree)
    assert len(shards) > 1 and (report.source, report.commit) == ("someone/model", "c" * 40)
    assert torch.equal(model.model.backbone.norm.weight, original.norm.weight)


# ---- what is refused --------------------------------------------------------------------------------------------


def test_a_tree_of_another_vocabulary(checkpoints, tokenizer, tree):
    source = load_source(str(checkpoints("gpt2")[0]))
    with pytest.raises(ValueError, match="tree has 100 leaves but the tokenizer has 8192"):
        convert(source, tree)
    vocabulary = {name: 8191 - token_id for name, token_id in tokenizer.get_vocab().items()}
    other = type("Reversed", (), {"__len__": lambda _: 8192})()
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    other.convert_ids_to_tokens = lambda ids: [names[token_id] for token_id in ids]
    with pytest.raises(ValueError, match="another vocabulary: it calls token 0"):
        check_same_tokens(tokenizer, other)
    check_same_tokens(tokenizer, tokenizer)


def test_fewer_rows_than_tokens(tmp_path, tokenizer):
    save_checkpoint(tmp_path, tokenizer, "gpt2", vocab_size=8000)
    with pytest.raises(ValueError, match="has embeddings for 8000 tokens, but its tokenizer has 8192"):
        load_source(str(tmp_path)).token_vectors()


def test_more_layers_than_there_are(checkpoints, sample_tree):
    with pytest.raises(ValueError, match="has 2 layers; 3 of them cannot be taken"):
        convert(load_source(str(checkpoints("gpt2")[0])), sample_tree, layers=3)


def test_weights_that_are_not_all_there(checkpoints, sample_tree, tmp_path):
    folder = shutil.copytree(checkpoints("llama")[0], tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the tensor 'layers.1.mlp.up_proj.weight'"):
        convert(load_source(str(folder)), sample_tree)


def test_other_files_than_those_of_a_checkpoint(checkpoints, tmp_path):
    with pytest.raises(OSError, match="config.json"):
        load_source(str(SAMPLE))
    complete = checkpoints("bert")[0]
    no_weights = shutil.copytree(complete, tmp_path / "no_weights")
    (no_weights / "model.safetensors").rename(no_weights / "pytorch_model.bin")
    with pytest.raises(OSError, match="No weights in safetensors could be read from .*no_weights, and pickles are not"):
        load_source(str(no_weights))
    truncated = shutil.copytree(complete, tmp_path / "truncated")
    content = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="The weights in .*truncated are damaged"):
        load_source(str(truncated))
    no_tokenizer = shutil.copytree(complete, tmp_path / "no_tokenizer")
    for file in no_tokenizer.glob("tokenizer*"):
        file.unlink()
    with pytest.raises((OSError, ValueError), match="tokenizer"):  # transformers makes one of nothing
        load_source(str(no_tokenizer)).token_vectors()
    (no_tokenizer / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match=r"is a model of type 't5'; those that can be converted: bert,"):
        load_source(str(no_tokenizer))


# ---- the script -------------------------------------------------------------------------------------------------


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


# ---- the benchmark ----------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("conversion")


def test_the_arms_differ_in_what_is_copied_alone(benchmark, checkpoints, sample_tree):
    source, args = load_source(str(checkpoints("llama")[0])), SimpleNamespace(seed=3, layers=None)
    random, embeddings, converted = (
        dict(benchmark.make(arm, source, sample_tree, args).named_parameters()) for arm in benchmark.ARMS
    )
    for name, tensor in converted.items():
        assert torch.equal(tensor, embeddings[name]) == (name.startswith(("head", "model.embed_nodes")))
        assert torch.equal(random[name], embeddings[name]) == (name != "model.embed_nodes.weight")


def test_the_benchmark_records_what_its_table_shows(benchmark, checkpoints, tmp_path, monkeypatch, capsys):
    text = next(iter(read_documents(SAMPLE / "validation.txt.xz")))
    for part, piece in (("train", text[:8000]), ("validation", text[8000:12000])):
        (tmp_path / f"{part}.txt.xz").write_bytes(lzma.compress(piece.encode()))
    monkeypatch.setattr(benchmark, "SAMPLE", tmp_path)
    monkeypatch.setattr(benchmark, "POINTS", 2)
    record = tmp_path / "record.json"
    options = ["--name", "tiny", "--tree", SAMPLE, "--steps", 4, "--window", 16, "--record", record]
    monkeypatch.setattr(sys, "argv", ["conversion.py", *map(str, [checkpoints("gpt2")[0], *options])])
    benchmark.main()
    facts = json.loads(record.read_text())
    assert [point["step"] for point in facts["arms"]["random"]["curve"]] == [2, 4]
    shown = capsys.readouterr().out
    assert all(f"{facts['arms'][arm]['nelbo']:.3f} ± " in shown for arm in benchmark.ARMS)
    del facts["arms"]["converted"]["nelbo"]
    with pytest.raises(ValueError, match="conversion.arms.converted lacks nelbo"):
        benchmark.conversion_table(facts)


@pytest.mark.parametrize("name", ["conversion", "conversion_smollm2"])
def test_the_recorded_runs_are_of_one_clean_commit_each(benchmark, name):
    record = json.loads((REPOSITORY / "benchmarks" / "results" / f"{name}.json").read_text())
    table = benchmark.conversion_table(record)
    gain = record["arms"]["random"]["nelbo"] - record["arms"]["converted"]["nelbo"]
    assert f"| {gain:+.3f} |" in table and not record["commit"].endswith("dirty")


def test_every_family_is_tested():
    assert FAMILIES.keys() == FIELDS.keys()
