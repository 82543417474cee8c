"""Models made from tiny random checkpoints of other architectures: what is equal, what is said of the rest."""

import shutil

import pytest
import torch
from helpers.foreign_checkpoints import FIELDS, attention_of, count
from safetensors.torch import load_file, save_file

from modeling_treediff.conversion import check_same_vocabulary, convert, load_source

# The path's sum, in fp32, of numbers of about 0.2 to 1.
ROUNDING = {"rtol": 0.0, "atol": 3e-7}


def input_vectors(model):
    """What the model's first layer gets for every node: (N, E)."""
    seen = []
    hook = model.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model.model(torch.arange(model.config.num_tree_nodes)[:, None])
    hook.remove()
    return seen[0][:, 0]


FULL_RANK = {"node_embedding": "factorised", "head_rank": 16, "tie_word_embeddings": False}  # nothing is lost


@pytest.mark.parametrize(
    "fields",
    [{}, {"node_embedding": "free"}, FULL_RANK, FULL_RANK | {"tie_word_embeddings": True}],
    ids=["path", "free", "factorised", "shared"],
)
@pytest.mark.parametrize("kind", FIELDS)
def test_inputs_are_the_tokens_vectors_and_their_means(checkpoints, sample_tree, kind, fields):
    folder, original = checkpoints(kind)
    model, report = convert(load_source(str(folder)), sample_tree, **fields)
    assert report.embedding_error < 1e-6
    with torch.no_grad():
        vector_NE = input_vectors(model)
    token_VE = original.get_input_embeddings().weight.detach()[: sample_tree.vocab_size]
    torch.testing.assert_close(vector_NE[: sample_tree.vocab_size], token_VE, **ROUNDING)
    torch.testing.assert_close(vector_NE[sample_tree.root_id], token_VE.mean(dim=0), **ROUNDING)
    for cluster in sample_tree.children[0, :3]:
        below, own = sample_tree.ancestors[:, 1] == cluster, 0
        if fields.get("tie_word_embeddings"):  # new numbers, which the head has for the cluster's score
            embedding = model.model.embed_nodes
            own = embedding.projection(embedding.nodes(cluster - 1)).detach()
            assert own.any()
        torch.testing.assert_close(vector_NE[cluster], token_VE[below].mean(dim=0) + own, **ROUNDING)


@pytest.mark.parametrize("kind", FIELDS)
def test_sizes_are_the_sources(checkpoints, sample_tree, kind):
    folder, _ = checkpoints(kind)
    config = convert(load_source(str(folder)), sample_tree)[0].config
    expected = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    expected |= {"max_position_embeddings": 38 if kind == "roberta" else 40, "initializer_range": 0.2}
    expected |= {"rope_theta": 500.0 if "rope_parameters" in FIELDS[kind] else 1000.0}  # the default of this size
    expected |= {"rms_norm_eps": FIELDS[kind].get("rms_norm_eps", 1e-6), "eos_token_id": 0}
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_first_layers_alone(checkpoints, sample_tree, kind):
    folder, original = checkpoints(kind)
    model, report = convert(load_source(str(folder)), sample_tree, layers=1)
    assert len(model.model.backbone.layers) == model.config.num_hidden_layers == report.layers == 1
    assert torch.equal(model.model.backbone.layers[0].self_attn.q_proj.weight, attention_of(kind, original, 0)[0])
    layer = (original.h if kind == "gpt2" else original.layers)[1]
    further = next(part for part in report.left_out if part.part == "further layers")
    assert further.parameters == count(layer.parameters())


def test_a_tree_of_another_vocabulary(checkpoints, tokenizer, tree):
    source = load_source(str(checkpoints("gpt2")[0]))
    with pytest.raises(ValueError, match="tree has 100 leaves but the tokenizer has 8192"):
        convert(source, tree)
    vocabulary = {name: 8191 - token_id for name, token_id in tokenizer.get_vocab().items()}
    other = type("Reversed", (), {"__len__": lambda _: 8192})()
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    other.convert_ids_to_tokens = lambda ids: [names[token_id] for token_id in ids]
    with pytest.raises(ValueError, match="another vocabulary: it calls token 0"):
        check_same_vocabulary(tokenizer, other)
    check_same_vocabulary(tokenizer, tokenizer)


def test_more_layers_than_there_are(checkpoints, sample_tree):
    with pytest.raises(ValueError, match="has 2 layers; 3 cannot be taken: give 1 to 2"):
        convert(load_source(str(checkpoints("gpt2")[0])), sample_tree, layers=3)


def test_weights_that_are_not_all_there(checkpoints, sample_tree, tmp_path):
    folder = shutil.copytree(checkpoints("llama")[0], tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the tensor 'layers.1.mlp.up_proj.weight'"):
        convert(load_source(str(folder)), sample_tree)


def test_the_report_says_what_a_factorised_embedding_loses(checkpoints, sample_tree):
    folder, original = checkpoints("gpt2")
    model, report = convert(load_source(str(folder)), sample_tree, node_embedding="factorised", embedding_rank=4)
    with torch.no_grad():
        vector_VE = input_vectors(model)[: sample_tree.vocab_size]
    token_VE = original.get_input_embeddings().weight.detach()[: sample_tree.vocab_size]
    mean_VE = model.model.embed_nodes._sum_paths(model.tree).detach()[
        sample_tree.ancestors[:, -2] - sample_tree.root_id
    ]
    expected = (vector_VE - token_VE).norm() / (token_VE - mean_VE).norm()
    assert report.embedding_error == pytest.approx(float(expected), rel=1e-5) and 0.1 < report.embedding_error < 1
    assert f"leaves out {report.embedding_error:.3f} of the norm" in str(report)
