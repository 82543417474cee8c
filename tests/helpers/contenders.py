"""Sizes and contenders that tests of the benchmarks share."""

from benchmarks.contenders import REFERENCE
from benchmarks.quality import perplexity

SIZES = {
    "cpu": (8192, 4, perplexity.SMALL),
    "half-width": (50_257, 8, perplexity.PROTOCOLS["gpu"].sizes),
    "memory": (50_257, 12, {"hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": 512}),
}

COMPARED = (REFERENCE, "tdlm-child", "ar")

TINY = perplexity.PROTOCOLS["tiny"]
