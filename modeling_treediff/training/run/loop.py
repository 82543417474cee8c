"""The training loop: optimizer steps, validation, samples, checkpoints, and an end that loses nothing."""

import math
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object, set_seed
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_treediff.files.standard_streams import lossy_output
from modeling_treediff.hub.records import CURVES_NAME
from modeling_treediff.likelihood_treediff import NelboEstimate
from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.text.windows import TokenWindows
from modeling_treediff.training.data.collator import DiffusionCollator
from modeling_treediff.training.data.sources import Windows
from modeling_treediff.training.memory import make_lean, undo_lean
from modeling_treediff.training.memory.lean_blocks import checkpoint_activations
from modeling_treediff.training.memory.tracker import MemoryTracker, PeakMemory

from . import out_of_memory
from .batches import StepBatches
from .checkpoints import CheckpointStore
from .curves import draw_curves
from .divergence import report_divergence
from .identity import run_identity
from .optimization import make_learning_rate, make_optimizer, peak_learning_rate
from .preflight import (
    check_room,
    check_run,
    check_trainable,
    check_windows,
    check_workers,
    hold_folder,
    make_accelerator,
)
from .processes import on_main
from .run_log import RunLog
from .settings import TrainingConfig
from .signals import StopRequest, exit_code
from .sizes import check_sizes, possible_batch
from .trained_model import TrainedModel
from .update import Update, Updater
from .validation import Validator

