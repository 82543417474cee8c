"""One run of the quality benchmark: a contender, a learning rate, a seed; trained and measured under the protocol."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from autoregressive import train_autoregressive, window_nats
from contenders import (
    AUTOREGRESSIVE,
    CONTENDERS,
    budget_config,
    gpt2_for_budget,
    gpt2_parameters,
    reference_parameters,
)
from quality_data import TRAINING, VALIDATION, PackedData, spread
from run_queue import DONE_NAME

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.training import TrainingConfig, train, write_record
from modeling_treediff.training.run_log import METRICS_NAME

WINDOWS_PER_CALL = 128  # of `nelbo`


@dataclass(frozen=True)
class Protocol:
    """What all contenders share.

    Attributes:
        reference_layers: of MDLM, whose parameters are the budget of all.
        sizes: fields of every config.
        window: tokens of a window.
        batch_size: windows of a step.
        steps: optimizer steps, the schedule (cosine after a linear warm-up) ends there.
        warmup_steps: steps of the warm-up.
        learning_rates: the grid; every contender has all of it, its best one by the validation text counts.
        seeds: of initialisation, data order and noise: the first for all, the others for the leading contenders.
        precision: "no" (fp32) or "bf16".
        curve_points: estimates on the way.
        curve_windows: validation windows of each, with one corruption.
        measured_windows: windows of each text that the finished model is measured on.
        samples: corruptions of each, the same for all depths up to four: a multiple of them.

    """

    reference_layers: int
    sizes: Mapping[str, Any]
    window: int
    batch_size: int
    steps: int
    warmup_steps: int
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    precision: str = "no"
    curve_points: int = 10
    curve_windows: int = 1024
    measured_windows: int = 512
    samples: int = 12

    def training_config(self, folder: Path, learning_rate: float, seed: int) -> TrainingConfig:
        """Return the settings of a run."""
        return TrainingConfig(
            output_dir=folder,
            max_steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=learning_rate,
            warmup_steps=self.warmup_steps,
            mixed_precision=self.precision,
            validate_every=max(1, self.steps // self.curve_points),
            validation_windows=self.curve_windows,
            save_every=max(1, self.steps // 4),
            keep_checkpoints=1,
            seed=seed,
        )


def run(name: str, data: PackedData, protocol: Protocol, folder: Path, learning_rate: float, seed: int) -> None:
    """Train a contender, or go on with it, measure it, and write the record into its folder.

    Raises:
        SystemExit: SIGTERM or SIGINT was received; another call goes on from the checkpoint.

    """
    config = protocol.training_config(folder / "model", learning_rate, seed)
    training = data.windows(TRAINING, protocol.window)
    if name == AUTOREGRESSIVE:
        facts = _run_autoregressive(data, protocol, config)
    else:
        contender = CONTENDERS[name]
        tree = data.tree(contender)
        budget = reference_parameters(tree.vocab_size, protocol.reference_layers, **protocol.sizes)
        model_config = budget_config(contender, tree, budget, **protocol.sizes)
        model = train_model(model_config, tree, data, protocol, config)
        facts = model_facts(model, config.output_dir) | {"texts": measure_all(model, data, protocol)}
    shared = {
        "contender": name,
        "learning_rate": learning_rate,
        "tokens_per_epoch": training.input_ids.size,
        "tokens_seen": protocol.steps * protocol.batch_size * protocol.window,
        "protocol": asdict(protocol),
        "manifest": data.manifest,
    }
    write_record(folder / DONE_NAME, shared | facts, seed)
    for checkpoint in config.output_dir.glob("checkpoint-*"):
        checkpoint.unlink() if checkpoint.is_symlink() else shutil.rmtree(checkpoint)


def train_model(
    model_config: TreeDiffConfig,
    tree: VocabularyTree,
    data: PackedData,
    protocol: Protocol,
    config: TrainingConfig,
) -> TreeDiffForDiffusionLM:
    """Return the trained model; an interrupted training goes on from its checkpoint."""
    tokenizer = data.tokenizer
    torch.manual_seed(config.seed)
    fields = {field: getattr(model_config, field) for field in TreeDiffConfig.__annotations__}
    of_tree = ("vocab_size", "tree_depth", "max_branching", "num_tree_nodes", "tree_sha256")
    fields = {field: value for field, value in fields.items() if field not in of_tree}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    model = TreeDiffForDiffusionLM.from_tree(tree, **fields | ends)
    training, validation = (data.windows(name, protocol.window) for name in (TRAINING, VALIDATION))
    train(model, tokenizer, training, validation, config, resume=True)
    return model.eval()


def model_facts(model: TreeDiffForDiffusionLM, folder: Path) -> dict[str, Any]:
    """Return sizes, and what the training has logged."""
    lines = [json.loads(line) for line in (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()]
    shown = ("step", "nelbo", "nelbo_standard_error")
    return {
        "num_hidden_layers": model.config.num_hidden_layers,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "head_parameters": sum(parameter.numel() for parameter in model.head.parameters()),
        "median_step_seconds": median(line["seconds"] for line in lines),
        "curve": [{name: line[name] for name in shown} for line in lines if "nelbo" in line],
    }


def measure_all(model: TreeDiffForDiffusionLM, data: PackedData, protocol: Protocol) -> dict[str, Any]:
    """Return the figures of every text, by name."""
    figures = {}
    for name in data.measured:
        windows = spread(data.windows(name, protocol.window), protocol.measured_windows)
        nats, levels = bound_of_windows(model, windows, protocol.samples)
        figures[name] = window_figures(nats) | {"level_losses": levels}
    return figures


def bound_of_windows(
    model: TreeDiffForDiffusionLM, windows: torch.Tensor, samples: int, seed: int = 0
) -> tuple[torch.Tensor, list[float]]:
    """Return (W,) the bound of each window in nats per token, and the share of each level, coarsest first."""
    generator = torch.Generator(model.device).manual_seed(seed)
    nats, levels = [], []
    for part in windows.split(WINDOWS_PER_CALL):
        estimate = model.nelbo(part, num_samples=samples, batch_size=64, generator=generator)
        nats.append(estimate.token_losses.mean(dim=1))
        levels.append(np.array(estimate.level_losses) * len(part) / len(windows))
    return torch.cat(nats), np.sum(levels, axis=0).tolist()


def window_figures(nats: torch.Tensor) -> dict[str, Any]:
    """Return the mean in nats per token, its standard error over windows (of text and corruptions), and each one."""
    error = float(nats.std() / len(nats) ** 0.5)
    return {"nats": float(nats.mean()), "standard_error": error, "windows": [round(float(value), 5) for value in nats]}


def _run_autoregressive(data: PackedData, protocol: Protocol, config: TrainingConfig) -> dict[str, Any]:
    training, validation = (data.windows(name, protocol.window) for name in (TRAINING, VALIDATION))
    tokenizer, sizes = data.tokenizer, protocol.sizes
    budget = reference_parameters(len(tokenizer), protocol.reference_layers, **sizes)
    gpt2 = gpt2_for_budget(
        len(tokenizer),
        protocol.window,
        budget,
        sizes["hidden_size"],
        sizes["num_attention_heads"],
        int(tokenizer.eos_token_id),
    )
    model, curve = train_autoregressive(gpt2, training, spread(validation, protocol.curve_windows), config)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    texts = {
        name: window_figures(
            window_nats(model, spread(data.windows(name, protocol.window), protocol.measured_windows), accelerator)
        )
        for name in data.measured
    }
    return {
        "num_hidden_layers": gpt2.n_layer,
        "parameters": gpt2_parameters(gpt2),
        "head_parameters": 0,
        "median_step_seconds": None,
        "curve": curve,
        "texts": texts,
    }
