"""The layers of other architectures, renamed and reshaped to ours.

Our layers are LLaMA's: RMSNorm before attention and MLP, rotary positions, SwiGLU, no biases. Of the others, what has a
counterpart of the same shape and meaning is taken, and what helps was measured (`benchmarks/LOG.md`).

Shape legend: H attention heads, C features per head, E = H * C hidden size, K heads for keys and values.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        layer: (tensors, config, index) -> the weights that a layer can take over, by their names in our layer.
        norm: name of the norm after the last layer, if it can be taken over.
        left_out: what is not taken over: (part of a tensor's name, what it is, why); the first that fits counts.

    """

    layer: Callable[[Tensors, Any, int], dict[str, torch.Tensor]]
    norm: str | None
    left_out: tuple[tuple[str, str, str], ...]


def llama_layer(tensors: Tensors, config: Any, index: int) -> dict[str, torch.Tensor]:
    """Take a layer over as it is, the heads of grouped queries written out: each group's keys and values repeated."""
    names = [f"self_attn.{name}" for name in PROJECTIONS]
    names += [f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj") if config.hidden_act == "silu"]
    names += ["input_layernorm", "post_attention_layernorm"]
    weights = {f"{name}.weight": tensors[f"layers.{index}.{name}.weight"] for name in names}
    for name in ("self_attn.k_proj.weight", "self_attn.v_proj.weight"):
        by_head_KCE = weights[name].unflatten(0, (config.num_key_value_heads, -1))
        groups = config.num_attention_heads // config.num_key_value_heads
        weights[name] = by_head_KCE.repeat_interleave(groups, dim=0).flatten(0, 1)
    return weights


def gpt2_layer(tensors: Tensors, config: Any, index: int) -> dict[str, torch.Tensor]:
    """Take the attention over; its matrices are saved transposed, those of query, key and value as one."""
    attention = f"h.{index}.attn"
    query, key, value = tensors[f"{attention}.c_attn.weight"].T.chunk(3)
    parts = (query, key, value, tensors[f"{attention}.c_proj.weight"].T)
    return {f"self_attn.{name}.weight": part for name, part in zip(PROJECTIONS, parts, strict=True)}


def bert_layer(tensors: Tensors, config: Any, index: int) -> dict[str, torch.Tensor]:
    """Take the attention over."""
    names = ("self.query", "self.key", "self.value", "output.dense")
    return {
        f"self_attn.{ours}.weight": tensors[f"encoder.layer.{index}.attention.{theirs}.weight"]
        for ours, theirs in zip(PROJECTIONS, names, strict=True)
    }


BIASES = ("bias", "biases", "layers have none here")
LEARNED_POSITIONS = "positions are rotary here"
GELU = "two matrices around GELU; here three, gated by SiLU"
LAYER_NORM = "LayerNorm also subtracts the mean and adds a bias; here RMSNorm"
LLAMA = Family(
    llama_layer,
    norm="norm.weight",
    left_out=(BIASES, ("mlp.", "MLPs", "another activation than SiLU")),
)
GPT2 = Family(
    gpt2_layer,
    norm=None,
    left_out=(
        ("wpe", "positions", LEARNED_POSITIONS),
        ("ln_", "norms", LAYER_NORM),
        BIASES,
        ("mlp.", "MLPs", GELU),
    ),
)
BERT = Family(
    bert_layer,
    norm=None,
    left_out=(
        ("position_embeddings", "positions", LEARNED_POSITIONS),
        ("token_type", "token types", "a text has one type here"),
        ("LayerNorm", "norms", LAYER_NORM),
        ("pooler", "pooler", "texts are not classified here"),
        BIASES,
        ("dense", "MLPs", GELU),
    ),
)
FAMILIES = {"bert": BERT, "roberta": BERT, "gpt2": GPT2, "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA}


def differing_settings(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the settings in which a source's layers differ from ours: (setting, ours)."""
    if config.model_type not in ("bert", "roberta"):
        yield "causal mask", "positions see both sides here"
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        yield "attention scores", "scaled alike in all layers here"
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        yield "sliding window", "positions see all others here"
    kind = (getattr(config, "rope_parameters", None) or {"rope_type": "default"})["rope_type"]
    if kind != "default":
        yield "rotary scaling", f"{kind} there, plain here"
