"""The settings of a run, and what can be wrong with them by themselves."""

from dataclasses import dataclass, replace
from pathlib import Path

from modeling_treediff.training.data.collator import TRAINING_SAMPLING_EPS

LEARNING_RATE_SCHEDULES = ("cosine", "constant", "wsd")
TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run.

    Attributes:
        output_dir: receives checkpoints, `metrics.jsonl` and at the end the model and `curves.png`.
        max_steps: optimizer steps of the whole run; the schedule ends there.
        batch_size: windows per process and forward pass.
        gradient_accumulation_steps: forward passes per optimizer step.
        global_batch_size: windows per optimizer step, of all processes; gives gradient_accumulation_steps.
        find_batch_size: lower batch_size until a step fits the memory, and accumulate more for the same global batch.
        learning_rate: peak of the schedule, after a linear warm-up.
        warmup_steps: optimizer steps of warm-up.
        learning_rate_schedule: after the warm-up; "cosine" to zero, "constant", or "wsd": constant, at the end to zero.
        decay_steps: optimizer steps of the end of "wsd"; by default a tenth of max_steps.
        weight_decay: AdamW's, on matrices only.
        sampling_eps: of a level's window that a training time has crossed at least, see `sample_times`; smaller
            values make the training loss exactly the bound, and its gradient noisier.
        max_grad_norm: gradients are scaled down to this norm.
        ema_decay: per step, of the moving average of the weights that is evaluated and saved as the model; 0 for none.
        mixed_precision: "no" (fp32), "bf16" or "fp16"; None takes what `accelerate launch` was told.
        gradient_checkpointing: recompute activations in the backward pass.
        recompute_mlp_layers: of so many layers, the first ones, keep nothing of the MLPs for the backward pass, which
            computes two of their three matrix products again: less memory for more time.
        loss_chunk_size: positions for which logits are kept at a time in the loss; None for all. It saves memory where
            logits are as wide as the vocabulary, on the flat tree and with the "leaf" head.
        validate_every: steps between estimates of the validation NELBO, each with a sample of text; 0 for the end only.
        validation_windows: windows of an estimate during the run; the last one takes 4,096, or all if there are fewer.
        save_every: steps between checkpoints; 0 for none.
        keep_checkpoints: how many of the newest stay, beside the one with the best validation NELBO.
        trackers: of "tensorboard", "wandb" and "trackio".
        workers: processes that load and corrupt batches; 0 for none beside the one that trains.
        seed: of the data order and the noise; the model is initialised by the caller.

    """

    output_dir: Path
    max_steps: int
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    global_batch_size: int | None = None
    find_batch_size: bool = False
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    learning_rate_schedule: str = "cosine"
    decay_steps: int | None = None
    weight_decay: float = 0.1
    sampling_eps: float = TRAINING_SAMPLING_EPS
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    mixed_precision: str | None = None
    gradient_checkpointing: bool = False
    recompute_mlp_layers: int = 0
    loss_chunk_size: int | None = None
    validate_every: int = 0
    validation_windows: int = 128
    save_every: int = 0
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ()
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible settings before anything is read or written."""
        for name in (
            *("max_steps", "batch_size", "gradient_accumulation_steps", "keep_checkpoints", "validation_windows"),
            *(name for name in ("global_batch_size", "loss_chunk_size") if getattr(self, name) is not None),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in (
            *("warmup_steps", "validate_every", "save_every", "weight_decay", "workers", "seed"),
            "recompute_mlp_layers",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if not 0 < self.sampling_eps < 1:
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
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"Unknown tracker {unknown[0]!r}; known: {', '.join(TRACKERS)}.")

    @property
    def last_steps(self) -> int:
        """Steps of the decay at the end of "wsd"."""
        return self.max_steps // 10 if self.decay_steps is None else self.decay_steps

    def on_processes(self, processes: int) -> "TrainingConfig":
        """Return the config with the accumulation that gives the global batch on so many processes.

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
