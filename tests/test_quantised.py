"""Models in 8 bits: torchao's int8 weights, loaded by transformers as any model's, on a CPU.

Where torchao is not installed all is skipped. It is not among the development packages: its release for one version of
torch prints warnings under another, in every process that imports transformers.
"""

import pytest
import torch
from helpers.models import tiny_model
from helpers.processes import run_python
from helpers.tiny_run import tiny_tree
from torch import nn
from transformers import AutoModel

from modeling_treediff import TreeDiffForDiffusionLM

pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")

NODES = torch.randint(72, (3, 12), generator=torch.Generator().manual_seed(0))


def load(folder, dtype=torch.float32):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    return TreeDiffForDiffusionLM.from_pretrained(folder, dtype=dtype, quantization_config=config)


@torch.no_grad()
def logits(model):
    scores = model(NODES).logits.float()
    return scores.masked_fill(scores.isinf(), 0)


FACTORISED = {"head": "node", "node_embedding": "factorised", "head_rank": 8}


@pytest.fixture(
    params=[
        {"head": "child"},
        {"head": "node"},
        {"head": "leaf"},
        FACTORISED,
        FACTORISED | {"tie_word_embeddings": True},
    ],
    ids=["child", "node", "leaf", "factorised", "shared"],
)
def saved(request, tmp_path):
    model = tiny_model(tiny_tree(), **request.param)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_every_linear_layer_has_8_bits_and_the_model_is_the_one_of_the_rounded_weights(saved):
    model, folder = saved
    quantised = load(folder)
    parameters = dict(quantised.named_parameters(remove_duplicate=False))
    rounded = 0
    with torch.no_grad():
        for name, module in model.named_modules():
            # Vectors that the embedding shares stay as they are, as in other models.
            if isinstance(module, nn.Linear) and f"{name}.weight" not in model.all_tied_weights_keys:
                weight = parameters[f"{name}.weight"].dequantize()
                step = module.weight.abs().amax(dim=1, keepdim=True) / 127
                assert ((weight - module.weight).abs() <= 0.51 * step).all() and not torch.equal(weight, module.weight)
                module.weight.copy_(weight)
                rounded += 1
    assert rounded >= 2 * 7
    torch.testing.assert_close(logits(quantised), logits(model), rtol=1e-4, atol=1e-4)
    texts = [
        some.generate(NODES[:, :6], max_new_tokens=8, num_steps=8, generator=torch.Generator().manual_seed(0))
        for some in (quantised, model)
    ]
    assert torch.equal(*texts) and quantised.tree.sha256 == model.tree.sha256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_and_bounds_stay_near(saved, dtype):
    model, folder = saved
    quantised, tokens = load(folder, dtype), NODES.clamp(max=63)
    error, size = logits(quantised) - logits(model), logits(model)
    assert error.norm() < 0.1 * size.norm()
    bounds = [
        some.nelbo(tokens, num_samples=4, generator=torch.Generator().manual_seed(0)) for some in (quantised, model)
    ]
    assert bounds[0].value == pytest.approx(bounds[1].value, rel=0.05)


LOAD_ELSEWHERE = """
import sys, torch
sys.modules["modeling_treediff"] = None  # as if the package were not installed: importing it raises
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
print(sum("Int8" in type(value).__name__ for value in model.parameters()), model.generate(max_new_tokens=4).shape[1])
"""


def test_a_quantised_checkpoint_loads_again_and_by_remote_code(tmp_path):
    tiny_model(tiny_tree()).save_pretrained(tmp_path / "model")
    quantised = load(tmp_path / "model")
    quantised.save_pretrained(tmp_path / "quantised")
    assert not [file for file in (tmp_path / "quantised").iterdir() if file.suffix in (".bin", ".pt", ".pkl")]
    assert torch.equal(logits(AutoModel.from_pretrained(tmp_path / "quantised")), logits(quantised))
    small, large = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("quantised", "model"))
    assert small < large
    ran = run_python(tmp_path / "quantised", code=LOAD_ELSEWHERE, cwd=tmp_path)
    linear = sum(isinstance(module, nn.Linear) for module in quantised.modules())
    assert ran.stdout.split() == [str(linear), "4"], ran.stderr
