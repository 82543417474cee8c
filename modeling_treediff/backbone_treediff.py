"""A bidirectional transformer: embeddings in, hidden states out. It knows nothing of trees or diffusion.

Shape legend: B sequences, T positions, H heads, C features per head, E = H * C hidden size, I width of the MLP.

Pre-norm blocks (RMSNorm, arXiv 1910.07467), rotary positions (arXiv 2104.09864), gated MLP (SwiGLU, arXiv 2002.05202).
Tables are computed in `forward`, not kept in buffers: models are created on the meta device when they are loaded.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer
from transformers.masking_utils import and_masks, create_bidirectional_mask, packed_sequence_mask_function
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from .configuration_treediff import TreeDiffConfig

Rotation = tuple[torch.Tensor, torch.Tensor]
AttentionMask = torch.Tensor | BlockMask | None  # what the attention implementation takes


def rotary_tables(length: int, head_dim: int, theta: float, device: torch.device) -> Rotation:
    """Return fp32 cos and sin, each (T, C), of position x theta^(-2i/C), feature i paired with i + C/2."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angle = (torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


class TreeDiffAttention(nn.Module):
    """Multi-head attention over all positions, in both directions."""

    is_causal = False

    def __init__(self, config: TreeDiffConfig, layer_index: int) -> None:
        super().__init__()
        self.config, self.layer_index = config, layer_index
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = 1
        size = config.hidden_size
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(
        self, hidden_BTE: torch.Tensor, rotation: Rotation, attention_mask: AttentionMask, past: Cache | None = None
    ) -> torch.Tensor:
        """(B, T, E) -> (B, T, E)."""
        projected = self.q_proj(hidden_BTE), self.k_proj(hidden_BTE), self.v_proj(hidden_BTE)
        return self.o_proj(self.mix(projected, rotation, attention_mask, past))

    def mix(
        self,
        projected: tuple[torch.Tensor, ...],
        rotation: Rotation,
        attention_mask: AttentionMask,
        past: Cache | None = None,
    ) -> torch.Tensor:
        """Queries, keys, values (B, T, E), beside those of a cache -> (B, T, E): each head's mean by its scores."""
        size = projected[0].shape
        query, key, value = (features.view(*size[:-1], -1, self.head_dim).transpose(1, 2) for features in projected)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        query, key = apply_rotary_pos_emb(query, key, *(table[None].to(query.dtype) for table in rotation))
        if past is not None:
            key, value = past.update(key, value, self.layer_index)
        options: dict[str, Any] = {"dropout": 0.0, "scaling": self.head_dim**-0.5, "is_causal": False}
        mixed_BTHC, _ = attend(self, query, key, value, attention_mask, **options)
        return mixed_BTHC.reshape(size)


class TreeDiffMLP(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TreeDiffConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_BTE: torch.Tensor) -> torch.Tensor:
        """(B, T, E) -> (B, T, E)."""
        return self.down_proj(F.silu(self.gate_proj(hidden_BTE)) * self.up_proj(hidden_BTE))


