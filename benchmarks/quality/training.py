"""One run of the quality benchmark: a contender, a learning rate, a seed; trained and measured under the protocol."""

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import GPT2LMHeadModel, PreTrainedModel

from benchmarks.contenders import (
    AUTOREGRESSIVE,
    CONTENDERS,
    GIDD,
    GIDD_SHARE,
    REFERENCE,
    budget_config,
    gpt2_for_budget,
    make_model,
    reference_parameters,
    same_depth_config,
)
from benchmarks.quality.autoregressive import token_nats, window_nats
from benchmarks.quality.gidd import HybridNoise, training_loss, window_bounds
from benchmarks.quality.packed_data import SELECTION, TRAINING, VALIDATION, PackedData, spread
from benchmarks.quality.plain_training import WEIGHTS_NAME, Loss, Measure, train_plainly
from benchmarks.quality.run_queue import DONE_NAME, locked
from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building.budget import count_parameters
from modeling_treediff.files.records import current_commit, write_record
from modeling_treediff.training import TrainingConfig, train
from modeling_treediff.training.run.processes import join_processes
from modeling_treediff.training.run.run_log import METRICS_NAME

BEGUN_NAME = "training.json"  # what a run writes before its first step
WINDOWS_PER_CALL = 128  # of `nelbo`
GIDD_SAMPLES = 2  # for each corruption of other models: its estimate varies more

Facts = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What all contenders share.

    Attributes:
        reference_layers: of MDLM, whose parameters are the budget of all.
        sizes: fields of every config.
        sequence_length: tokens of a window.
        batch_size: windows of a step.
        steps: optimizer steps, the schedule (cosine after a linear warm-up) ends there.
        warmup_steps: steps of the warm-up.
        learning_rates: the grid; every contender has all of it, in all steps or in those of `rate_steps`.
        seeds: of initialisation, data order and noise: the first for all, the others for the leading contenders.
        precision: "no" (fp32) or "bf16", of training and measuring; in bf16 a CPU trains with eager attention.
        curve_points: estimates on the way.
        curve_windows: validation windows of each, with one corruption.
        measured_windows: windows of each text that the finished model is measured on.
        samples: corruptions of each.
        contenders: what is trained.
        rate_steps: steps of runs that choose each contender's learning rate, their warm-up shortened in proportion; by
            default all runs have all steps.
        repeated: contenders with all seeds; by default the leading ones and MDLM.
        save_every: steps between checkpoints; by default there are none but where a run is asked to stop.
        measured_texts: what the finished model is measured on; by default all.

    """

    reference_layers: int
    sizes: Mapping[str, Any]
    sequence_length: int
    batch_size: int
    steps: int
    warmup_steps: int
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    precision: str = "no"
    curve_points: int = 10
    curve_windows: int = 1024
    measured_windows: int = 400
    samples: int = 4
    contenders: tuple[str, ...] = ()
    rate_steps: int | None = None
    repeated: tuple[str, ...] = ()
    save_every: int = 0
    measured_texts: tuple[str, ...] = ()

    @property
    def choosing(self) -> "Protocol":
        """Of the runs that choose a learning rate."""
        if self.rate_steps is None:
            return self
        warmup_steps = max(1, self.warmup_steps * self.rate_steps // self.steps)
        shorter = replace(self, steps=self.rate_steps, warmup_steps=warmup_steps, rate_steps=None)
        return replace(shorter, curve_points=1, measured_texts=(SELECTION,))

    @property
    def identity(self) -> Facts:
        """All that changes the result of a run."""
        without = {"contenders", "repeated", "save_every"} | ({"measured_texts"} if not self.measured_texts else set())
        return plain({name: value for name, value in asdict(self).items() if name not in without})

    @property
    def tokens_seen(self) -> int:
        """Of a training."""
        return self.steps * self.batch_size * self.sequence_length

    def training_config(self, folder: Path, learning_rate: float, seed: int, **settings: Any) -> TrainingConfig:
        """Return the settings of a run; a checkpoint is saved in any case when it is asked to stop."""
        slow_sdpa = self.precision == "bf16" and join_processes().device.type == "cpu"  # see speed/attention.py
        return TrainingConfig(
            output_dir=folder,
            max_steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=learning_rate,
            warmup_steps=self.warmup_steps,
            mixed_precision=self.precision,
            attn_implementation="eager" if slow_sdpa else None,
            validate_every=max(1, self.steps // self.curve_points),
            validation_windows=self.curve_windows,
            save_every=self.save_every,
            seed=seed,
            **settings,
        )

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of the precision."""
        return torch.autocast(PartialState().device.type, torch.bfloat16, enabled=self.precision == "bf16")


