"""Generate text with a saved model and watch it become concrete, level by level.

    python examples/generate.py MODEL                                            # unconditional
    python examples/generate.py MODEL --prompt "The state of the Union is"       # continue a text
    python examples/generate.py MODEL --infill "We must ____ our ________."      # fill each run of _ (one token each)

An open position is shown as `_`, an internal node of the tree by its most frequent token in angle brackets.
"""

import argparse
import re
import sys
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a trained model")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", help="text to continue")
    text.add_argument("--infill", help="text with gaps: every _ is one token to fill")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="length of new text (default %(default)s)")
    parser.add_argument("--num-steps", type=int, default=64, help="forward passes (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="(default %(default)s)")
    parser.add_argument("--top-k", type=int, help="draw among the k likeliest children of a node")
    parser.add_argument("--top-p", type=float, help="draw among the likeliest children with this total probability")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--snapshots", type=int, default=5, help="intermediate texts to show (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Load, generate, print snapshots and the final text."""
    options = parse_arguments()
    # Remote code: the checkpoint brings its own, the package need not be installed.
    model = AutoModel.from_pretrained(options.model, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    input_ids, new_tokens = start(options, tokenizer, model.config.mask_token_id)
    result = model.generate(
        input_ids=input_ids,
        max_new_tokens=new_tokens,
        num_steps=options.num_steps,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        generator=torch.Generator(device).manual_seed(options.seed),
        output_history=True,
        return_dict_in_generate=True,
    )
    last = len(result.history) - 1
    for step in sorted({round(last * index / options.snapshots) for index in range(options.snapshots)}):
        print(f"pass {step:3d}/{last}: {draft(result.history[step][0], model, tokenizer)}")
    print(f"\n{tokenizer.decode(result.sequences[0])}")


def start(
    options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, mask_token_id: int
) -> tuple[torch.Tensor | None, int | None]:
    """Return the (1, T) nodes to start from and the number of open positions to append."""
    if options.infill is not None:
        node_ids: list[int] = []
        for part in re.findall(r"_|[^_]+", options.infill):
            node_ids += [mask_token_id] if part == "_" else tokenizer(part, add_special_tokens=False)["input_ids"]
        if mask_token_id not in node_ids:
            raise ValueError("--infill needs at least one _ to fill.")
        return torch.tensor([node_ids]), None
    if options.prompt is not None:
        node_ids = tokenizer(options.prompt, add_special_tokens=False)["input_ids"]
        return torch.tensor([node_ids], dtype=torch.long), options.max_new_tokens
    return None, options.max_new_tokens


def draft(node_ids: torch.Tensor, model: Any, tokenizer: PreTrainedTokenizerBase) -> str:  # noqa: ANN401 -- remote code
    """Write a sequence of nodes (T,) as text."""
    shown = []
    for node, token in zip(node_ids.tolist(), model.tree.representative[node_ids].tolist(), strict=True):
        text = str(tokenizer.decode([token]))
        if node == model.config.mask_token_id:
            text = " _"
        elif node >= model.config.vocab_size:
            text = f"{' ' if text.startswith(' ') else ''}<{text.strip()}>"
        shown.append(text)
    return "".join(shown).strip()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"generate.py: {error}")
