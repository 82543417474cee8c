"""The model: a new one over a tree, with sizes, noise schedule and head, or a saved one."""

from dataclasses import dataclass

from modeling_treediff.configuration_treediff import HEADS, NODE_EMBEDDINGS, SCHEDULES, TIME_WARPS, TreeDiffConfig
from modeling_treediff.files.sample import FLAT, SAMPLE_NAME

from .fields import given, option, same_as

SEQUENCE_LENGTH = 64  # of a new model


@dataclass(frozen=True)
class Model:
    """A saved model, or tree and sizes of a new one; the defaults are the quickstart's."""

    _argument_group_name = "model"

    source: str | None = option(
        None, "a saved model instead of a new one, with its tree and its tokenizer", flag="from", metavar="CHECKPOINT"
    )
    tree: str = option(SAMPLE_NAME, f"folder or Hub repository of a tree, or `{FLAT}` (MDLM)")
    parameters: float = option(3.43e6, "budget that sets the number of layers")
    num_hidden_layers: int | None = option(None, "number of layers, instead of a budget", flag="layers")
    hidden_size: int = option(168, "width of the network")
    num_attention_heads: int = option(6, "attention heads", flag="heads")
    rope_theta: float = option(100.0, "base of the rotary position embedding; small for short sequences")
    sequence_length: int | None = option(
        None, f"tokens per sequence (default: {SEQUENCE_LENGTH}; with --from the model's longest)"
    )


@dataclass(frozen=True)
class Process:
    """Noise schedule and head: fields of `TreeDiffConfig` by the same names."""

    _argument_group_name = "process and head"

    schedule: str = same_as(TreeDiffConfig, "schedule", choices=SCHEDULES)
    level_durations: list[float] | None = same_as(TreeDiffConfig, "level_durations")
    time_warp: str = same_as(TreeDiffConfig, "time_warp", choices=TIME_WARPS)
    num_timesteps: int | None = same_as(TreeDiffConfig, "num_timesteps")
    head: str | None = same_as(TreeDiffConfig, "head", choices=HEADS)
    head_rank: int = same_as(TreeDiffConfig, "head_rank")
    node_embedding: str = same_as(TreeDiffConfig, "node_embedding", choices=NODE_EMBEDDINGS)


# Fields of the model's config that are options of the same name.
FAMILY = tuple(Process.__annotations__)


def check_source(model: Model, process: Process) -> None:
    """Raise ValueError for what is given beside `--from` although the checkpoint brings it along."""
    if model.source is None:
        return
    own = [flag for flag in given(model) if flag not in ("--from", "--sequence-length")] + given(process)
    if own:
        raise ValueError(f"--from brings its own model along: leave out {', '.join(own)}.")
