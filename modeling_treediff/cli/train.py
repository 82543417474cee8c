"""`treediff train`: reads text and tree, trains, and writes the model with its record and its card."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM
from modeling_treediff.building.budget import count_parameters
from modeling_treediff.files.records import write_record
from modeling_treediff.files.sample import FLAT, TRAINING_TEXT, VALIDATION_TEXT, find_tree, sample_folder
from modeling_treediff.files.sources import check_source, public_name
from modeling_treediff.hub import weights_sha256, write_card
from modeling_treediff.text import Corpus, unigram_entropy
from modeling_treediff.text.tree_tokenizer import check_tokenizer, load_tokenizer, tokenizer_facts, tokenizer_size
from modeling_treediff.text.unknown_tokens import count_unknown, unknown_note
from modeling_treediff.training import (
    TrainingConfig,
    TrainingResult,
    check_run,
    check_settings,
    check_sizes,
    check_windows,
    largest_batch,
    memory_report,
    open_training_data,
    train,
)
from modeling_treediff.training.run.distributed import end_processes
from modeling_treediff.training.run.out_of_memory import device_memory, plan_run
from modeling_treediff.vocabulary_tree import VocabularyTree

from .new_model import model_fields
from .options.model import FAMILY, Process
from .options.text import Dataset
from .options.train import Run, StartingModel, TrainingText
from .saved_model import load_config, load_model
from .unfit_settings import unfit_settings

logger = logging.getLogger(__name__)

# Saved with a new model, for `generate`: brings the quickstart's texts to the entropy of real ones, and the judge likes
# them better (benchmarks/results/generation_quality.json).
TOP_P = 0.9
SAMPLES, SAMPLE_TOKENS = 3, 64  # for the model card


def run(
    text: TrainingText,
    dataset: Dataset,
    model: StartingModel,
    process: Process,
    config: TrainingConfig,
    options: Run,
) -> None:
    """Train, and write the model, `result.json` and the model card to the output folder."""
    if options.dry_run:
        return plan(model, process, config, options.trust_remote_code)
    check_run(config, options.resume)
    if model.source:
        network, tokenizer = load_model(
            model.source,
            trust_remote_code=options.trust_remote_code,
            dtype=torch.float32,
            **process.beside_source,
        )
    else:
        network, tokenizer = make_model(model, process, config, options.trust_remote_code)
    length = model.sequence_length or network.config.max_position_embeddings
    check_sizes(network.config, config, length)
    check_windows(network, tokenizer, length)
    if PartialState().is_main_process:
        for sentence in unfit_settings(network.config, config, length, is_new=model.source is None):
            logger.warning(sentence)
    corpus, held_out = corpora(text, dataset)
    training, validation = open_training_data(corpus, tokenizer, text.data_options(length), held_out)
    result = train(network, tokenizer, training, validation, config, options.resume)
    if PartialState().is_main_process:
        origin = provenance(options, model.source, text, corpus, held_out)
        measured_text = text_facts(validation.counted_ids, tokenizer)
        samples = draw_samples(config.output_dir, tokenizer)
        write_result(network, result, measured_text, config, origin, samples)
        write_card(network, config.output_dir)
        print(summary(result, measured_text, config))
    end_processes()


def plan(model: StartingModel, process: Process, config: TrainingConfig, trust_remote_code: bool) -> None:
    """Print what a step will take of this machine's memory, without making the model."""
    check_settings(config)
    if model.source:
        network = load_config(model.source, **process.beside_source)
    else:
        tree, _, fields = load_tree(model, process, trust_remote_code)
        network = TreeDiffConfig.from_tree(tree, **fields)
    length = model.sequence_length or network.max_position_embeddings
    planned, available = plan_run(network, config, length), device_memory(PartialState().device)
    if PartialState().is_main_process:
        print(planned)
        print(planned.advice(available))
        print(f"The largest batch that fits: {largest_batch(planned.step, available)} windows per process and pass.")


def load_tree(
    model: StartingModel, process: Process, trust_remote_code: bool
) -> tuple[VocabularyTree, PreTrainedTokenizerBase, dict[str, Any]]:
    """Return the tree, the tokenizer whose tokens are its leaves, and the other fields of a new model's config."""
    name = find_tree(model.tree)
    source = (
        check_source(model.tokenizer, "tokenizer")
        if model.tokenizer
        else (str(sample_folder()) if name == FLAT else name)
    )
    tokenizer = load_tokenizer(source, trust_remote_code)
    if name == FLAT:
        origin = Path(source).name if Path(source).is_dir() else source
        tree = VocabularyTree.flat(tokenizer_size(tokenizer), metadata=tokenizer_facts(origin, tokenizer))
    else:
        tree = VocabularyTree.from_pretrained(name)
        check_tokenizer(tree, tokenizer)
    return tree, tokenizer, model_fields(tree, model, process, tokenizer.eos_token_id)


