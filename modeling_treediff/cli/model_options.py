"""Options of scripts that say which model is meant; the defaults are the quickstart's."""

import argparse
from pathlib import Path
from typing import Any

from modeling_treediff.building.budget import budget_config
from modeling_treediff.configuration_treediff import HEADS, NODE_EMBEDDINGS, SCHEDULES, TIME_WARPS, TreeDiffConfig
from modeling_treediff.vocabulary_tree import VocabularyTree

from .option_files import OptionParser

WINDOW, BATCH_SIZE = 64, 16
# Fields of the model's config that are options of the same name.
FAMILY = (
    "schedule",
    "level_durations",
    "time_warp",
    "num_timesteps",
    "head",
    "head_rank",
    "node_embedding",
)
# Settings of training that change memory and time alone, no result.
MEMORY_FIELDS = ("loss_chunk_size", "recompute_mlp_layers")
SIZES = ("parameters", "layers", "hidden_size", "heads", "rope_theta")


def add_size_options(group: argparse._ArgumentGroup, tree: Path) -> None:
    """Add the options for tree and sizes; `tree` is the default."""
    group.add_argument("--tree", default=str(tree), help="tree folder or Hub repository, or `flat` (MDLM)")
    group.add_argument(
        "--parameters", type=float, default=3.43e6, help="budget that sets the depth (default %(default)g)"
    )
    group.add_argument("--layers", type=int, help="number of layers, instead of a budget")
    group.add_argument("--hidden-size", type=int, default=168, help="(default %(default)s)")
    group.add_argument("--heads", type=int, default=6, help="attention heads (default %(default)s)")
    group.add_argument("--rope-theta", type=float, default=100.0, help="small for short windows (default %(default)g)")


def add_family_options(group: argparse._ArgumentGroup) -> None:
    """Add the options for the member of the family."""
    group.add_argument("--schedule", choices=SCHEDULES, default=TreeDiffConfig.schedule, help="(default %(default)s)")
    group.add_argument("--level-durations", type=float, nargs="+", help="of the sequential schedule, coarse to fine")
    group.add_argument("--time-warp", choices=TIME_WARPS, default=TIME_WARPS[0], help="(default %(default)s)")
    group.add_argument(
        "--num-timesteps", type=int, metavar="T", help="discrete time (D3PM), on flat trees or sequential"
    )
    group.add_argument("--head", choices=HEADS, help="(default: node over trees of depth 2, else child)")
    group.add_argument("--head-rank", type=int, default=64, help="of the node head (default %(default)s)")
    group.add_argument("--node-embedding", choices=NODE_EMBEDDINGS, default=NODE_EMBEDDINGS[0], help="(default path)")


def add_memory_options(group: argparse._ArgumentGroup) -> None:
    """Add the options for what training keeps in memory; they change no result."""
    group.add_argument("--loss-chunk-size", type=int, help="positions whose logits are kept at a time")
    group.add_argument(
        "--recompute-mlp-layers", type=int, default=0, metavar="N",
        help="of so many layers, backward computes the MLPs again: less memory, a little more time",
    )  # fmt: skip


def beside_checkpoint(parser: OptionParser, options: argparse.Namespace) -> None:
    """Raise ValueError if an option beside `--from` says what the checkpoint brings along."""
    own = [name for name in ("tree", "tokenizer", "vocab_size", *SIZES, *FAMILY) if hasattr(options, name)]
    if clash := parser.given(options, own):
        raise ValueError(f"--from brings its own model along: leave out --{clash[0].replace('_', '-')}.")


def memory_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what training keeps in memory: settings of `TrainingConfig` and of `TrainingStep`."""
    return {name: getattr(options, name) for name in MEMORY_FIELDS}


def model_fields(
    tree: VocabularyTree, options: argparse.Namespace, window: int, eos_token_id: int | None = None
) -> dict[str, Any]:
    """Return the fields of the config over the tree, with the layers asked for or those the budget pays."""
    fields: dict[str, Any] = {
        "hidden_size": options.hidden_size,
        "num_attention_heads": options.heads,
        "max_position_embeddings": window,
        "rope_theta": options.rope_theta,
        **{name: getattr(options, name) for name in FAMILY},
        "eos_token_id": eos_token_id,
        "bos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
    }
    if options.layers is not None:
        return fields | {"num_hidden_layers": options.layers}
    config = budget_config(tree, int(options.parameters), **fields)
    return fields | {name: getattr(config, name) for name in ("num_hidden_layers", "intermediate_size")}
