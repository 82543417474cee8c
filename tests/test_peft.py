"""LoRA adapters travel on their own and merge into ordinary checkpoints. How they train is in test_trainer.py."""

import pytest
import torch
from helpers.models import BACKBONE, tiny_model
from helpers.processes import run_python
from helpers.tiny_run import tiny_tokenizer, tiny_tree
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.hub import save_checkpoint

NODES = torch.randint(64, (3, 10), generator=torch.Generator().manual_seed(0))
NODES[:, 3:7] = 64  # the root
FACTORISED = {"head": "node", "node_embedding": "factorised", "head_rank": 8}
SHARED = FACTORISED | {"tie_word_embeddings": True}
MODELS = [{"head": "child"}, {"head": "node"}, {"head": "leaf"}, FACTORISED, SHARED]


def adapted(base, **fields):
    """An adapter whose two matrices both matter, and a copy of what is saved whole that is no longer the base's."""
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=BACKBONE, **fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.5)
    return model


@torch.no_grad()
def logits(model, nodes=NODES):
    return model(nodes).logits


@pytest.mark.parametrize("model_fields", MODELS, ids=["child", "node", "leaf", "factorised", "shared"])
@pytest.mark.parametrize("fields", [{}, {"task_type": TaskType.CAUSAL_LM}, {"modules_to_save": ["head"]}])
def test_an_adapter_on_a_fresh_base_gives_the_same_logits_and_merges(tmp_path, model_fields, fields):
    base = tiny_model(tiny_tree(), **model_fields)
    base.save_pretrained(tmp_path / "base")
    bare, model = logits(base), adapted(base, **fields)
    model.save_pretrained(tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert all("lora_" in name or ".head." in name for name in names)  # no weights and no tree of the base
    fresh = TreeDiffForDiffusionLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    expected = logits(model)
    assert torch.equal(logits(loaded), expected) and not torch.allclose(expected, bare, atol=0.1)
    settings = {"max_new_tokens": 6, "num_steps": 8}
    texts = [some.generate(NODES, **settings, generator=torch.Generator().manual_seed(0)) for some in (model, loaded)]
    assert torch.equal(*texts) and texts[0].shape == (3, 16) and (texts[0] < 64).all()
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModel.from_pretrained(tmp_path / "merged")
    assert type(again) is TreeDiffForDiffusionLM and torch.equal(logits(again), logits(merged))
    assert again.state_dict().keys() == TreeDiffForDiffusionLM.from_pretrained(tmp_path / "base").state_dict().keys()


def test_an_adapter_saved_into_its_bases_folder_leaves_the_weights_there(tmp_path):
    base = tiny_model(tiny_tree())
    save_checkpoint(base, tmp_path / "base")
    adapted(base).save_pretrained(tmp_path / "adapter")
    model = TreeDiffForDiffusionLM.from_pretrained(tmp_path / "base")
    model.load_adapter(tmp_path / "adapter")
    names = ("model.safetensors", "README.md")
    before = [(tmp_path / "base" / name).read_bytes() for name in names]
    save_checkpoint(model, tmp_path / "base")
    assert [(tmp_path / "base" / name).read_bytes() for name in names] == before
    save_checkpoint(model, tmp_path / "alone")
    files = {file.name for file in (tmp_path / "alone").iterdir()}
    assert "adapter_model.safetensors" in files and "README.md" not in files  # the card is of whole models


LOAD_MERGED = """
import sys, torch
sys.modules["modeling_treediff"] = sys.modules["peft"] = None  # as if neither were installed: importing them raises
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
assert tokenizer.mask_token_id == model.tree.root_id
with torch.no_grad():
    print(model(torch.tensor(eval(sys.argv[2]))).logits.double().logsumexp(-1).sum().item())
print(model.generate(max_new_tokens=4).shape[1])
"""


def test_a_merged_model_is_an_ordinary_checkpoint_elsewhere(tmp_path):
    merged = adapted(tiny_model(tiny_tree())).merge_and_unload()
    save_checkpoint(merged, tmp_path / "merged", tiny_tokenizer())
    ran = run_python(tmp_path / "merged", str(NODES.tolist()), code=LOAD_MERGED, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    total, length = ran.stdout.split()
    assert float(total) == pytest.approx(logits(merged).double().logsumexp(-1).sum().item()) and length == "4"
