"""Sizes of a run that this machine cannot hold or serve: refused before any work, by what they would take at least."""

import os
from dataclasses import replace

from accelerate import PartialState

from modeling_treediff.building.budget import count_parameters
from modeling_treediff.configuration_treediff import TreeDiffConfig
from modeling_treediff.training.memory.tracker import readable

from .out_of_memory import device_memory
from .settings import TrainingConfig

STATE_BYTES = 16  # per parameter: value, gradient and AdamW's two moments, in fp32
HIDDEN_BYTES = 2  # per number between two layers, which backward keeps in any setting, or of an embedding; in bf16
LOGIT_BYTES = 8  # per logit: in fp32 in any setting, and as much for the log-softmax
WINDOW_BYTES = 16  # per token of a step's windows, which are drawn before its first pass: input_ids and labels
WORKERS_PER_CORE = 8  # more wait for one another, and each is a process


def check_sizes(model: TreeDiffConfig, config: TrainingConfig, sequence_length: int) -> None:
    """Refuse a run that cannot be, however it is planned; what comes nearer is for `plan_memory` to tell.

    Args:
        model: sizes of the model, which need not be made for it.
        config: the settings.
        sequence_length: tokens per window.

    Raises:
        ValueError: it takes more memory than the device has, or more workers than are of use, or has sizes of blocks
            for a model without blocks.

    """
    if config.mixed_block_sizes and model.block_size is None:
        raise ValueError("--mixed-block-sizes need a model that has blocks: give --block-size, too.")
    state = PartialState()
    memory, config = device_memory(state.device), config.on_processes(state.num_processes)
    batch = 1 if config.find_batch_size else config.batch_size
    windows = config.batch_size * config.gradient_accumulation_steps
    least = {
        "the model and its optimizer (--parameters, --layers, --hidden-size)": (
            sum(count_parameters(model).values()) * STATE_BYTES // state.num_processes
        ),
        "a forward pass (--batch-size, --sequence-length)": (batch * sequence_length * bytes_per_token(model, config)),
        "the windows of a step (--batch-size, --gradient-accumulation-steps)": windows * sequence_length * WINDOW_BYTES,
    }
    for what, need in least.items():
        if need > memory:
            raise ValueError(f"At least {readable(need)} for {what}, of {readable(memory)} in all: take less.")
    most = WORKERS_PER_CORE * (os.cpu_count() or 1)
    if config.workers > most:
        raise ValueError(f"{config.workers} --workers are too many for this machine's cores: take at most {most}.")


def possible_batch(model: TreeDiffConfig, config: TrainingConfig, sequence_length: int) -> TrainingConfig:
    """Return the config with the largest batch, of as many windows per step, that `check_sizes` would not refuse."""
    memory = device_memory(PartialState().device)
    windows = config.batch_size * config.gradient_accumulation_steps
    most = min(config.batch_size, max(1, memory // (sequence_length * bytes_per_token(model, config))))
    batch = next(size for size in range(most, 0, -1) if windows % size == 0)
    return replace(config, batch_size=batch, gradient_accumulation_steps=windows // batch)


def bytes_per_token(model: TreeDiffConfig, config: TrainingConfig) -> int:
    """Return what a token takes at least at the worse of two moments: as its path is embedded, or in the loss."""
    levels = model.tree_depth + 1 if model.node_embedding == "path" else 0
    path = 2 * levels * model.hidden_size * HIDDEN_BYTES  # the vectors, and those of them that count
    loss = model.num_hidden_layers * model.hidden_size * HIDDEN_BYTES
    if config.loss_chunk is None:  # else as few logits as it says, or as Liger's kernel chooses
        loss += LOGIT_BYTES * (model.vocab_size if model.head == "leaf" else model.max_branching)
        loss += model.max_branching * (model.tree_depth > 1)  # a byte each, for which children there are
    return WINDOW_BYTES + max(path, loss)
