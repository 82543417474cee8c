"""What the approximate cache of a model without blocks costs: its choices beside those of whole passes.

python -m benchmarks.generation.approximate_cache examples/classics-7m    # benchmarks/results/approximate_cache.json

Held-out windows: a prompt, then a block in which some places hold the text's own tokens already, and the others stand
at the root or at their cluster. A whole pass sees all as it is. With the cache, keys and values of the prompt are those
of the block's first pass, when all of it was open. Both give the text's own next node some nats; the divergence
(Kullback-Leibler) is that of the two distributions at the same place.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, DynamicCache

from benchmarks.markdown import table
from benchmarks.places import RESULTS, SAMPLE
from benchmarks.record_schema import Schema, read_record
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.files.records import write_record
from modeling_treediff.files.sources import public_name
from modeling_treediff.hub import weights_sha256
from modeling_treediff.sampling_treediff import crop
from modeling_treediff.text import pack_windows, read_documents, tokenize_documents

RECORD = RESULTS / "approximate_cache.json"
TEXT = SAMPLE / "validation.txt.xz"
BLOCKS, SHARES = (16, 32), (0.25, 0.5, 0.75)
FIGURES = ("nats", "nats_with_cache", "difference_standard_error", "divergence", "other_choice")
SCHEMA: Schema = {
    "commit": str,
    "model": str,
    "weights_sha256": str,
    **dict.fromkeys(("windows", "length"), int),
    "cells": [{"block": int, "written": float, **dict.fromkeys(FIGURES, float)}],
}


def main() -> None:
    """Measure all blocks and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model without blocks, with its tokenizer")
    parser.add_argument("--windows", type=int, default=256, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--output", type=Path, default=RECORD, help="(default %(default)s)")
    options = parser.parse_args()
    model = TreeDiffForDiffusionLM.from_pretrained(options.model, dtype=torch.float32).eval()
    if model.config.block_size is not None:
        raise SystemExit("The cache of a model with blocks is exact: name one without.")
    length = model.config.max_position_embeddings
    documents = tokenize_documents(read_documents(TEXT), AutoTokenizer.from_pretrained(options.model))
    windows = torch.from_numpy(pack_windows(documents, length)[: options.windows].astype("int64"))
    cells = []
    for block in BLOCKS:
        for share in SHARES:
            generator = torch.Generator().manual_seed(options.seed)
            cells.append({"block": block, "written": share} | compared(model, windows, block, share, generator))
    (weights,) = weights_sha256(Path(options.model)).values()
    facts = {
        "model": public_name(options.model),
        "weights_sha256": weights,
        "windows": len(windows),
        "length": length,
        "cells": cells,
    }
    write_record(options.output, facts, options.seed)
    print(cache_table(read_record(options.output, SCHEMA)))


@torch.no_grad()
def compared(
    model: TreeDiffForDiffusionLM, windows: torch.Tensor, block: int, share: float, generator: torch.Generator
) -> dict[str, float]:
    """Compare the choices of both kinds of passes.

    Args:
        model: without blocks.
        windows: (B, T) tokens, whose last `block` positions are the block.
        block: its positions.
        share: of the block's tokens that are written; of the others half stand at the root, half at their cluster.
        generator: of places and depths.

    Returns:
        Means over all open positions: nats of the text's own child in both, divergence, share of other likeliest
        children; and the standard error of the difference in nats, over windows.

    """
    tree, given = model.tree, windows.shape[1] - block
    figures = []
    for window_1T in windows.split(1):
        rank_S = torch.rand(block, generator=generator).argsort().argsort()
        coarse_S = torch.rand(block, generator=generator) < 0.5
        token_S = window_1T[0, given:]
        depth_S = torch.where(coarse_S, 0, tree.tree_depth - 1).masked_fill(rank_S < share * block, tree.tree_depth)
        nodes_1T = window_1T.clone()
        nodes_1T[0, given:] = tree.ancestors[token_S, depth_S]
        first_1T = window_1T.clone()
        first_1T[0, given:] = tree.root_id
        cache = DynamicCache()
        model.child_logits(first_1T, past_key_values=cache)
        crop(cache, given)
        open_S = depth_S < tree.tree_depth
        whole_nK, kept_nK = (
            logits_1TK[0, -block:][open_S].log_softmax(dim=-1)
            for logits_1TK in (model.child_logits(nodes_1T), model.child_logits(nodes_1T[:, given:], None, cache))
        )
        slot_n1 = tree.child_slot[tree.ancestors[token_S, depth_S + open_S]][open_S][:, None]
        divergence_n = (whole_nK.exp() * (whole_nK - kept_nK).nan_to_num()).sum(dim=-1)
        other_n = (whole_nK.argmax(dim=-1) != kept_nK.argmax(dim=-1)).float()
        nats = -whole_nK.gather(1, slot_n1).mean(), -kept_nK.gather(1, slot_n1).mean()
        figures.append(torch.stack([*nats, divergence_n.mean(), other_n.mean()]))
    all_B4 = torch.stack(figures).double()
    whole, kept, divergence, other = all_B4.mean(dim=0).tolist()
    error = float((all_B4[:, 1] - all_B4[:, 0]).std() / len(all_B4) ** 0.5)
    return dict(zip(FIGURES, (whole, kept, error, divergence, other), strict=True))


def cache_table(record: dict[str, Any]) -> str:
    """Return a row for each block and share."""
    rows = [
        [
            f"{cell['block']}",
            f"{cell['written']:.0%}",
            f"{cell['nats']:.3f}",
            f"{cell['nats_with_cache'] - cell['nats']:+.4f} ± {1.96 * cell['difference_standard_error']:.4f}",
            f"{cell['divergence']:.4f}",
            f"{cell['other_choice']:.1%}",
        ]
        for cell in record["cells"]
    ]
    header = ("block", "written", "nats of a choice", "with the cache", "divergence", "another likeliest child")
    return table(header, rows) + (
        f"\n{record['windows']} windows of {record['length']} held-out tokens, whose last ones are the block; "
        f"{record['model']}; ± is 95 %; commit {record['commit']}.\n"
    )


if __name__ == "__main__":
    main()
