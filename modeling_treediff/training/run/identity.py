"""The identity of a run: what must be equal for a checkpoint to be resumed, and for its bounds to be compared."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from modeling_treediff.configuration_treediff import TreeDiffConfig
from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.text.windows import TokenWindows
from modeling_treediff.training.data.sources import Windows

from .settings import TrainingConfig

# What changes no parameter but through the number of steps, or only how the windows of a step are split.
FREE_SETTINGS = (
    "output_dir", "max_steps", "decay_steps", "batch_size", "gradient_accumulation_steps", "global_batch_size",
    "find_batch_size", "gradient_checkpointing", "compile", "recompute_mlp", "loss_chunk", "validate_every",
    "save_every", "keep_checkpoints", "trackers", "workers", "attn_implementation",
)  # fmt: skip
FREE_FIELDS = (
    "format_version", "tree_sha256", "tokenizer_sha256", "max_position_embeddings", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
# What run folders of older versions lack.
ADDED_LATER = ("held-out text", "validation_windows", "uniform_share", "mixed_block_sizes")
BEFORE = {"lookahead": 0.0}  # what else they lack, as it was then
OPTIONS = {"tree": "--tree", "training text": "--text", "held-out text": "--validation-text or --hold-out-every"}
HASH_DIGITS, SHOWN_DIGITS = 64, 8


def run_identity(
    model: TreeDiffForDiffusionLM, training: Windows, validation: TokenWindows, config: TrainingConfig
) -> dict[str, Any]:
    """Return network, data, order, noise, updates and what bounds are measured on, as JSON facts by name."""
    return {
        "tree": model.tree.sha256,
        "training text": training.fingerprint,
        "held-out text": validation.fingerprint,
        "tokens per window": training.sequence_length,
        **{name: getattr(model.config, name) for name in TreeDiffConfig.__annotations__ if name not in FREE_FIELDS},
        **{name: value for name, value in asdict(config).items() if name not in FREE_SETTINGS},
    }


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return in words what one run names otherwise than ours, with the option that says it where its name does not."""
    if not missing_names(theirs, ours):
        theirs = BEFORE | dict(theirs)
    return [
        f"{name} was {_short(theirs[name])}, is {_short(ours.get(name))}"
        + (f" ({OPTIONS[name]})" if name in OPTIONS else "")
        for name in sorted(theirs)
        if theirs[name] != ours.get(name)
    ]


def missing_names(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return what one run does not name though every version did."""
    return sorted(ours.keys() - theirs.keys() - set(ADDED_LATER) - BEFORE.keys())


def _short(value: object) -> str:
    is_hash = isinstance(value, str) and len(value) == HASH_DIGITS
    return f"{str(value)[:SHOWN_DIGITS]}..." if is_hash else str(value)
