"""Complete checkpoints, model cards, and the Hugging Face Hub; nothing of it travels with a model."""

from .card import render_card, write_card
from .pushing import preview_push, push, push_tree
from .records import weights_sha256
from .saving import save_checkpoint, tokenizer_with_mask
from .upload import PushOptions

__all__ = [
    "PushOptions",
    "preview_push",
    "push",
    "push_tree",
    "render_card",
    "save_checkpoint",
    "tokenizer_with_mask",
    "weights_sha256",
    "write_card",
]
