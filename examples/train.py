"""Train a tree-structured diffusion language model.

accelerate launch --quiet examples/train.py                                    # the embedded sample
accelerate launch --quiet examples/train.py --tree flat --output runs/flat     # MDLM, as many parameters
accelerate launch --quiet examples/train.py --text corpus.txt --tree my_tree   # any text, any tree
accelerate launch --quiet examples/train.py --text corpus.txt --from my_model  # fine-tuning
"""

import argparse
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.configuration_treediff import HEADS, NODE_EMBEDDINGS, SCHEDULES, TIME_WARPS
from modeling_treediff.corpora import read_documents, split_documents
from modeling_treediff.training import (
    TokenWindows,
    TrainingConfig,
    TrainingResult,
    check_run,
    check_windows,
    pack_windows,
    tokenize_documents,
    train,
    unigram_entropy,
    write_record,
)
from modeling_treediff.training.option_files import OptionParser
from modeling_treediff.training.settings import LEARNING_RATE_SCHEDULES, TRACKERS
from modeling_treediff.tree_tables import tokenizer_size

SAMPLE = Path(__file__).parents[1] / "tree_artifacts" / "sotu-8k"
# Fields of the model's config that are options of the same name.
FAMILY = (
    "schedule",
    "window_lengths",
    "time_warp",
    "num_timesteps",
    "head",
    "head_rank",
    "node_embedding",
    "loss_chunk_size",
)
SIZES = ("parameters", "layers", "hidden_size", "heads", "rope_theta")


def make_parser() -> OptionParser:
    """Return the command line; defaults train on the embedded sample in a few minutes on two CPU cores."""
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser.add_argument_group("data"))
    add_model_options(parser.add_argument_group("model"))
    add_family_options(
        parser.add_argument_group("process and head", "MDLM: --tree flat; HDLM: --schedule poisson --head leaf")
    )
    add_run_options(parser.add_argument_group("run"))
    add_optimization_options(parser.add_argument_group("optimization"))
    add_log_options(parser.add_argument_group("validation, checkpoints and logs"))
    return parser


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """What to train on."""
    group.add_argument("--text", help="text file, dataset file or Hub dataset; default: the embedded sample")
    group.add_argument("--validation-text", help="held-out text; default: every n-th document of --text")
    group.add_argument("--hold-out-every", type=int, default=20, help="n of the above (default %(default)s)")
    group.add_argument("--split", default="train", help="split of a dataset (default %(default)s)")
    group.add_argument("--configuration", help="configuration (subset) of a Hub dataset that has several")
    group.add_argument("--text-column", default="text", help="text column of a dataset (default %(default)s)")
    group.add_argument("--tree", default=str(SAMPLE), help="tree folder or Hub repository, or `flat` (MDLM)")
    group.add_argument("--tokenizer", help="tokenizer folder or Hub id; default: the tree's; for `flat` the sample's")
    group.add_argument("--window", type=int, help="tokens per sequence (default 64; with --from the model's longest)")
    group.add_argument("--workers", type=int, default=0, help="processes that prepare batches (default %(default)s)")


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """Where the model comes from, or how large it is."""
    group.add_argument(
        "--from", dest="source", metavar="CHECKPOINT", help="train this model on, with its tree and its tokenizer"
    )
    group.add_argument(
        "--parameters", type=float, default=3.43e6, help="budget that sets the depth (default %(default)g)"
    )
    group.add_argument("--layers", type=int, help="number of layers, instead of a budget")
    group.add_argument("--hidden-size", type=int, default=168, help="(default %(default)s)")
    group.add_argument("--heads", type=int, default=6, help="attention heads (default %(default)s)")
    group.add_argument("--rope-theta", type=float, default=100.0, help="small for short windows (default %(default)g)")


def add_family_options(group: argparse._ArgumentGroup) -> None:
    """Which member of the family is trained."""
    group.add_argument("--schedule", choices=SCHEDULES, default=SCHEDULES[0], help="(default %(default)s)")
    group.add_argument("--window-lengths", type=float, nargs="+", help="of the sequential schedule, coarse to fine")
    group.add_argument("--time-warp", choices=TIME_WARPS, default=TIME_WARPS[0], help="(default %(default)s)")
    group.add_argument("--num-timesteps", type=int, metavar="T", help="discrete time (D3PM)")
    group.add_argument("--head", choices=HEADS, default=HEADS[0], help="(default %(default)s)")
    group.add_argument("--head-rank", type=int, default=64, help="of the node head (default %(default)s)")
    group.add_argument("--node-embedding", choices=NODE_EMBEDDINGS, default=NODE_EMBEDDINGS[0], help="(default path)")
    group.add_argument("--loss-chunk-size", type=int, help="positions whose logits are kept at a time")