LINES = 50  # of the log of a run off a terminal, at most twice as many


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run measured.

    Attributes:
        validation: bound on the held-out text, nats per token, from up to 4,096 windows evenly spread over it; it says
            how many tokens they have.
        sequence_length: tokens of a window.
        tokens_seen: tokens of all steps and processes.
        seconds: wall time of all optimizer steps, resumed ones included, without validation and checkpoints;
            known to the main process alone.
        peak_memory: of this process.
        peak_memory_of_phases: the same for each phase of the training, of all processes by rank.
        best: step and validation NELBO (during the run) of the best checkpoint, if there is one.

    """

    validation: NelboEstimate
    sequence_length: int
    tokens_seen: int
    seconds: float
    peak_memory: PeakMemory
    peak_memory_of_phases: list[dict[str, PeakMemory]]
    best: tuple[int, float] | None


def train(
    model: TreeDiffForDiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    training: Windows,
    validation: TokenWindows,
    config: TrainingConfig,
    resume: bool = False,
) -> TrainingResult:
    """Train and save a model.

    Args:
        model: from `TreeDiffForDiffusionLM.from_tree`, or a loaded one to train on. It is made lean while it trains.
        tokenizer: saved with each checkpoint; its size is checked against the tree.
        training: windows to train on.
        validation: windows of held-out documents.
        config: the settings.
        resume: go on from the newest whole checkpoint in the output folder; bit-identical to not having stopped. The
            number of processes may be another as long as the global batch is the same.

    Raises:
        ValueError, FileExistsError, ImportError: see `check_run` and `check_sizes`; an adapter or a frozen model,
            tokenizer and tree disagree, windows longer than the model's positions, or a checkpoint of another run.
        OSError: the output folder cannot be written, or the disk is full.
        MemoryError: out of memory, with advice.
        FloatingPointError: loss, gradient or parameters are no longer numbers.
        SystemExit: SIGTERM, SIGINT or SIGHUP was received and a checkpoint saved, or, after the last step, the model;
            the code is 143, 130 or 129.

    """
    check_run(config, resume)
    check_sizes(model.config, config, training.sequence_length)
    check_trainable(model)
    check_windows(model, tokenizer, training.sequence_length)
    check_workers(training, config.workers)
    run: _Run | None = None
    attention = model.config._attn_implementation

    def advice() -> str:
        memory = out_of_memory.device_memory(PartialState().device)
        return out_of_memory.advice(model.config, run.config if run else config, training.sequence_length, memory)

    try:
        with lossy_output(), hold_folder(config.output_dir, resume), out_of_memory.advised(advice):
            run = _Run(model, tokenizer, training, validation, config, resume)
            with StopRequest() as request:
                run.take_steps(request)
                return run.finish(request)
    finally:
        undo_lean(model)
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
        if run:
            run.log.close()


class _Run:
    """One run: what is prepared once, and the steps over it."""

    def __init__(
        self,
        model: TreeDiffForDiffusionLM,
        tokenizer: PreTrainedTokenizerBase,
        training: Windows,
        validation: TokenWindows,
        config: TrainingConfig,
        resume: bool,
    ) -> None:
        set_seed(config.seed)
        self.accelerator = make_accelerator(config)
        self.memory = MemoryTracker(self.accelerator.device)
        self.training = training
        rate = peak_learning_rate(config, model.config.hidden_size, is_new=not model.name_or_path)
        config = replace(config, learning_rate=rate)
        with self.memory.phase("load"):
            self.config = self._prepare(model, tokenizer, config, rate)
            sizes = [] if model.config.block_size is None else [model.config.block_size, *config.mixed_block_sizes]
            collator = DiffusionCollator(model.tree, model.schedule, config.seed, config.sampling_eps, sizes)
            self.batches = StepBatches(self.accelerator, training, collator, self.config)
            self.accelerator.register_for_checkpointing(self.updater.learning_rate, self.batches)
            identity = run_identity(model, training, validation, config) | {
                "windows per step": self.batches.windows_per_step,
                "mixed_precision": self.accelerator.mixed_precision,  # also where the launcher has chosen it
                "sharded": self.accelerator.is_fsdp2,  # optimizer states of the two kinds differ
            }
            keep = config.keep_checkpoints
            self.store = CheckpointStore(self.accelerator, self.model, config.output_dir, keep, identity)
            self.first_step = self._start(resume)
        self.log = RunLog(self.accelerator, config.output_dir, self.first_step, asdict(config))
        self.validator = Validator(self.accelerator, self.model, validation, config.seed, self.memory)
        self.best = on_main(self.store.best)
        self.shown: dict[str, Any] = {}

    def _prepare(
        self, model: TreeDiffForDiffusionLM, tokenizer: PreTrainedTokenizerBase, config: TrainingConfig, rate: float
    ) -> TrainingConfig:
        """Put model and optimizer on the processes; return the config with the batch size they use."""
        accelerator = self.accelerator
        config = config.on_processes(accelerator.num_processes)
        if config.attn_implementation is not None:
            model.set_attn_implementation(config.attn_implementation)
        make_lean(model, config.recompute_mlp, config.loss_chunk)
        if config.gradient_checkpointing:
            checkpoint_activations(model)
        model.to(accelerator.device).train()
        optimizer = make_optimizer(model, rate, config.weight_decay, accelerator.device)
        if config.find_batch_size:
            length = self.training.sequence_length
            config = possible_batch(model.config, config, length)
            config = out_of_memory.find_batch_size(model, optimizer, config, length, accelerator)
        learning_rate = make_learning_rate(optimizer, config)
        prepared, optimizer = accelerator.prepare(model, optimizer)
        self.model = TrainedModel(accelerator, prepared, tokenizer, config.ema_decay)
        self.updater = Updater(accelerator, prepared, optimizer, learning_rate, config.max_grad_norm, self.memory)
        return config

    def _start(self, resume: bool) -> int:
        """Load the newest checkpoint, or begin; return the number of steps done."""
        folder, steps = self.config.output_dir, self.config.max_steps
        done = self.store.load_latest() if resume else 0
        if done > steps:
            raise ValueError(
                f"{folder} has done {done} steps already, more than the {steps} asked for: raise --max-steps."
            )
        on_main(lambda: check_room(self.model, self.config))
        return done

    # ---- steps ------------------------------------------------------------------------------------------------

    def take_steps(self, request: StopRequest) -> None:
        """Take every optimizer step that is left, or those before a request to stop."""
        config, accelerator = self.config, self.accelerator
        disable = None if accelerator.is_main_process else True  # None: off a terminal, where `_log` has lines
        bar = tqdm(total=config.max_steps, initial=self.first_step, desc="train", disable=disable)
        with bar, closing(self.batches.after(self.first_step)) as batches:
            started = time.perf_counter()
            for step, passes in enumerate(batches, start=self.first_step + 1):
                update = self.updater.take(passes, request.number)
                if update.diverged:
                    self._stop_diverged(step, update)
                self.model.finish_step(step)
                elapsed = time.perf_counter() - started
                due = config.validate_every and step % config.validate_every == 0 and not update.stop
                validated = self._validate(bar, step) if due else {}
                self._log(bar, step, update, elapsed, validated)
                self._save(step, update, validated.get("nelbo"))
                if update.stop and step < config.max_steps:
                    self._stop(update.stop, f"at step {step}, checkpoint saved: go on with --resume")
                started = time.perf_counter()

    def _log(self, bar: tqdm, step: int, update: Update, elapsed: float, validated: dict[str, Any]) -> None:
        tokens_per_second = round(self.batches.windows_per_step * self.training.sequence_length / elapsed)
        facts = {
            "loss": update.loss,
            "seconds": elapsed,
            "learning_rate": update.learning_rate,
            "gradient_norm": update.gradient_norm,
            "tokens_per_second": tokens_per_second,
            "peak_memory": asdict(self.memory.peak()),
        }
        if validated:
            validated["peak_memory_of_phases"] = {name: asdict(peak) for name, peak in self.memory.phases().items()}
        self.log.write(step, facts | validated)
        self.shown["loss"] = 0.95 * self.shown.get("loss", update.loss) + 0.05 * update.loss
        self.shown |= {"nelbo": validated["nelbo"]} if validated else {}
        shown = self.shown | {"tok/s": tokens_per_second, "peak": str(self.memory.peak())}
        bar.update()
        bar.set_postfix(shown)
        steps = self.config.max_steps
        if bar.disable and self.accelerator.is_main_process and (step % max(1, steps // LINES) == 0 or step == steps):
            said = (f"{name} {one:.3f}" if isinstance(one, float) else f"{name} {one}" for name, one in shown.items())
            print(f"step {step} of {steps}: {', '.join(said)}", file=sys.stderr, flush=True)

    def _validate(self, bar: tqdm, step: int) -> dict[str, Any]:
        """Estimate the validation NELBO on some windows and write a sample of text."""
        estimate, sample = self.validator.estimate(self.config.validation_windows), self.validator.sample()
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

    def _save(self, step: int, update: Update, nelbo: float | None) -> None:
        """Save a checkpoint if it is time or the last step, if it is the best so far, or if the run is to stop.

        After the step is logged: a kill loses neither.
        """
        every = self.config.save_every
        is_best = every and nelbo is not None and nelbo < (self.best[1] if self.best else math.inf)
        is_time = every and (step % every == 0 or step == self.config.max_steps)
        if is_time or is_best or update.stop:
            with self.memory.phase("checkpoint"):
                try:
                    self.store.save(step, nelbo)
                except FloatingPointError:
                    self._stop_diverged(step, update)
            if is_best and nelbo is not None:
                self.best = (step, nelbo)

    # ---- ends -------------------------------------------------------------------------------------------------

    def _stop(self, number: int, where: str) -> None:
        """End the process as the signal asks, after all was saved, with a line that says so."""
        if self.accelerator.is_main_process:
            print(f"Stopped by a signal {where}.", file=sys.stderr)
        raise SystemExit(exit_code(number))

    def _measure_finished(self, request: StopRequest) -> NelboEstimate:
        """Return the last estimate. A request to stop ends it before its next forward pass: nothing is left to save."""
        config = self.config
        again = "; --resume repeats it" if self.store.path(config.max_steps).exists() else ""
        where = f"during the last estimate, finished model saved in {config.output_dir}{again}"

        def stop_if_asked(*_: Any) -> None:
            if request.number:
                self._stop(request.number, where)

        with self.model.whole.model.register_forward_pre_hook(stop_if_asked):
            return self.validator.estimate()

    def _stop_diverged(self, step: int, update: Update) -> None:
        """Write a report and end the run."""
        windows = self.batches.windows_per_step
        message = report_divergence(self.config.output_dir, step, update, windows, self.store.latest())
        raise FloatingPointError(message)

    def finish(self, request: StopRequest) -> TrainingResult:
        """Save the model into the output folder; then measure the validation text and draw the picture."""
        with self.memory.phase("checkpoint"):
            self.model.save(self.config.output_dir)
        self.accelerator.wait_for_everyone()
        validation = self._measure_finished(request)
        steps = self.log.read() if self.accelerator.is_main_process else []
        if steps:
            _draw(steps, self.config.output_dir / CURVES_NAME)
        return TrainingResult(
            validation=validation,
            sequence_length=self.training.sequence_length,
            tokens_seen=self.config.max_steps * self.batches.windows_per_step * self.training.sequence_length,
            seconds=sum(line["seconds"] for line in steps),
            peak_memory=self.memory.peak(),
            peak_memory_of_phases=gather_object([self.memory.phases()]),
            best=self.best,
        )


def _draw(steps: list[dict[str, Any]], file: Path) -> None:
    try:
        draw_curves(steps, file)
    except ImportError as error:
        print(error, file=sys.stderr)
