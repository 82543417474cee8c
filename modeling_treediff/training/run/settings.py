"""The settings of a training run, and their validation."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from modeling_treediff.training.data.options import BLOCK_SAMPLING_EPS, TRAINING_SAMPLING_EPS

LEARNING_RATE_SCHEDULES = ("cosine", "constant", "wsd")
PRECISIONS = ("no", "bf16", "fp16")
ATTENTIONS = ("sdpa", "eager", "flex_attention")
TRACKERS = ("tensorboard", "wandb", "trackio")
LARGEST = 10**12  # steps, of a million windows each, that 64 bits still count
SEEDS = 2**32  # of numpy's older generator, which `set_seed` seeds as well


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run: what each one means is the `help` of its field, and its option of `treediff train --help`.

    The defaults train on the embedded sample in a few minutes on two CPU cores.
    """

    _argument_group_name = "training"

    output_dir: Path = field(
        default=Path("runs/train"),
        metadata={
            "flag": "output",
            "help": "folder for checkpoints, metrics.jsonl, and in the end model and curves.png",
        },
    )
    max_steps: int = field(
        default=1500, metadata={"help": "optimizer steps of the whole run; the learning rate's schedule ends there"}
    )
    batch_size: int = field(default=16, metadata={"help": "windows per process and forward pass"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forward passes per optimizer step"})
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "windows per optimizer step, of all processes; gives --gradient-accumulation-steps"},
    )
    find_batch_size: bool = field(
        default=False,
        metadata={"help": "lower --batch-size until a step fits the memory, and accumulate more: same global batch"},
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "peak of the schedule, after a linear warm-up (default: 3e-3, and 0.5 / hidden size where that "
            "is less; for a loaded model a tenth)"
        },
    )
    warmup_steps: int = field(default=50, metadata={"help": "optimizer steps of warm-up"})
    learning_rate_schedule: str = field(
        default=LEARNING_RATE_SCHEDULES[0],
        metadata={
            "choices": LEARNING_RATE_SCHEDULES,
            "help": "after the warm-up: cosine to zero, constant, or wsd: constant, then to zero as 1 - sqrt",
        },
    )
    decay_steps: int | None = field(
        default=None, metadata={"help": "optimizer steps of the end of wsd (default: a tenth of --max-steps)"}
    )
    weight_decay: float = field(default=0.1, metadata={"help": "weight decay of AdamW, on matrices only"})
    sampling_eps: float | None = field(
        default=None,
        metadata={
            "help": "smallest training time, as a fraction of a level's interval: keeps rare huge weights out of the "
            "gradient; the smaller, the closer what is logged to the bound (default: "
            f"{TRAINING_SAMPLING_EPS:g}, with --block-size {BLOCK_SAMPLING_EPS:g})"
        },
    )
    mixed_block_sizes: list[int] = field(
        default_factory=list,
        metadata={
            "help": "sizes of blocks that windows of the training take in turn with --block-size; one of the window's "
            "length or more is a model without blocks, which sees the right context of a gap"
        },
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are scaled down to this norm"})
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "per step, of the moving average of the weights, which is evaluated and saved as the model; 0: none"
        },
    )
    mixed_precision: str | None = field(
        default=None,
        metadata={
            "choices": PRECISIONS,
            "help": "no: fp32 (default: as `accelerate launch` says, else bf16 where a GPU has it)",
        },
    )
    compile: bool = field(
        default=False,
        metadata={"help": "compile the network first, which takes a minute or more: faster steps on a GPU"},
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "choices": ATTENTIONS,
            "help": "how attention is computed (default: as in the model, sdpa); on a GPU, with --block-size or "
            "--separate-documents, flex_attention needs no mask of all pairs of positions; on a CPU in bf16, eager is "
            "faster on windows of up to 512 tokens",
        },
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "recompute activations in the backward pass: less memory, more time"}
    )
    recompute_mlp: int = field(
        default=0,
        metadata={
            "help": "number of layers, the first ones, whose MLPs keep nothing for the backward pass, which computes "
            "two of their three matrix products again: less memory, a little more time"
        },
    )
    loss_chunk: int | None = field(
        default=None,
        metadata={
            "help": "positions for which logits are kept at a time in the loss (default: all); saves memory where "
            "logits are as wide as the vocabulary, on the flat tree and with the leaf head"
        },
    )
    validate_every: int = field(
        default=250,
        metadata={"help": "steps between estimates of the validation NELBO, with a sample of text; 0: at the end only"},
    )
    validation_windows: int = field(
        default=128, metadata={"help": "windows of an estimate during the run; the last one takes up to 4,096"}
    )
    save_every: int = field(default=500, metadata={"help": "steps between checkpoints; 0: none"})
    keep_checkpoints: int = field(
        default=2, metadata={"help": "how many of the newest stay, beside the one with the best validation NELBO"}
    )
    trackers: list[str] = field(
        default_factory=list, metadata={"choices": TRACKERS, "help": "trackers, beside metrics.jsonl"}
    )
    workers: int = field(
        default=0, metadata={"help": "processes that load and corrupt batches; 0: none beside the one that trains"}
    )
    seed: int = field(default=0, metadata={"help": "of a new model's weights, of data order and noise"})

    def __post_init__(self) -> None:
        """Refuse impossible settings before anything is read or written; a folder may be named by a text."""
        object.__setattr__(self, "output_dir", Path(self.output_dir))
        for name in (
            *("max_steps", "batch_size", "gradient_accumulation_steps", "keep_checkpoints", "validation_windows"),
            *(name for name in ("global_batch_size", "loss_chunk") if getattr(self, name) is not None),
        ):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} must be at least 1 and at most 10^12, got {getattr(self, name)}.")
        for name in (
            *("warmup_steps", "validate_every", "save_every", "weight_decay", "workers", "seed"),
            "recompute_mlp",
        ):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} must not be negative or above 10^12, got {getattr(self, name)}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}.")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, got {self.max_grad_norm}.")
        if self.seed >= SEEDS:
            raise ValueError(f"seed must be below 2^32, got {self.seed}.")
        if any(not 1 <= size <= LARGEST for size in self.mixed_block_sizes):
            raise ValueError(f"mixed_block_sizes must be at least 1, got {self.mixed_block_sizes}.")
        if self.sampling_eps is not None and not 0 < self.sampling_eps < 1:
            raise ValueError(f"sampling_eps must lie between 0 and 1, got {self.sampling_eps}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}.")
        self._check_choices()

    def _check_choices(self) -> None:
        if self.learning_rate_schedule not in LEARNING_RATE_SCHEDULES:
            known = ", ".join(LEARNING_RATE_SCHEDULES)
            raise ValueError(f"Unknown learning_rate_schedule {self.learning_rate_schedule!r}; known: {known}.")
        if self.decay_steps is not None and self.learning_rate_schedule != "wsd":
            raise ValueError("decay_steps belong to learning_rate_schedule 'wsd': leave them out.")
        if self.learning_rate_schedule == "wsd" and self.warmup_steps + self.last_steps > self.max_steps:
            raise ValueError(
                f"{self.warmup_steps} steps of warm-up and {self.last_steps} of decay are more than the "
                f"{self.max_steps} of the run."
            )
        if self.attn_implementation not in (None, *ATTENTIONS):
            known = ", ".join(ATTENTIONS)
            raise ValueError(f"Unknown attn_implementation {self.attn_implementation!r}; known: {known}.")
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"Unknown tracker {unknown[0]!r}; known: {', '.join(TRACKERS)}.")

    @property
    def last_steps(self) -> int:
        """Steps of the decay at the end of "wsd"."""
        return self.max_steps // 10 if self.decay_steps is None else self.decay_steps

    def on_processes(self, processes: int) -> "TrainingConfig":
        """Return the config with the accumulation that gives the global batch on this number of processes.

        Raises:
            ValueError: the global batch is not a multiple of what the processes do in one pass.

        """
        if self.global_batch_size is None:
            return self
        accumulation, rest = divmod(self.global_batch_size, self.batch_size * processes)
        if rest:
            raise ValueError(
                f"A global batch of {self.global_batch_size} windows is not a multiple of {self.batch_size * processes}"
                f" (batch size {self.batch_size} x {processes} processes): change one of them."
            )
        return replace(self, gradient_accumulation_steps=accumulation)

    def windows_per_step(self, processes: int) -> int:
        """Return the windows of an optimizer step, all processes together."""
        return self.batch_size * self.gradient_accumulation_steps * processes