def run(name: str, data: PackedData, protocol: Protocol, folder: Path, learning_rate: float, seed: int) -> None:
    """Train a contender, or go on with it, measure it, and write the record into its folder.

    A training that diverges is a result, too: the record says so.

    Raises:
        ValueError: the folder holds a training of another protocol, text or commit.
        BlockingIOError: another process works on it.
        SystemExit: SIGTERM or SIGINT was received; another call goes on.

    """
    config = protocol.training_config(folder / "model", learning_rate, seed)
    identity = {"contender": name, "learning_rate": learning_rate, "protocol": protocol.identity}
    with locked(folder):
        facts = begin(folder, identity, data, seed)
        try:
            if not (config.output_dir / WEIGHTS_NAME).exists():
                if name == AUTOREGRESSIVE:
                    _train_gpt2(data, protocol, config)
                elif name == GIDD:
                    _train_gidd(data, protocol, config)
                else:
                    tree = data.tree(CONTENDERS[name])
                    budget = reference_parameters(tree.vocab_size, protocol.reference_layers, **protocol.sizes)
                    model_config = budget_config(CONTENDERS[name], tree, budget, **protocol.sizes)
                    train_model(model_config, tree, data, protocol, config)
        except FloatingPointError as error:
            write_record(folder / DONE_NAME, {**identity, "trained": facts, "diverged": str(error)}, seed)
            return
        logged = training_facts(config.output_dir)
        started = perf_counter()
        sizes, texts = measure(name, config.output_dir, data, protocol)
        measured = {**sizes, **logged, "texts": texts, "measuring_seconds": perf_counter() - started}
        write_record(folder / DONE_NAME, {**identity, "trained": facts, "diverged": None, **measured}, seed)


def begin(folder: Path, identity: Facts, data: PackedData, seed: int) -> Facts:
    """Return what made the training in a folder; write it down if it only begins.

    Raises:
        ValueError: the folder holds a training of another protocol, text or commit.

    """
    path = folder / BEGUN_NAME
    wanted = {**identity, "seed": seed, "training_sha256": data.training_sha256, "trees": data.manifest["trees"]}
    if not path.exists():
        write_record(path, wanted, seed)
    facts = json.loads(path.read_text(encoding="utf-8"))
    finished = (folder / "model" / WEIGHTS_NAME).exists()
    wanted |= {} if finished else {"commit": current_commit()}
    if differing := [name for name, value in wanted.items() if facts[name] != value]:
        raise ValueError(f"{folder} holds a training with another {', '.join(differing)}: take another --folder.")
    return facts


def train_model(
    model_config: TreeDiffConfig,
    tree: VocabularyTree,
    data: PackedData,
    protocol: Protocol,
    config: TrainingConfig,
    start: Path | None = None,
) -> None:
    """Train a model, from the weights of a saved one if `start` names it; an interrupted training goes on."""
    torch.manual_seed(config.seed)
    end = data.tokenizer.eos_token_id
    model = make_model(model_config, tree, bos_token_id=end, eos_token_id=end, pad_token_id=end)
    if start is not None:
        model.load_state_dict(TreeDiffForDiffusionLM.from_pretrained(start).state_dict())
    training, validation = (data.windows(name, protocol.sequence_length) for name in (TRAINING, VALIDATION))
    train(model, data.tokenizer, training, validation, config, resume=True)


def training_facts(folder: Path) -> Facts:
    """Return the validation bound on the way, and how long the steps took."""
    lines = [json.loads(line) for line in (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()]
    shown = ("step", "nelbo", "nelbo_standard_error")
    return {
        "training_seconds": sum(line["seconds"] for line in lines),
        "median_step_seconds": median(line["seconds"] for line in lines),
        "curve": [{name: line[name] for name in shown if name in line} for line in lines if "nelbo" in line],
    }


def measure(name: str, folder: Path, data: PackedData, protocol: Protocol) -> tuple[Facts, Facts]:
    """Return the sizes of a saved model, and nats per token of every window of each text by the text's name."""
    device = PartialState().device
    windows = {
        text: data.measured_windows(text, protocol.sequence_length, protocol.measured_windows)
        for text in protocol.measured_texts or data.measured
    }
    with protocol.autocast():
        if name == AUTOREGRESSIVE:
            gpt2 = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).to(device)
            sizes = {"num_hidden_layers": gpt2.config.n_layer, "head_parameters": None}
            texts = {text: {"windows": listed(window_nats(gpt2, some))} for text, some in windows.items()}
            return sizes | {"parameters": gpt2.num_parameters()}, texts
        model = load_model(folder)
        if name == GIDD:
            noise, samples = HybridNoise(model.config.vocab_size, GIDD_SHARE), GIDD_SAMPLES * protocol.samples
            texts = {
                text: {"windows": listed(window_bounds(model, noise, some, samples))} for text, some in windows.items()
            }
            return model_sizes(model), texts
        texts = {text: measured_text(model, some, protocol.samples) for text, some in windows.items()}
    return model_sizes(model), texts


