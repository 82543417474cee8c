"""The training loop: Accelerate, AdamW with warm-up and cosine, validation, samples, checkpoints, resume."""

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from modeling_treediff.atomic_files import write_atomically
from modeling_treediff.likelihood_treediff import NelboEstimate
from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM

from .checkpoints import CheckpointStore
from .collator import TRAINING_SMALLEST_FRACTION, DiffusionCollator
from .memory import MemoryTracker
from .windows import TokenWindows

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run.

    Attributes:
        output_dir: receives checkpoints, `metrics.jsonl` and at the end the model.
        max_steps: optimizer steps of the whole run; the cosine ends there.
        batch_size: windows per process and forward pass.
        gradient_accumulation_steps: forward passes per optimizer step.
        learning_rate: peak of the schedule: linear warm-up, then cosine to zero.
        warmup_steps: optimizer steps of warm-up.
        weight_decay: AdamW's, on matrices only.
        smallest_fraction: of a level's window that a training time has crossed at least, see `sample_times`; smaller
            values make the training loss exactly the bound, and its gradient noisier.
        max_grad_norm: gradients are scaled down to this norm.
        mixed_precision: "no" (fp32), "bf16" or "fp16"; None takes what `accelerate launch` was told.
        gradient_checkpointing: recompute activations in the backward pass.
        validate_every: steps between estimates of the validation NELBO, each with a sample of text; 0 for the end only.
        validation_windows: windows of an estimate during the run; the last one takes all.
        save_every: steps between checkpoints; 0 for none.
        keep_checkpoints: how many stay.
        seed: of the data order and the noise; the model is initialised by the caller.

    """

    output_dir: Path
    max_steps: int
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    smallest_fraction: float = TRAINING_SMALLEST_FRACTION
    max_grad_norm: float = 1.0
    mixed_precision: str | None = None
    gradient_checkpointing: bool = False
    validate_every: int = 0
    validation_windows: int = 128
    save_every: int = 0
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible numbers before anything is read or written."""
        for name in (
            "max_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "keep_checkpoints",
            "validation_windows",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("warmup_steps", "validate_every", "save_every", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if not 0 < self.smallest_fraction < 1:
            raise ValueError(f"smallest_fraction must lie between 0 and 1, got {self.smallest_fraction}.")


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run measured.

    Attributes:
        validation: bound on the whole validation text, nats per token.
        tokens_seen: tokens of all steps and processes.
        seconds: wall time of all optimizer steps, resumed ones included, without validation and checkpoints;
            known to the main process alone.
        peak_memory: of this process, in bytes, as `PeakMemory`.

    """

    validation: NelboEstimate
    tokens_seen: int
    seconds: float
    peak_memory: dict[str, int | None]


def train(
    model: TreeDiffForDiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    training_windows: np.ndarray,
    validation_windows: np.ndarray,
    config: TrainingConfig,
    resume: bool = False,
) -> TrainingResult:
    """Train and save a model.

    Args:
        model: from `TreeDiffForDiffusionLM.from_tree`, or a loaded one to train on.
        tokenizer: saved with each checkpoint; its size is checked against the tree.
        training_windows: (W, T) token ids.
        validation_windows: (W', T) token ids of held-out documents.
        config: the settings.
        resume: go on from the newest checkpoint in the output folder; bit-identical to not having stopped.

    Raises:
        ValueError: tokenizer and tree disagree, windows longer than the model's positions, a checkpoint of another
            run, or a precision that the device does not have.
        FileExistsError: the output folder holds an earlier run and `resume` is off, or a finished model without
            checkpoints.
        FloatingPointError: the loss is not finite.

    """
    run = _Run(model, tokenizer, training_windows, validation_windows, config, resume)
    for step, facts in run.steps():
        if run.accelerator.is_main_process:
            with run.metrics_file.open("a", encoding="utf-8") as metrics:
                print(json.dumps({"step": step} | facts), file=metrics)
    return run.finish()


class _Run:
    """One run: what is prepared once, and the steps over it."""

    def __init__(
        self,
        model: TreeDiffForDiffusionLM,
        tokenizer: PreTrainedTokenizerBase,
        training_windows: np.ndarray,
        validation_windows: np.ndarray,
        config: TrainingConfig,
        resume: bool,
    ) -> None:
        limit, length = model.config.max_position_embeddings, training_windows.shape[1]
        if length > limit:
            raise ValueError(f"Windows of {length} tokens are longer than the model's {limit} positions.")
        model.tree.check_tokenizer(tokenizer)
        set_seed(config.seed)
        self.config, self.tokenizer, self.validation_windows = config, tokenizer, validation_windows
        self.accelerator = _make_accelerator(config)
        self.memory = MemoryTracker(self.accelerator.device)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), config.learning_rate, (0.9, 0.98))
        self.schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.max_steps)
        collator = DiffusionCollator(model.tree, model.schedule, config.seed, config.smallest_fraction)
        per_step = config.batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
        self.tokens_per_step = per_step * length
        identity = _identity(model, training_windows, config) | {"windows per step": per_step}
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.accelerator.register_for_checkpointing(self.schedule)
        self.store = CheckpointStore(self.accelerator, config.output_dir, config.keep_checkpoints, tokenizer, identity)
        self.metrics_file = config.output_dir / METRICS_NAME
        self.first_step = self._start(resume)
        windows = TokenWindows(training_windows).dataset(
            self.first_step * per_step, config.max_steps * per_step, config.seed
        )
        self.loader = self.accelerator.prepare(DataLoader(windows, config.batch_size, collate_fn=collator))

    def _start(self, resume: bool) -> int:
        """Load the newest checkpoint, or begin; return the number of steps done."""
        folder = self.config.output_dir
        earlier = [name for name in (METRICS_NAME, "model.safetensors") if (folder / name).exists()]
        if not resume and (earlier or self.store.steps()):
            raise FileExistsError(f"{folder} holds an earlier run: go on with --resume, or take another --output.")
        if "model.safetensors" in earlier and not self.store.steps():
            raise FileExistsError(
                f"{folder} holds a finished model but no checkpoint to resume: take another --output."
            )
        folder.mkdir(parents=True, exist_ok=True)
        done = self.store.load_latest()
        if done > self.config.max_steps:
            raise ValueError(
                f"{folder} has done {done} steps already, more than the {self.config.max_steps} asked for."
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            _drop_later_steps(self.metrics_file, done)
        return done

    def steps(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Take every optimizer step that is left; yield its number and what was measured."""
        config, step = self.config, self.first_step
        bar = tqdm(
            total=config.max_steps, initial=step, desc="train", disable=not self.accelerator.is_main_process, leave=True
        )
        shown: dict[str, Any] = {}
        self.model.train()
        losses, started = [], time.perf_counter()
        for batch in self.loader:
            losses.append(self._backward(batch))
            if not self.accelerator.sync_gradients:
                continue
            step += 1
            loss = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()
            losses = []
            if not math.isfinite(loss):
                raise FloatingPointError(f"The loss is {loss} at step {step}. Lower the learning rate, or use bf16.")
            elapsed = time.perf_counter() - started
            facts = {"loss": loss, "seconds": elapsed}
            shown["loss"] = loss if "loss" not in shown else 0.95 * shown["loss"] + 0.05 * loss
            if config.validate_every and step % config.validate_every == 0:
                facts |= self._validate(bar, step)
                shown["nelbo"] = facts["nelbo"]
            bar.update()
            bar.set_postfix({**shown, "tok/s": round(self.tokens_per_step / elapsed), "peak": str(self.memory.peak())})
            yield step, facts
            if config.save_every and step % config.save_every == 0:  # after the step is logged: a kill loses neither
                self.store.save(step)
            started = time.perf_counter()
        bar.close()

    def _backward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """One forward and backward pass, and an optimizer step when enough have gathered; return the loss."""
        with self.accelerator.accumulate(self.model):
            loss = self.model(**batch).loss
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            if self.accelerator.sync_gradients:
                self.schedule.step()
            self.optimizer.zero_grad()
        return loss.detach().float()

    def _validate(self, bar: tqdm, step: int) -> dict[str, Any]:
        """Estimate the validation NELBO on some windows and write a sample of text."""
        estimate = self.estimate(self.validation_windows[: self.config.validation_windows])
        sample = self._sample()
        if self.accelerator.is_main_process:
            bar.write(
                f"step {step}: validation NELBO {estimate.value:.3f} +- {estimate.standard_error:.3f} nats/token, "
                f"perplexity <= {estimate.perplexity:.1f}\n  {sample!r}"
            )
        return {
            "nelbo": estimate.value,
            "nelbo_standard_error": estimate.standard_error,
            "level_losses": estimate.level_losses,
            "sample": sample,
        }

    def estimate(self, windows: np.ndarray) -> NelboEstimate:
        """Bound on the windows, with the same noise each time; every process computes the same."""
        model = self.accelerator.unwrap_model(self.model)
        generator = torch.Generator(self.accelerator.device).manual_seed(self.config.seed)
        token_ids = torch.from_numpy(windows.astype(np.int64)).to(self.accelerator.device)
        with self.accelerator.autocast():
            samples = -(-model.config.tree_depth // len(token_ids))  # every level is seen at least once
            return model.nelbo(token_ids, num_samples=samples, batch_size=self.config.batch_size, generator=generator)

    def _sample(self) -> str:
        model = self.accelerator.unwrap_model(self.model)
        generator = torch.Generator(self.accelerator.device).manual_seed(self.config.seed)
        length = min(32, model.config.max_position_embeddings)
        steps = max(length, model.config.tree_depth)
        token_ids = model.generate(max_new_tokens=length, num_steps=steps, generator=generator)
        return str(self.tokenizer.decode(token_ids[0]))

    def finish(self) -> TrainingResult:
        """Measure the whole validation text and save the model into the output folder."""
        validation = self.estimate(self.validation_windows)
        model = self.accelerator.unwrap_model(self.model)
        is_main = self.accelerator.is_main_process
        model.save_pretrained(self.config.output_dir, tokenizer=self.tokenizer, is_main_process=is_main)
        self.accelerator.wait_for_everyone()
        tokens = self.config.max_steps * self.tokens_per_step
        steps = self.metrics_file.read_text(encoding="utf-8").splitlines() if is_main else []
        seconds = sum(json.loads(line)["seconds"] for line in steps)
        return TrainingResult(validation, tokens, seconds, asdict(self.memory.peak()))


def _make_accelerator(config: TrainingConfig) -> Accelerator:
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        # The only buffers are the tree, which never changes.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type != "cuda":
        raise ValueError("fp16 needs a GPU: this device would silently train in fp32. Use bf16 or fp32.")
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(f"{accelerator.distributed_type.value} is not supported yet: launch with DDP (--multi_gpu).")
    return accelerator


def _identity(model: TreeDiffForDiffusionLM, windows: np.ndarray, config: TrainingConfig) -> dict[str, Any]:
    """Return what makes a run the same run: network, data, order, noise and updates."""
    network = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rope_theta", "rms_norm_eps",
        "schedule", "head",
    )  # fmt: skip
    free = ("output_dir", "max_steps", "validate_every", "validation_windows", "save_every", "keep_checkpoints")
    return {
        "tree": model.tree.sha256,
        "training text": hashlib.sha256(np.ascontiguousarray(windows).tobytes()).hexdigest(),
        "tokens per window": windows.shape[1],
        **{name: getattr(model.config, name) for name in network},
        **{name: value for name, value in asdict(config).items() if name not in free},
    }


def _drop_later_steps(metrics: Path, step: int) -> None:
    """Keep the lines up to `step`: what came later is run again. A kill may have cut the last line."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_atomically(metrics, lambda path: path.write_text("".join(kept), encoding="utf-8"))


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices; leave norms and biases alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