class TreeDiffBlock(GradientCheckpointingLayer):
    """A pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TreeDiffConfig, layer_index: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = TreeDiffAttention(config, layer_index)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = TreeDiffMLP(config)

    def forward(
        self, hidden_BTE: torch.Tensor, rotation: Rotation, attention_mask: AttentionMask, past: Cache | None = None
    ) -> torch.Tensor:
        """(B, T, E) -> (B, T, E)."""
        hidden_BTE = hidden_BTE + self.self_attn(self.input_layernorm(hidden_BTE), rotation, attention_mask, past)
        return hidden_BTE + self.mlp(self.post_attention_layernorm(hidden_BTE))


class TreeDiffBackbone(nn.Module):
    """The stack of blocks and the final norm."""

    def __init__(self, config: TreeDiffConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(TreeDiffBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        embeddings_BTE: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        block_numbers: torch.Tensor | None = None,
        clean_BTE: torch.Tensor | None = None,
        past: Cache | None = None,
    ) -> torch.Tensor:
        """(B, T, E) embeddings -> (B, T, E) normalised hidden states.

        attention_mask (B, T) has 0 at padding; positions with different segment_ids (B, T) do not see one another. With
        block_numbers (B, T) positions see their own block and those before it; with clean_BTE (B, T, E), the embeddings
        of the clean tokens, they see these of the blocks before (BD3-LM, arXiv 2503.09573, section 3.2). Behind a cache
        of P positions the other arguments are (B, P + T).
        """
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        length, device = embeddings_BTE.shape[1], embeddings_BTE.device
        done = 0 if past is None else int(past.get_seq_length())
        cos_TC, sin_TC = rotary_tables(done + length, head_dim, self.config.rope_theta, device)
        rotation = cos_TC[done:], sin_TC[done:]
        hidden_BTE, beside = embeddings_BTE, (attention_mask, segment_ids, block_numbers)
        if clean_BTE is not None:
            hidden_BTE = torch.cat([embeddings_BTE, clean_BTE], dim=1)
            beside = tuple(None if some is None else some.repeat(1, 2) for some in beside)  # type: ignore[assignment]
            rotation = rotation[0].repeat(2, 1), rotation[1].repeat(2, 1)
        mask = self._attention_mask(hidden_BTE, *beside, noisy=length if clean_BTE is not None else 0, past=past)
        for layer in self.layers:
            hidden_BTE = layer(hidden_BTE, rotation, mask, past)
        return self.norm(hidden_BTE[:, :length])

    def _attention_mask(
        self,
        embeddings_BTE: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        block_numbers: torch.Tensor | None,
        noisy: int,
        past: Cache | None,
    ) -> AttentionMask:
        """Return who sees whom; the first `noisy` positions are those that clean ones stand beside."""
        if segment_ids is None and block_numbers is None:
            return create_bidirectional_mask(self.config, embeddings_BTE, attention_mask)
        if "flash" in (kind := self.config._attn_implementation):
            raise ValueError(f"{kind} cannot keep segments or blocks apart: use attn_implementation='sdpa'.")
        if attention_mask is not None:  # padding as a segment of its own: a position that saw nothing would become NaN
            segment_ids = torch.zeros_like(attention_mask, dtype=torch.long) if segment_ids is None else segment_ids
            segment_ids = segment_ids.masked_fill(attention_mask == 0, segment_ids.min() - 1)
        size, length, device = *embeddings_BTE.shape[:2], embeddings_BTE.device
        known = length if block_numbers is None else block_numbers.shape[1]
        room = 0, 0 if past is None else past.get_mask_sizes(length, 0)[0] - known  # of a static cache: a block to come
        functions = [] if segment_ids is None else [packed_sequence_mask_function(F.pad(segment_ids, room))]
        if block_numbers is not None:
            functions.append(_block_mask_function(F.pad(block_numbers, room, value=known), noisy))
        sees = and_masks(*functions)
        if "flex" in kind:
            # By numbers: a static cache counts in a tensor, which its update changes before attention reads the mask.
            shape, before = (size, None, length, known + room[1]), known - length
            apart = not torch.compiler.is_compiling()
            return create_block_mask(lambda b, h, q, k: sees(b, h, q + before, k), *shape, device, _compile=apart)
        # Not transformers' own for the others: it maps the function over numbers, which triples a short pass.
        place_K = torch.arange(known + room[1], device=device)
        query_Q1 = place_K[known - length : known, None]
        sees_B1QK = sees(torch.arange(size, device=device)[:, None, None, None], query_Q1, query_Q1, place_K)
        return sees_B1QK if kind == "sdpa" else torch.where(sees_B1QK, 0.0, torch.finfo(torch.float32).min)


def cached_positions(cache: Cache, input_ids: torch.Tensor, config: TreeDiffConfig) -> int:
    """Return how many positions a cache holds; ValueError if it is of no use for this model and these texts (B, T)."""
    if not isinstance(cache, Cache) or not hasattr(cache, "layers"):  # one for an encoder has none
        raise ValueError(f"past_key_values must be a decoder's cache of transformers, got {type(cache).__name__}.")
    layers: Any = cache.layers
    kinds: list[Any] = [type(layer) for layer in layers] or [cache.layer_class_to_replicate]
    if other := [kind for kind in kinds if kind not in (DynamicLayer, StaticLayer)]:
        raise ValueError(f"past_key_values has layers of {other[0]}: take a DynamicCache or a StaticCache instead.")
    done, keys = int(cache.get_seq_length()), layers[0].keys if layers else None
    room = getattr(layers[0], "max_cache_len", math.inf) if layers else math.inf
    heads = config.num_attention_heads
    expected = len(input_ids), config.num_hidden_layers, heads, config.hidden_size // heads, input_ids.device
    found = (len(keys), len(layers), keys.shape[1], keys.shape[3], keys.device) if keys is not None else expected
    if found != expected or layers and len(layers) != config.num_hidden_layers:
        said = "a cache of (texts, layers, heads, head size, device)"
        raise ValueError(f"past_key_values is {said} {found}, not {expected}: make a new one for these texts.")
    if (length := done + input_ids.shape[1]) > room:
        raise ValueError(f"past_key_values has room for {room} positions, not for {length}: give it more.")
    return done


def crop(cache: Cache, length: int) -> None:
    """Let a cache forget all behind its first positions."""
    layers: Any = cache.layers
    for layer in layers:
        if isinstance(layer, StaticLayer):  # whose tensors stay
            layer.cumulative_length.fill_(length)
        else:
            layer.crop(length - int(layer.get_seq_length()))


def _block_mask_function(block_numbers: torch.Tensor, noisy: int) -> Callable[..., torch.Tensor]:
    """Return who sees whom: noisy positions their own block and clean blocks before it, clean ones clean blocks."""

    def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own, other = block_numbers[batch, query], block_numbers[batch, key]
        both_noisy, of_clean, to_clean = (query < noisy) & (key < noisy), query >= noisy, key >= noisy
        return (both_noisy & (other == own)) | (to_clean & ((other < own) | (of_clean & (other == own))))

    return sees
