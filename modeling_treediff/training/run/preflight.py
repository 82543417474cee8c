"""Checks before a run: folder, disk, packages, processes, precision, windows."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    TorchDynamoPlugin,
    is_bf16_available,
)
from huggingface_hub.utils import WeakFileLock
from transformers import PreTrainedTokenizerBase

from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.text.tree_tokenizer import check_tokenizer
from modeling_treediff.training.data.sources import Windows
from modeling_treediff.training.data.streaming import StreamedWindows
from modeling_treediff.training.memory.tracker import GIBIBYTE

from .checkpoints import checkpoint_steps
from .distributed import configure_sharding
from .processes import join_processes, on_main
from .run_log import METRICS_NAME, check_trackers
from .settings import TrainingConfig
from .trained_model import TrainedModel

LOGS_NAME = "logs"
COMPILER = "inductor"
LOCK_NAME = ".training.lock"
LOCK_SECONDS = 0.1
PROBE_BYTES = 2**16


def check_run(config: TrainingConfig, resume: bool) -> None:
    """Check all that needs neither text nor model; scripts call it before they read either.

    Raises:
        ValueError, ImportError: as `check_settings`.
        FileExistsError: the output folder holds an earlier run and `resume` is off, or a finished model without
            checkpoints, or another run trains into it.
        OSError: the output folder cannot be written.

    """
    check_settings(config)
    on_main(lambda: _check_folder(config.output_dir, resume))  # alone: it begins to write there soon


@contextmanager
def hold_folder(folder: Path, resume: bool) -> Iterator[None]:
    """Keep a run's folder for this run alone; a run that is killed lets it go.

    Raises:
        FileExistsError: another run trains into it, or, on a second look, what `check_run` refuses.

    """
    with ExitStack() as stack:

        def hold() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            _check_folder(folder, resume)  # again: another run may have ended there
            stack.enter_context(_held(folder))

        on_main(hold)
        yield


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    with ExitStack() as stack:
        if (folder / LOCK_NAME).is_symlink():
            (folder / LOCK_NAME).unlink()
        try:
            stack.enter_context(WeakFileLock(folder / LOCK_NAME, timeout=LOCK_SECONDS))
        except TimeoutError as error:
            raise FileExistsError(f"Another run trains into {folder}: wait, or take another --output.") from error
        yield


def check_settings(config: TrainingConfig) -> None:
    """Check the settings against processes, device and packages; nothing is written.

    Raises:
        ValueError: processes that do not know one another; a global batch, a precision or an attention that they do
            not have.
        ImportError: the package of a tracker is missing.

    """
    state = join_processes()
    config.on_processes(state.num_processes)
    precision = run_precision(config)
    if precision == "fp16" and state.device.type != "cuda":
        raise ValueError("fp16 needs a GPU: this device would silently train in fp32. Use bf16 or fp32.")
    if precision == "bf16" and not is_bf16_available():
        raise ValueError(f"bf16 is not supported by this device ({state.device}). Use fp16 or fp32.")
    if config.attn_implementation == "flex_attention" and state.device.type == "cpu":
        raise ValueError("flex_attention has no backward pass on a CPU: leave out attn_implementation.")
    check_trackers(config.trackers)


def check_trainable(model: TreeDiffForDiffusionLM) -> None:
    """Raise ValueError for a model with adapters, of which a checkpoint would hold these alone, or wholly frozen."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "The model has an adapter, and whole models are trained here: save it merged (docs/how_to/training.md) and "
            "take that, or train the adapter with transformers' Trainer."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("No parameter of the model is trained: set requires_grad of those that are to be.")


def check_windows(model: TreeDiffForDiffusionLM, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> None:
    """Raise ValueError for windows longer than the model's positions, or a tokenizer that is not the tree's."""
    limit = model.config.max_position_embeddings
    if sequence_length > limit:
        raise ValueError(f"Windows of {sequence_length} tokens are longer than the model's {limit} positions.")
    check_tokenizer(model.tree, tokenizer)


def check_workers(training: Windows, workers: int) -> None:
    """Raise ValueError for a stream with several workers: each would read all of it."""
    if workers > 1 and isinstance(training, StreamedWindows):
        raise ValueError(f"A stream is read by at most one data loader worker, not {workers}: take --workers 1.")


def check_room(model: TrainedModel, config: TrainingConfig) -> None:
    """Raise OSError if the disk cannot hold the run's checkpoints and its final model."""
    copies, size, saved = 0, model.checkpoint_bytes(), list(config.output_dir.glob("checkpoint-*[0-9]"))
    if config.save_every:
        best = 1 if config.validate_every else 0
        copies = max(0, config.keep_checkpoints + best + 1 - len(saved))
    if saved:
        size = sum(file.stat().st_size for file in saved[0].iterdir())
    free = shutil.disk_usage(config.output_dir).free
    if free < (need := copies * size + size):
        raise OSError(
            f"{config.output_dir} has {free / GIBIBYTE:.3g} GiB free, the run needs up to {need / GIBIBYTE:.3g} GiB: "
            f"the model and {copies} more checkpoints of {size / GIBIBYTE:.3g} GiB. Free some, or lower "
            "--keep-checkpoints."
        )


def run_precision(config: TrainingConfig) -> str:
    """Return the precision of the config, of `accelerate launch` or of an `Accelerator` that there is, or the best."""
    if told := config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION"):
        return told
    if is_initialized():
        return str(AcceleratorState().mixed_precision)
    return "bf16" if has_bf16(join_processes().device) else "no"


def has_bf16(device: torch.device) -> bool:
    """Tell whether this is a GPU with instructions for bf16, which older ones and CPUs only imitate."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" and is_bf16_available()


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Return the run's accelerator.

    Raises:
        ValueError: a way of sharding that is not supported.

    """
    accelerator = Accelerator(
        mixed_precision=run_precision(config),
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(str(config.output_dir), str(config.output_dir / LOGS_NAME)),
        # Every process reads a stream for itself: no exchange for data, and what fails in it fails on all alike.
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        # The only buffers are the tree, which never changes.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    # Its state is that of the process, which another run may have set.
    accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend=COMPILER) if config.compile else TorchDynamoPlugin()
    accelerator.gradient_accumulation_steps = 1  # `Updater` weighs the passes of a step itself
    configure_sharding(accelerator)
    if config.find_batch_size and accelerator.is_fsdp2:
        raise ValueError(
            "find_batch_size tries the whole model on each device: for FSDP2 use treediff plan-memory --fsdp."
        )
    return accelerator


def _check_folder(folder: Path, resume: bool) -> None:
    if (folder / LOCK_NAME).exists():
        with _held(folder):
            pass
    has_model, has_checkpoint = (folder / "model.safetensors").exists(), bool(checkpoint_steps(folder))
    metrics = folder / METRICS_NAME
    has_steps = metrics.exists() and metrics.stat().st_size > 0  # a run that took no step has nothing to lose
    if not resume and (has_model or has_checkpoint or has_steps):
        raise FileExistsError(f"{folder} holds an earlier run: go on with --resume, or take another --output.")
    if has_model and not has_checkpoint:
        raise FileExistsError(f"{folder} holds a finished model but no checkpoint to resume: take another --output.")
    _probe(folder)


def _probe(folder: Path) -> None:
    """Write a file and remove it, in the folder or in the nearest one above it that exists."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=existing) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise OSError(f"{existing} cannot be written ({error.strerror}): take another --output.") from error
