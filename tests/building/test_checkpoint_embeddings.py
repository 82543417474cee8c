"""Input embeddings out of checkpoints as transformers saves them, and out of single files."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from modeling_treediff.building import load_embeddings

VOCAB_SIZE = 50
SMALL = {"vocab_size": VOCAB_SIZE, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
FIELDS = {
    "gpt2": {"vocab_size": VOCAB_SIZE, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": SMALL | {"intermediate_size": 16, "tie_word_embeddings": False},
    "bert": SMALL | {"intermediate_size": 16, "max_position_embeddings": 64},
    "gpt_neox": SMALL | {"intermediate_size": 16},
    "opt": SMALL | {"ffn_dim": 16, "word_embed_proj_dim": 8, "max_position_embeddings": 64},
    "t5": {"vocab_size": VOCAB_SIZE, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2},
}  # fmt: skip
WITH_A_HEAD = {"bert": AutoModelForMaskedLM, "t5": AutoModel}


def make_model(kind, dtype=torch.float32, **fields):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(FIELDS[kind] | fields))
    return WITH_A_HEAD.get(kind, AutoModelForCausalLM).from_config(config).to(dtype)


def input_embeddings(model):
    return model.get_input_embeddings().weight.detach().float().numpy()


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("max_shard_size", ["1GB", "2KB"])
def test_checkpoints_of_every_kind(tmp_path, kind, max_shard_size):
    model = make_model(kind)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "2KB")
    embeddings = load_embeddings(tmp_path, VOCAB_SIZE)
    assert embeddings.dtype == np.float32 and embeddings.flags.writeable
    np.testing.assert_array_equal(embeddings, input_embeddings(model))
    np.testing.assert_array_equal(load_embeddings(str(tmp_path), VOCAB_SIZE), embeddings)


def test_of_the_shards_only_one_is_opened(tmp_path):
    model = make_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    needed = index["weight_map"]["model.embed_tokens.weight"]
    for shard in set(index["weight_map"].values()) - {needed}:
        (tmp_path / shard).write_bytes(b"")
    np.testing.assert_array_equal(load_embeddings(tmp_path, VOCAB_SIZE), input_embeddings(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precisions_become_float32(tmp_path, dtype):
    model = make_model("gpt2", dtype)
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(load_embeddings(tmp_path, VOCAB_SIZE), input_embeddings(model))


def test_padded_rows_are_cut_and_missing_rows_are_named(tmp_path):
    model = make_model("gpt2", vocab_size=64)
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(load_embeddings(tmp_path, VOCAB_SIZE), input_embeddings(model)[:VOCAB_SIZE])
    np.save(tmp_path / "a.npy", input_embeddings(model))
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "a.npy"):
        with pytest.raises(ValueError, match=r"has 64 rows, but the tokenizer has 70 tokens.*build-tree --extend"):
            load_embeddings(source, 70)


@pytest.mark.parametrize("local_files_only", [True, False])
@pytest.mark.parametrize("max_shard_size", ["1GB", "2KB"])
def test_a_hub_id_is_read_from_the_cache(tmp_path, monkeypatch, max_shard_size, local_files_only):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    model = make_model("llama", torch.bfloat16)
    model.save_pretrained(repository / "snapshots" / "c0ffee", max_shard_size=max_shard_size)
    options = {"cache_dir": tmp_path, "local_files_only": local_files_only}
    np.testing.assert_array_equal(load_embeddings("someone/model", VOCAB_SIZE, **options), input_embeddings(model))
    with pytest.raises(OSError, match="find them in the cached files"):
        load_embeddings("someone/other", VOCAB_SIZE, **options)


class TestSingleFiles:
    MATRIX = torch.randn(VOCAB_SIZE, 4, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
    def test_npy(self, tmp_path, dtype):
        matrix = self.MATRIX.numpy().astype(dtype)
        np.save(tmp_path / "a.npy", np.asfortranarray(matrix))
        embeddings = load_embeddings(tmp_path / "a.npy", VOCAB_SIZE)
        assert embeddings.dtype == np.dtype("float32") and embeddings.dtype.isnative and embeddings.flags.writeable
        np.testing.assert_array_equal(embeddings, matrix.astype("float32"))

    def test_the_only_matrix_of_a_file_needs_no_name(self, tmp_path):
        save_file({"anything": self.MATRIX, "scale": torch.ones(3)}, tmp_path / "a.safetensors")
        np.testing.assert_array_equal(load_embeddings(tmp_path / "a.safetensors", VOCAB_SIZE), self.MATRIX)

    def test_several_matrices_need_a_name(self, tmp_path):
        tensors = {"first": self.MATRIX, "second": 2 * self.MATRIX, "narrow": torch.ones(4, 4), "line": torch.ones(99)}
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=r"`tensor`. .* 50 rows: first \(50, 4\), second \(50, 4\)\."):
            load_embeddings(tmp_path / "a.safetensors", VOCAB_SIZE)
        embeddings = load_embeddings(tmp_path / "a.safetensors", VOCAB_SIZE, tensor="second")
        np.testing.assert_array_equal(embeddings, 2 * self.MATRIX)
        for tensor, message in [("third", "no tensor third"), ("line", r"shape \(99,\)"), ("narrow", "has 4 rows")]:
            with pytest.raises(ValueError, match=message):
                load_embeddings(tmp_path / "a.safetensors", VOCAB_SIZE, tensor=tensor)
        with pytest.raises(ValueError, match="60 rows: none"):
            load_embeddings(tmp_path / "a.safetensors", 60)

    def test_of_several_usual_names_the_one_with_enough_rows_is_taken(self, tmp_path):
        tensors = {"text.embed_tokens.weight": self.MATRIX, "audio.embed_tokens.weight": torch.ones(9, 4)}
        save_file(tensors, tmp_path / "a.safetensors")
        np.testing.assert_array_equal(load_embeddings(tmp_path / "a.safetensors", VOCAB_SIZE), self.MATRIX)
        with pytest.raises(ValueError, match=r"audio.embed_tokens.weight \(9, 4\), text.embed_tokens.weight \(50, 4\)"):
            load_embeddings(tmp_path / "a.safetensors", 9)

    def test_an_encoder_decoder_that_saved_its_matrix_three_times(self, tmp_path):
        make_model("t5").save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        copies = {f"{half}.embed_tokens.weight": tensors["shared.weight"].clone() for half in ("encoder", "decoder")}
        save_file(tensors | copies, tmp_path / "model.safetensors")
        np.testing.assert_array_equal(load_embeddings(tmp_path, VOCAB_SIZE), tensors["shared.weight"])

    def test_what_is_no_matrix_of_numbers_is_refused(self, tmp_path):
        for name, array, message in [
            ("line", np.ones(VOCAB_SIZE), r"shape \(50,\)"),
            ("whole", np.ones((VOCAB_SIZE, 2), dtype=int), "int64, not floating-point"),
            ("words", np.full((VOCAB_SIZE, 2), "word"), "not floating-point"),
        ]:
            np.save(tmp_path / f"{name}.npy", array)
            with pytest.raises(ValueError, match=message):
                load_embeddings(tmp_path / f"{name}.npy", VOCAB_SIZE)
        save_file({"a": torch.ones(VOCAB_SIZE, 2, dtype=torch.int8)}, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match="int8, not floating-point"):
            load_embeddings(tmp_path / "a.safetensors", VOCAB_SIZE)


class TestUnreadable:
    def test_a_pickle_is_not_opened(self, tmp_path):
        np.save(tmp_path / "a.npy", np.full((VOCAB_SIZE, 2), None), allow_pickle=True)
        with pytest.raises(ValueError, match=r"a.npy is damaged or holds no array of numbers"):
            load_embeddings(tmp_path / "a.npy", VOCAB_SIZE)
        (tmp_path / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(ValueError, match=r"only in pytorch_model.bin, a pickle.*save_pretrained"):
            load_embeddings(tmp_path, VOCAB_SIZE)

    @pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "model.safetensors", "model.safetensors.index.json"])
    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01"])
    def test_damaged_files_are_named(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        source = tmp_path if name.startswith("model") else tmp_path / name
        with pytest.raises(ValueError, match=str(source)):
            load_embeddings(source, VOCAB_SIZE)

    def test_missing_files_and_folders(self, tmp_path):
        for name in ("a.npy", "a.safetensors"):
            with pytest.raises(OSError, match=f"[Nn]o .*{name}"):
                load_embeddings(tmp_path / name, VOCAB_SIZE)
        for source in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(OSError, match=str(source)):
                load_embeddings(source, VOCAB_SIZE)
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        with pytest.raises(ValueError, match="unknown ending; known: .npy, .safetensors"):
            load_embeddings(tmp_path / "model.gguf", VOCAB_SIZE)


def test_a_matrix_of_another_vocabulary_is_refused(tmp_path):
    np.save(tmp_path / "large.npy", np.ones((VOCAB_SIZE + 1025, 4)))
    with pytest.raises(ValueError, match="belongs to another one"):
        load_embeddings(tmp_path / "large.npy", VOCAB_SIZE)
    np.save(tmp_path / "padded.npy", np.ones((VOCAB_SIZE + 1024, 4)))
    assert load_embeddings(tmp_path / "padded.npy", VOCAB_SIZE).shape == (VOCAB_SIZE, 4)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": ["a"]}', "{"])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_embeddings(tmp_path, VOCAB_SIZE)
