"""The model: a new one over a tree, with sizes, noise schedule and head, or a saved one."""

import re
from dataclasses import dataclass
from typing import Any

from modeling_treediff.configuration_treediff import HEADS, NODE_EMBEDDINGS, SCHEDULES, TIME_WARPS, TreeDiffConfig
from modeling_treediff.files.sample import FLAT, SAMPLE_NAME

from .fields import given, option, same_as

SEQUENCE_LENGTH = 64  # of a new model
# Options by name of the preset; what else is given wins.
PRESETS = {
    f"{parameters}M": (
        *("--parameters", f"{parameters}M", "--hidden-size", f"{width}", "--heads", f"{width // 64}"),
        *("--sequence-length", f"{length}"),
    )
    for parameters, width, length in ((10, 384, 128), (30, 576, 256), (160, 1152, 512))
}
UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}  # of a number of parameters


@dataclass(frozen=True)
class Model:
    """A saved model, or tree and sizes of a new one; the defaults are the quickstart's."""

    _argument_group_name = "model"

    source: str | None = option(
        None, "a saved model instead of a new one, with its tree and its tokenizer", flag="from", metavar="CHECKPOINT"
    )
    tree: str = option(SAMPLE_NAME, f"folder or Hub repository of a tree, or `{FLAT}` (MDLM)")
    parameters: str = option("2.9M", "budget that sets the number of layers, such as 10M or 1.5e8")
    preset: str | None = option(
        None,
        "sizes that go together, with about as many parameters: "
        + "; ".join(f"{name}: {' '.join(words)}" for name, words in PRESETS.items()),
        choices=tuple(PRESETS),
        presets=PRESETS,
    )
    num_hidden_layers: int | None = option(None, "number of layers, instead of a budget", flag="layers")
    hidden_size: int = option(192, "width of the network")
    num_attention_heads: int = option(6, "attention heads", flag="heads")
    rope_theta: float | None = option(
        None,
        "base of the rotary position embedding (default: the next power of ten from --sequence-length on, at least "
        "100)",
    )
    sequence_length: int | None = option(
        None, f"tokens per sequence (default: {SEQUENCE_LENGTH}; with --from the model's longest)"
    )

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that are none."""
        _ = self.num_parameters
        if self.sequence_length is not None and self.sequence_length < 1:
            raise ValueError(f"--sequence-length must be at least 1, got {self.sequence_length}.")

    @property
    def num_parameters(self) -> int:
        """The budget as a number."""
        match = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\+?\d{1,2})?)([KMB]?)", self.parameters, re.IGNORECASE)
        if match is None:
            raise ValueError(f"--parameters must be a number such as 10M, 1.5B or 2.9e6, got {self.parameters!r}.")
        return round(float(match[1]) * UNITS[match[2].upper()])


@dataclass(frozen=True)
class Process:
    """Noise schedule and head: fields of `TreeDiffConfig` by the same names."""

    _argument_group_name = "process and head"

    schedule: str = same_as(TreeDiffConfig, "schedule", choices=SCHEDULES)
    level_durations: list[float] | None = same_as(TreeDiffConfig, "level_durations")
    perturbation: float = same_as(TreeDiffConfig, "perturbation")
    lookahead: float | None = same_as(TreeDiffConfig, "lookahead")
    time_warp: str = same_as(TreeDiffConfig, "time_warp", choices=TIME_WARPS)
    num_timesteps: int | None = same_as(TreeDiffConfig, "num_timesteps")
    head: str | None = same_as(TreeDiffConfig, "head", choices=HEADS)
    head_rank: int | None = same_as(TreeDiffConfig, "head_rank")
    node_embedding: str | None = same_as(TreeDiffConfig, "node_embedding", choices=NODE_EMBEDDINGS)
    embedding_rank: int | None = same_as(TreeDiffConfig, "embedding_rank")
    tie_word_embeddings: bool | None = same_as(TreeDiffConfig, "tie_word_embeddings")
    block_size: int | None = same_as(TreeDiffConfig, "block_size")

    @property
    def beside_source(self) -> dict[str, Any]:
        """The fields that a saved model can get, too."""
        return {name: getattr(self, name) for name in WEIGHTLESS}


WEIGHTLESS = ("block_size", "lookahead")  # fields that no weight depends on
BESIDE_FROM = ("--from", "--sequence-length", *(f"--{name.replace('_', '-')}" for name in WEIGHTLESS))
# Fields of the model's config that are options of the same name.
FAMILY = tuple(Process.__annotations__)


def check_source(model: Model, process: Process) -> None:
    """Raise ValueError for what is given beside `--from` although the checkpoint brings it along."""
    if model.source is None:
        return
    own = [flag for flag in given(model) + given(process) if flag not in BESIDE_FROM]
    own = ["--preset"] if model.preset else own  # which gives others
    if own:
        raise ValueError(f"--from brings its own model along: leave out {', '.join(own)}.")