def make_model(
    model: StartingModel, process: Process, config: TrainingConfig, trust_remote_code: bool
) -> tuple[TreeDiffForDiffusionLM, PreTrainedTokenizerBase]:
    """Return a new model over the tree, and its tokenizer; ValueError for one that cannot be trained here."""
    tree, tokenizer, fields = load_tree(model, process, trust_remote_code)
    check_sizes(TreeDiffConfig.from_tree(tree, **fields), config, fields["max_position_embeddings"])
    torch.manual_seed(config.seed)
    network = TreeDiffForDiffusionLM.from_tree(tree, **fields)
    network.generation_config.top_p = TOP_P
    return network, tokenizer


def corpora(text: TrainingText, dataset: Dataset) -> tuple[Corpus, Corpus | None]:
    """Return the training text, and the held-out text if it is one of its own."""
    if text.text is None:
        return Corpus(sample_folder() / TRAINING_TEXT), Corpus(sample_folder() / VALIDATION_TEXT)
    corpus = dataset.corpus(text.text)
    if text.validation_split:
        return corpus, replace(corpus, split=text.validation_split)
    if text.validation_text:
        return corpus, replace(corpus, source=text.validation_text, split=Corpus.split)
    return corpus, None


def provenance(
    options: Run, source: str | None, text: TrainingText, corpus: Corpus, held_out: Corpus | None
) -> dict[str, Any]:
    """Return the weights' origin, their license, and their text."""
    base = None
    if source is not None:
        base = {"name": public_name(source), "on_hub": not Path(source).exists()}
    return {
        "license": options.license,
        "language": options.language,
        "text_description": options.text_description,
        "base_model": base,
        "text": corpus.facts(),
        "validation_text": held_out.facts() if held_out else None,
        "hold_out_every": None if held_out else text.hold_out_every,
    }


def write_result(
    model: TreeDiffForDiffusionLM,
    result: TrainingResult,
    text: dict[str, Any],
    config: TrainingConfig,
    provenance: dict[str, Any],
    samples: list[dict[str, Any]],
) -> None:
    """Write `result.json`; `text` are the `text_facts` of what was held out."""
    settings = {
        "steps": config.max_steps,
        "loss_chunk": config.loss_chunk,
        "recompute_mlp": config.recompute_mlp,
    }
    facts = {"weights_sha256": weights_sha256(config.output_dir), **provenance, **model_facts(model), **settings}
    facts |= measured_facts(result) | text | {"samples": samples}
    write_record(config.output_dir / "result.json", facts, config.seed)


def draw_samples(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return texts by the model saved in a folder, with its settings of `generate`: one for each of the first seeds."""
    network = TreeDiffForDiffusionLM.from_pretrained(folder).to(PartialState().device)
    length = min(SAMPLE_TOKENS, network.config.max_position_embeddings)
    generators = [torch.Generator(network.device).manual_seed(seed) for seed in range(SAMPLES)]
    written = network.generate(max_new_tokens=length, num_return_sequences=SAMPLES, generator=generators)
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    return [{"seed": seed, "text": text} for seed, text in enumerate(texts)]


def summary(result: TrainingResult, text: dict[str, Any], config: TrainingConfig) -> str:
    """Return the lines that say what `result.json` holds."""
    bound = result.validation
    note = unknown_note(text["num_unknown"], bound.num_tokens)
    return (
        f"\n{memory_report(result.peak_memory_of_phases)}"
        f"\nvalidation NELBO {bound.value:.3f} +- {bound.standard_error:.3f} nats/token, perplexity <= "
        f"{bound.perplexity:.1f}, on {bound.num_tokens} tokens; unigram entropy of the held-out text "
        f"{text['unigram_entropy']:.3f}{note and f'; {note}'}\n"
        f"{result.seconds:.0f} s for {config.max_steps} steps; model in {config.output_dir}"
    )


def text_facts(token_ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what a record says of the tokens (N,) that are measured."""
    return {"unigram_entropy": unigram_entropy(token_ids), "num_unknown": count_unknown(token_ids, tokenizer)}


def model_facts(model: TreeDiffForDiffusionLM) -> dict[str, Any]:
    """Return what a record says of the network."""
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", *FAMILY)
    return {
        "tree": model.tree.metadata.get("method"),
        "tree_sha256": model.config.tree_sha256,
        "parameters": count_parameters(model.config),
        **{name: getattr(model.config, name) for name in names},
    }


def measured_facts(result: TrainingResult) -> dict[str, Any]:
    """Return what a record says of the training."""
    bound = result.validation
    return {
        "sequence_length": result.sequence_length,
        "tokens_seen": result.tokens_seen,
        "training_seconds": round(result.seconds, 3),
        "peak_memory_bytes": asdict(result.peak_memory),
        "peak_memory_bytes_of_phases": [
            {name: asdict(peak) for name, peak in phases.items()} for phases in result.peak_memory_of_phases
        ],
        "nelbo": bound.value,
        "nelbo_standard_error": bound.standard_error,
        "level_losses": bound.level_losses,
        "validation_tokens": bound.num_tokens,
        "best_checkpoint": result.best,
    }
