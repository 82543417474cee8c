"""Tiny checkpoints of other architectures, with random weights."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

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


def save_foreign_checkpoint(folder, tokenizer, kind, **fields):
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


def attention_of(kind, original, index):
    """Return the four projections of a layer (out, in), as the modules of transformers hold them."""
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