def load_model(folder: Path) -> TreeDiffForDiffusionLM:
    """Return a saved model, to be measured."""
    model = TreeDiffForDiffusionLM.from_pretrained(folder, dtype=torch.float32)
    torch.nn.Module.to(model, PartialState().device)
    return model.eval()


def model_sizes(model: TreeDiffForDiffusionLM) -> Facts:
    """Return what a record says of a model's size."""
    parts = count_parameters(model.config)
    return {
        "num_hidden_layers": model.config.num_hidden_layers,
        "parameters": sum(parts.values()),
        "head_parameters": parts["head"],
    }


def measured_text(
    model: TreeDiffForDiffusionLM, windows: torch.Tensor, samples: int, given_T: torch.Tensor | None = None
) -> Facts:
    """Return nats per token of every window, and the share of each level; see `bound_of_windows`."""
    nats, levels = bound_of_windows(model, windows, samples, given_T=given_T)
    return {"windows": listed(nats), "level_losses": levels}


def bound_of_windows(
    model: TreeDiffForDiffusionLM,
    windows: torch.Tensor,
    samples: int,
    seed: int = 0,
    given_T: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[float]]:
    """Return (W,) the bound of each window in nats per token, and the share of each level, coarsest first.

    Of (W, T) windows, the tokens at the places where `given_T` is True are given; only the others count.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    nats, levels = [], []
    for part in windows.split(WINDOWS_PER_CALL):
        prefix = None if given_T is None else given_T.expand_as(part)
        estimate = model.nelbo(part, fixed_mask=prefix, num_samples=samples, batch_size=64, generator=generator)
        nats.append(estimate.token_losses.sum(dim=1) * len(part) / estimate.num_tokens)
        levels.append(np.array(estimate.level_losses) * len(part) / len(windows))
    return torch.cat(nats), np.sum(levels, axis=0).tolist()


def listed(nats: torch.Tensor) -> list[float]:
    """Return the numbers for JSON.

    Raises:
        FloatingPointError: some are none.

    """
    if not math.isfinite(float(nats.sum())):
        raise FloatingPointError("The bound of a measured window is not a number.")
    return [round(float(value), 5) for value in nats]


def plain(value: Any) -> Any:
    """Return the value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _train_gpt2(data: PackedData, protocol: Protocol, config: TrainingConfig) -> None:
    tree, sizes = data.tree(CONTENDERS[REFERENCE]), protocol.sizes
    budget = reference_parameters(tree.vocab_size, protocol.reference_layers, **sizes)
    end: Any = data.tokenizer.eos_token_id
    heads = sizes["num_attention_heads"]
    gpt2 = gpt2_for_budget(tree.vocab_size, protocol.sequence_length, budget, sizes["hidden_size"], heads, end)
    torch.manual_seed(config.seed)
    model = GPT2LMHeadModel(gpt2)

    def loss(tokens: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        return token_nats(model, tokens).mean()

    _train(model, loss, partial(window_nats, model), data, protocol, config)


def _train_gidd(data: PackedData, protocol: Protocol, config: TrainingConfig) -> None:
    tree, end = data.tree(CONTENDERS[REFERENCE]), data.tokenizer.eos_token_id
    torch.manual_seed(config.seed)
    model_config = same_depth_config(CONTENDERS[REFERENCE], tree, protocol.reference_layers, **protocol.sizes)
    model = make_model(model_config, tree, bos_token_id=end, eos_token_id=end, pad_token_id=end)
    noise = HybridNoise(tree.vocab_size, GIDD_SHARE)
    measure = partial(window_bounds, model, noise, samples=1)
    _train(model, partial(training_loss, model, noise), measure, data, protocol, config)


def _train(
    model: PreTrainedModel,
    loss_of: Loss,
    measure_windows: Measure,
    data: PackedData,
    protocol: Protocol,
    config: TrainingConfig,
) -> None:
    training, validation = (data.windows(name, protocol.sequence_length) for name in (TRAINING, VALIDATION))
    train_plainly(model, loss_of, measure_windows, training, spread(validation, protocol.curve_windows), config)
