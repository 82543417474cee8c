"""Predict the memory of training before the run, without a GPU and without allocating it."""

import re
from dataclasses import dataclass
from pathlib import Path

from modeling_treediff.training.run.settings import TrainingConfig

from .fields import option, same_as
from .model import Model, Process, check_source

EXAMPLES = """
  treediff plan-memory --tree my_tree --preset 160M --batch-size 32 --mixed-precision bf16 --gpu 24GB \\
      --picture step.png
  treediff plan-memory --tree flat --vocab-size 50257 --layers 12 --hidden-size 768 --heads 12
  treediff plan-memory --from my_model --batch-size 32
"""
UNITS = {"M": 2**20, "G": 2**30}  # what makers of GPUs call 24GB is 24 GiB


@dataclass(frozen=True)
class PlannedModel(Model):
    """The model; of a saved one only config.json is read."""

    vocab_size: int = option(8192, "tokens of the flat tree")


@dataclass(frozen=True)
class PlannedStep:
    """The training: options as of `treediff train`, and the processes that `accelerate launch` would start."""

    _argument_group_name = "training"

    batch_size: int = same_as(TrainingConfig, "batch_size")
    gradient_accumulation_steps: int = same_as(TrainingConfig, "gradient_accumulation_steps")
    mixed_precision: str | None = same_as(TrainingConfig, "mixed_precision", help="no: fp32 (default: no)")
    gradient_checkpointing: bool = same_as(TrainingConfig, "gradient_checkpointing")
    recompute_mlp: int = same_as(TrainingConfig, "recompute_mlp")
    loss_chunk: int | None = same_as(TrainingConfig, "loss_chunk")
    ema_decay: float = same_as(TrainingConfig, "ema_decay")
    processes: int = option(1, "GPUs in all")
    fsdp: bool = option(False, "shard over the processes (FSDP2) instead of a whole model on each (DDP)")


@dataclass(frozen=True)
class Result:
    """What is computed, and where it is written."""

    _argument_group_name = "result"

    gpu: str | None = option(None, "memory of the device, such as 24GB: find the largest batch for it")
    picture: Path | None = option(None, "PNG of the memory over the step")
    json: Path | None = option(None, "file for the figures, in bytes")

    def __post_init__(self) -> None:
        """Raise ValueError for a memory size that cannot be read."""
        _ = self.gpu_bytes

    @property
    def gpu_bytes(self) -> int | None:
        """The device's memory in bytes, if it is known."""
        if self.gpu is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *([MG])I?B", self.gpu.upper())
        if match is None:
            raise ValueError(f"--gpu must be a size such as 24GB, got {self.gpu!r}.")
        return int(float(match[1]) * UNITS[match[2]])


OPTIONS = (PlannedModel, Process, PlannedStep, Result)


def check(model: PlannedModel, process: Process, step: PlannedStep, result: Result) -> None:
    """Raise ValueError for options that contradict each other."""
    check_source(model, process)
