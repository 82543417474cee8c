"""Train a tree-structured diffusion language model.

accelerate launch --quiet examples/train.py                                    # the embedded sample
accelerate launch --quiet examples/train.py --tree flat --output runs/flat     # MDLM, as many parameters
accelerate launch --quiet examples/train.py --text corpus.txt --tree my_tree   # any text, any tree
accelerate launch --quiet examples/train.py --text corpus.txt --from my_model  # fine-tuning
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.cli.model_options import (
    BATCH_SIZE,
    FAMILY,
    WINDOW,
    add_family_options,
    add_memory_options,
    add_size_options,
    beside_checkpoint,
    memory_settings,
    model_fields,
)
from modeling_treediff.cli.option_files import OptionParser
from modeling_treediff.files.records import write_record
from modeling_treediff.hub import weights_sha256, write_card
from modeling_treediff.text import Corpus, unigram_entropy
from modeling_treediff.text.tree_tokenizer import check_tokenizer, tokenizer_size
from modeling_treediff.training import (
    DataOptions,
    TrainingConfig,
    TrainingResult,
    check_run,
    check_settings,
    check_windows,
    largest_batch,
    memory_report,
    open_training_data,
    train,
)
from modeling_treediff.training.memory.out_of_memory import device_memory, plan_run
from modeling_treediff.training.run.settings import LEARNING_RATE_SCHEDULES, TRACKERS

SAMPLE = Path(__file__).parents[1] / "tree_artifacts" / "sotu-8k"
# Saved with a new model, for `generate`: brings the quickstart's texts to the entropy of real ones, and the judge likes
# them better (benchmarks/results/generation_quality.json).
TOP_P = 0.9


def make_parser() -> OptionParser:
    """Return the command line; defaults train on the embedded sample in a few minutes on two CPU cores."""
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser.add_argument_group("data"))
    model = parser.add_argument_group("model")
    model.add_argument(
        "--from", dest="source", metavar="CHECKPOINT", help="train this model on, with its tree and its tokenizer"
    )
    model.add_argument("--tokenizer", help="tokenizer folder or Hub id; default: the tree's; for `flat` the sample's")
    add_size_options(model, tree=SAMPLE)
    add_family_options(
        parser.add_argument_group(
            "process and head",
            "MDLM: --tree flat; TDLM: --schedule sequential --head child; HDLM: --schedule poisson --head leaf",
        )
    )
    add_run_options(parser.add_argument_group("run"))
    add_optimization_options(parser.add_argument_group("optimization"))
    add_log_options(parser.add_argument_group("validation, checkpoints and logs"))
    return parser


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """What to train on."""
    group.add_argument("--text", help="text file, dataset file or Hub dataset; default: the embedded sample")
    held_out = group.add_mutually_exclusive_group()
    held_out.add_argument("--validation-text", help="held-out text; default: every n-th document of --text")
    held_out.add_argument("--validation-split", help="held-out split of the same Hub dataset or folder")
    held_out.add_argument("--hold-out-every", type=int, default=20, help="n of the above (default %(default)s)")
    group.add_argument("--split", default="train", help="split of a dataset (default %(default)s)")
    group.add_argument("--configuration", help="configuration (subset) of a Hub dataset that has several")
    group.add_argument("--text-column", default="text", help="text column of a dataset (default %(default)s)")
    group.add_argument(
        "--window", type=int, help=f"tokens per sequence (default {WINDOW}; with --from the model's longest)"
    )
    group.add_argument("--streaming", action="store_true", help="read the text while training, without storing it")
    group.add_argument(
        "--separate-documents", action="store_true", help="documents in one window do not see one another"
    )
    group.add_argument(
        "--chat", action="store_true", help="fine-tune on conversations: prompts stay clean, answers are learned"
    )
    group.add_argument(
        "--pad-answers", action="store_true", help="padding after an answer instead of end-of-sequence tokens"
    )
    group.add_argument("--workers", type=int, default=0, help="processes that prepare batches (default %(default)s)")


def add_run_options(group: argparse._ArgumentGroup) -> None:
    """How long, how much at a time, and on what."""
    group.add_argument("--output", type=Path, default=Path("runs/train"), help="folder (default %(default)s)")
    group.add_argument(
        "--dry-run", action="store_true", help="print the memory that a step will take, and what fits, then end"
    )
    group.add_argument("--license", help="license of the weights, such as apache-2.0, for the model card")
    group.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    group.add_argument("--steps", type=int, default=1500, help="optimizer steps (default %(default)s)")
    group.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, help="windows per process and pass (default %(default)s)"
    )
    passes = group.add_mutually_exclusive_group()
    passes.add_argument("--accumulation", type=int, default=1, help="passes per optimizer step (default %(default)s)")
    passes.add_argument("--global-batch", type=int, help="windows per optimizer step, instead of --accumulation")
    group.add_argument(
        "--find-batch-size", action="store_true", help="lower --batch-size until it fits; the global batch stays"
    )
    group.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: accelerate's, else fp32")
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    add_memory_options(group)
    group.add_argument(
        "--seed", type=int, default=0, help="of initialisation, data order and noise (default %(default)s)"
    )


def add_optimization_options(group: argparse._ArgumentGroup) -> None:
    """How the parameters move."""
    group.add_argument("--learning-rate", type=float, default=3e-3, help="peak (default %(default)s)")
    group.add_argument(
        "--learning-rate-schedule",
        choices=LEARNING_RATE_SCHEDULES,
        default=LEARNING_RATE_SCHEDULES[0],
        help="after the warm-up; wsd: constant, then down to zero (default %(default)s)",
    )
    group.add_argument("--warmup-steps", type=int, default=50, help="(default %(default)s)")
    group.add_argument("--decay-steps", type=int, help="end of wsd (default: a tenth of --steps)")
    group.add_argument("--weight-decay", type=float, default=0.1, help="(default %(default)s)")
    group.add_argument("--max-grad-norm", type=float, default=1.0, help="(default %(default)s)")
    group.add_argument(
        "--ema-decay", type=float, default=0.0, help="moving average of the weights, evaluated and kept; 0: none"
    )
    group.add_argument(
        "--sampling-eps",
        type=float,
        default=TrainingConfig.sampling_eps,
        help="of a level's window (default %(default)s)",
    )


def add_log_options(group: argparse._ArgumentGroup) -> None:
    """What is measured, shown and kept."""
    group.add_argument("--validate-every", type=int, default=250, help="steps (default %(default)s)")
    group.add_argument("--save-every", type=int, default=500, help="steps (default %(default)s)")
    group.add_argument(
        "--keep-checkpoints", type=int, default=2, help="the newest n, and the best (default %(default)s)"
    )
    group.add_argument("--log-with", nargs="+", choices=TRACKERS, default=[], help="trackers, beside metrics.jsonl")


def main() -> None:
    """Read text and tree, train, and write the model, `result.json` and the model card to the output folder."""
    parser = make_parser()
    options = parser.parse_args()
    config = training_config(options)
    if options.source:
        beside_checkpoint(parser, options)
    if options.dry_run:
        return plan(options, config)
    check_run(config, options.resume)
    model, tokenizer = load_model(options.source) if options.source else make_model(options)
    length = options.window or model.config.max_position_embeddings
    check_windows(model, tokenizer, length)
    data = data_options(options, length)
    corpus, held_out = corpora(options)
    training, validation = open_training_data(corpus, tokenizer, data, held_out)
    result = train(model, tokenizer, training, validation, config, options.resume)
    if PartialState().is_main_process:
        report(model, result, unigram_entropy(validation.counted_ids), config, provenance(options, corpus, held_out))
        write_card(model, config.output_dir)
    PartialState().wait_for_everyone()  # a process that left while another still worked could die of its connections
    PartialState().destroy_process_group()


def plan(options: argparse.Namespace, config: TrainingConfig) -> None:
    """Print what a step will take of this machine's memory, without making the model."""
    check_settings(config)
    if options.source:
        model_config = TreeDiffConfig.from_pretrained(options.source)
    else:
        tree, _, fields = load_tree(options)
        model_config = TreeDiffConfig.from_tree(tree, **fields)
    length = options.window or model_config.max_position_embeddings
    data_options(options, length)  # refuses what cannot be
    planned, available = plan_run(model_config, config, length), device_memory(PartialState().device)
    if PartialState().is_main_process:
        print(planned)
        print(planned.advice(available))
        print(f"The largest batch that fits: {largest_batch(planned.step, available)} windows per process and pass.")