def add_run_options(group: argparse._ArgumentGroup) -> None:
    """How long, how much at a time, and on what."""
    group.add_argument("--output", type=Path, default=Path("runs/train"), help="folder (default %(default)s)")
    group.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    group.add_argument("--steps", type=int, default=1500, help="optimizer steps (default %(default)s)")
    group.add_argument("--batch-size", type=int, default=16, help="windows per process and pass (default %(default)s)")
    passes = group.add_mutually_exclusive_group()
    passes.add_argument("--accumulation", type=int, default=1, help="passes per optimizer step (default %(default)s)")
    passes.add_argument("--global-batch", type=int, help="windows per optimizer step, instead of --accumulation")
    group.add_argument(
        "--find-batch-size", action="store_true", help="lower --batch-size until it fits; the global batch stays"
    )
    group.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: accelerate's, else fp32")
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
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
        "--smallest-fraction",
        type=float,
        default=TrainingConfig.smallest_fraction,
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
    """Read text and tree, train, and write the model and `result.json` to the output folder."""
    parser = make_parser()
    options = parser.parse_args()
    config = training_config(options)
    check_run(config, options.resume)
    if options.source:
        if clash := parser.given(options, ("tree", "tokenizer", *SIZES, *FAMILY)):
            raise ValueError(f"--from brings its own model along: leave out --{clash[0].replace('_', '-')}.")
        model, tokenizer = load_model(options.source)
    else:
        tree, tokenizer = load_tree(options)
        model = make_model(tree, options, tokenizer.eos_token_id)
    length = options.window or model.config.max_position_embeddings
    check_windows(model, tokenizer, length)
    texts = zip(("training text", "held-out text"), read_texts(options), strict=True)
    training, validation = (
        TokenWindows(pack_windows(tokenize_documents(documents, tokenizer), length, name)) for name, documents in texts
    )
    result = train(model, tokenizer, training, validation, config, options.resume)
    if PartialState().is_main_process:
        report(model, result, unigram_entropy(validation.input_ids), config)
    PartialState().destroy_process_group()


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
        smallest_fraction=options.smallest_fraction,
        max_grad_norm=options.max_grad_norm,
        ema_decay=options.ema_decay,
        mixed_precision={"fp32": "no"}.get(options.precision, options.precision),
        gradient_checkpointing=options.gradient_checkpointing,
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


def load_tree(options: argparse.Namespace) -> tuple[VocabularyTree, PreTrainedTokenizerBase]:
    """Return the tree and the tokenizer whose tokens are its leaves."""
    source = str(options.tokenizer or (SAMPLE if options.tree == "flat" else options.tree))
    tokenizer = AutoTokenizer.from_pretrained(source)
    if options.tree == "flat":
        name = Path(source).name if Path(source).is_dir() else source
        return VocabularyTree.flat(tokenizer_size(tokenizer), metadata={"tokenizer": name}), tokenizer
    tree = VocabularyTree.from_pretrained(options.tree)
    tree.check_tokenizer(tokenizer)
    return tree, tokenizer


def report(model: TreeDiffForDiffusionLM, result: TrainingResult, entropy: float, config: TrainingConfig) -> None:
    """Write `result.json` and print what it says."""
    bound = result.validation
    facts = {
        "tree": model.tree.metadata.get("method"),
        "tree_sha256": model.config.tree_sha256,
        "parameters": model.config.count_parameters(),
        "num_hidden_layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size,
        "intermediate_size": model.config.intermediate_size,
        **{name: getattr(model.config, name) for name in FAMILY},
        "window": result.window,
        "steps": config.max_steps,
        "tokens_seen": result.tokens_seen,
        "training_seconds": round(result.seconds, 1),
        "peak_memory_bytes": result.peak_memory,
        "peak_memory_bytes_of_phases": result.peak_memory_of_phases,
        "unigram_entropy": entropy,
        "nelbo": bound.value,
        "nelbo_standard_error": bound.standard_error,
        "level_losses": bound.level_losses,
        "validation_tokens": bound.num_tokens,
        "best_checkpoint": result.best,
    }
    write_record(config.output_dir / "result.json", facts, config.seed)
    print(
        f"\nvalidation NELBO {bound.value:.3f} +- {bound.standard_error:.3f} nats/token, perplexity <= "
        f"{bound.perplexity:.1f}; unigram entropy of the same text {entropy:.3f}\n"
        f"{result.seconds:.0f} s for {config.max_steps} steps; model in {config.output_dir}"
    )


def read_texts(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return training and held-out documents."""
    if options.text is None:
        return read_documents(SAMPLE / "train.txt.xz"), read_documents(SAMPLE / "validation.txt.xz")
    dataset = (options.split, options.text_column, options.configuration)
    documents = read_documents(options.text, *dataset)
    if options.validation_text is None:
        return split_documents(documents, options.hold_out_every)
    return documents, read_documents(options.validation_text, *dataset)


def make_model(tree: VocabularyTree, options: argparse.Namespace, eos_token_id: int | None) -> TreeDiffForDiffusionLM:
    """Initialise a model over the tree, with the layers asked for or those the budget pays."""
    fields = {
        "hidden_size": options.hidden_size,
        "num_attention_heads": options.heads,
        "max_position_embeddings": options.window or 64,
        "rope_theta": options.rope_theta,
        **{name: getattr(options, name) for name in FAMILY},
        "eos_token_id": eos_token_id,
        "bos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
    }
    if options.layers is None:
        config = TreeDiffConfig.for_budget(tree, int(options.parameters), **fields)
        fields["num_hidden_layers"], fields["intermediate_size"] = config.num_hidden_layers, config.intermediate_size
    else:
        fields["num_hidden_layers"] = options.layers
    torch.manual_seed(options.seed)
    return TreeDiffForDiffusionLM.from_tree(tree, **fields)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        sys.exit(f"train.py: {error}")
