"""Checkpoints of other architectures as they are read, and what is refused."""

import hashlib
import json
import shutil

import pytest
import torch
from helpers.foreign_checkpoints import save_foreign_checkpoint
from helpers.processes import REPOSITORY, SAMPLE
from transformers import AutoTokenizer

from modeling_treediff.conversion import convert, load_source
from modeling_treediff.conversion.sources import with_end_of_document


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
    original = save_foreign_checkpoint(snapshot, tokenizer, "llama")
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


def test_fewer_rows_than_tokens(tmp_path, tokenizer):
    save_foreign_checkpoint(tmp_path, tokenizer, "gpt2", vocab_size=8000)
    with pytest.raises(ValueError, match="has embeddings for 8000 tokens, but its tokenizer has 8192"):
        load_source(str(tmp_path)).token_vectors()


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