def training_config(options: argparse.Namespace) -> TrainingConfig:
    """Return the settings of the run."""
    return TrainingConfig(
        output_dir=options.output,
        max_steps=options.steps,
        batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        global_batch_size=options.global_batch,
        find_batch_size=options.find_batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        learning_rate_schedule=options.learning_rate_schedule,
        decay_steps=options.decay_steps,
        weight_decay=options.weight_decay,
        sampling_eps=options.sampling_eps,
        max_grad_norm=options.max_grad_norm,
        ema_decay=options.ema_decay,
        mixed_precision={"fp32": "no"}.get(options.precision, options.precision),
        gradient_checkpointing=options.gradient_checkpointing,
        **memory_settings(options),
        validate_every=options.validate_every,
        save_every=options.save_every,
        keep_checkpoints=options.keep_checkpoints,
        trackers=tuple(options.log_with),
        workers=options.workers,
        seed=options.seed,
    )


def load_model(source: str) -> tuple[TreeDiffForDiffusionLM, PreTrainedTokenizerBase]:
    """Return a trained model in fp32, and its tokenizer."""
    model = TreeDiffForDiffusionLM.from_pretrained(source, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(source)


def load_tree(options: argparse.Namespace) -> tuple[VocabularyTree, PreTrainedTokenizerBase, dict[str, Any]]:
    """Return the tree, the tokenizer whose tokens are its leaves, and the other fields of a new model's config."""
    source = str(options.tokenizer or (SAMPLE if options.tree == "flat" else options.tree))
    tokenizer = AutoTokenizer.from_pretrained(source)
    if options.tree == "flat":
        name = Path(source).name if Path(source).is_dir() else source
        tree = VocabularyTree.flat(tokenizer_size(tokenizer), metadata={"tokenizer": name})
    else:
        tree = VocabularyTree.from_pretrained(options.tree)
        check_tokenizer(tree, tokenizer)
    return tree, tokenizer, model_fields(tree, options, options.window or WINDOW, tokenizer.eos_token_id)


def make_model(options: argparse.Namespace) -> tuple[TreeDiffForDiffusionLM, PreTrainedTokenizerBase]:
    """Return a new model over the tree, and its tokenizer."""
    tree, tokenizer, fields = load_tree(options)
    torch.manual_seed(options.seed)
    model = TreeDiffForDiffusionLM.from_tree(tree, **fields)
    model.generation_config.top_p = TOP_P
    return model, tokenizer


def corpora(options: argparse.Namespace) -> tuple[Corpus, Corpus | None]:
    """Return the training text, and the held-out text if it is one of its own."""
    if options.text is None:
        return Corpus(SAMPLE / "train.txt.xz"), Corpus(SAMPLE / "validation.txt.xz")
    dataset = {"text_column": options.text_column, "configuration": options.configuration}
    corpus = Corpus(options.text, options.split, **dataset)
    if options.validation_split:
        return corpus, Corpus(options.text, options.validation_split, **dataset)
    if options.validation_text:
        return corpus, Corpus(options.validation_text, **dataset)
    return corpus, None


def data_options(options: argparse.Namespace, length: int) -> DataOptions:
    """Return how documents become windows."""
    if options.pad_answers and not options.chat:
        raise ValueError("--pad-answers is for conversations: give --chat, too.")
    return DataOptions(
        sequence_length=length,
        separate_documents=options.separate_documents,
        chat=options.chat,
        fill_answers=not options.pad_answers,
        streaming=options.streaming,
        hold_out_every=options.hold_out_every,
    )


def provenance(options: argparse.Namespace, corpus: Corpus, held_out: Corpus | None) -> dict[str, Any]:
    """Return what the weights come from, and under which license they are."""
    source = Path(options.source).resolve() if options.source else None
    on_hub = source is not None and not source.exists()
    return {
        "license": options.license,
        "base_model": {"name": options.source if on_hub else source.name, "on_hub": on_hub} if source else None,
        "text": corpus.facts(),
        "validation_text": held_out.facts() if held_out else None,
        "hold_out_every": None if held_out else options.hold_out_every,
    }


def report(
    model: TreeDiffForDiffusionLM,
    result: TrainingResult,
    entropy: float,
    config: TrainingConfig,
    provenance: dict[str, Any],
) -> None:
    """Write `result.json` and print what it says."""
    bound = result.validation
    facts = {
        "weights_sha256": weights_sha256(config.output_dir),
        **provenance,
        "tree": model.tree.metadata.get("method"),
        "tree_sha256": model.config.tree_sha256,
        "parameters": model.config.count_parameters(),
        "num_hidden_layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size,
        "intermediate_size": model.config.intermediate_size,
        **{name: getattr(model.config, name) for name in FAMILY},
        "loss_chunk_size": config.loss_chunk_size,
        "recompute_mlp_layers": config.recompute_mlp_layers,
        "sequence_length": result.sequence_length,
        "steps": config.max_steps,
        "tokens_seen": result.tokens_seen,
        "training_seconds": round(result.seconds, 3),
        "peak_memory_bytes": asdict(result.peak_memory),
        "peak_memory_bytes_of_phases": [
            {name: asdict(peak) for name, peak in phases.items()} for phases in result.peak_memory_of_phases
        ],
        "unigram_entropy": entropy,
        "nelbo": bound.value,
        "nelbo_standard_error": bound.standard_error,
        "level_losses": bound.level_losses,
        "validation_tokens": bound.num_tokens,
        "best_checkpoint": result.best,
    }
    write_record(config.output_dir / "result.json", facts, config.seed)
    print(
        f"\n{memory_report(result.peak_memory_of_phases)}"
        f"\nvalidation NELBO {bound.value:.3f} +- {bound.standard_error:.3f} nats/token, perplexity <= "
        f"{bound.perplexity:.1f}, on {bound.num_tokens} tokens; unigram entropy of the held-out text {entropy:.3f}\n"
        f"{result.seconds:.0f} s for {config.max_steps} steps; model in {config.output_dir}"
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        sys.exit(f"train.py: {error}")
