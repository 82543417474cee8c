"""Generate text with a saved model and watch it become concrete, level by level.

    python examples/generate.py MODEL                                            # unconditional
    python examples/generate.py MODEL --prompt "The state of the Union is"       # continue a text
    python examples/generate.py MODEL --infill "We must ____ our ________."      # fill each run of _ (one token each)
    python examples/generate.py MODEL --bad-words war "the enemy"                # without these words
    python examples/generate.py MODEL --watch --animation text.gif               # live, and as a file that plays it

An open position is shown as `_`, an internal node of the tree by its most frequent token in angle brackets.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

# Options that are settings of `generate` by the same name.
SETTINGS = "num_steps steps_per_level temperature top_k top_p unmasking threshold remasking_steps block_length".split()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a trained model")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", help="text to continue")
    text.add_argument("--infill", help="text with gaps: every _ is one token to fill")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="length of new text (default %(default)s)")
    parser.add_argument("--num-steps", type=int, help="steps, mostly of one pass; by default the model's own number")
    parser.add_argument("--temperature", type=one_or_several, help="one for all levels, or 1.1,0.8: coarsest first")
    parser.add_argument("--top-k", type=int, help="draw among the k likeliest children of a node")
    parser.add_argument("--top-p", type=float, help="draw among the likeliest children with this total probability")
    parser.add_argument("--unmasking", help="random, first_hitting, confidence, margin or entropy: which descend first")
    parser.add_argument("--threshold", type=float, help="with an order: all that are so sure descend at once")
    parser.add_argument("--steps-per-level", type=steps, help="auto: by the bits of a level; or 48,16: coarsest first")
    parser.add_argument("--remasking-steps", type=int, help="passes spent on redrawing what is least probable")
    parser.add_argument("--block-length", type=int, help="write blocks of so many tokens, from left to right")
    parser.add_argument("--bad-words", nargs="+", metavar="WORD", help="words that the new text must not contain")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--snapshots", type=int, default=5, help="intermediate texts to show (default %(default)s)")
    parser.add_argument("--watch", action="store_true", help="show every pass, live (extra `demo`)")
    parser.add_argument("--animation", type=Path, metavar="FILE", help="write a .gif or .html that plays it (same)")
    return parser.parse_args()


def one_or_several(text: str) -> float | list[float]:
    """Read a number, or several between commas."""
    return [float(part) for part in text.split(",")] if "," in text else float(text)


def steps(text: str) -> str | list[int]:
    """Read "auto", or numbers between commas."""
    return text if text == "auto" else [int(part) for part in text.split(",")]


def main() -> None:
    """Load, generate, print snapshots and the final text."""
    options = parse_arguments()
    viewing = load_viewing(options)
    # Remote code: the checkpoint brings its own, the package need not be installed.
    model = AutoModel.from_pretrained(options.model, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    # What is not given is as the model's own generation config has it.
    settings = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    if options.bad_words:
        settings["bad_words_ids"] = word_tokens(tokenizer, options.bad_words)
    settings["input_ids"] = starting_nodes(tokenizer, model.config.mask_token_id, options.prompt, options.infill)
    settings["max_new_tokens"] = None if options.infill is not None else options.max_new_tokens
    settings["generator"] = torch.Generator(device).manual_seed(options.seed)
    if viewing is not None:
        view(viewing, model, tokenizer, options, settings)
        return
    result = model.generate(**settings, output_history=True, return_dict_in_generate=True)
    last = len(result.history) - 1
    for step in sorted({round(last * index / options.snapshots) for index in range(options.snapshots)}):
        print(f"step {step:3d}/{last}: {model.decode_draft(result.history[step][0], tokenizer)}")
    print(f"\n{tokenizer.decode(result.sequences[0])}")


def load_viewing(options: argparse.Namespace) -> Any:  # noqa: ANN401 -- a module
    """Return what --watch and --animation need of the package, None if neither is asked for."""
    if not options.watch and options.animation is None:
        return None
    try:
        from modeling_treediff.viewing import drafts as viewing
    except ModuleNotFoundError as error:
        raise ImportError(
            "--watch and --animation need the package and its extra: pip install 'modeling-treediff[demo]'."
        ) from error
    if options.animation is not None:
        viewing.check_suffix(options.animation)
    return viewing


def view(
    viewing: Any,  # noqa: ANN401 -- a module
    model: Any,  # noqa: ANN401 -- remote code
    tokenizer: PreTrainedTokenizerBase,
    options: argparse.Namespace,
    settings: dict[str, Any],
) -> None:
    """Generate, drawing each draft live or into a file."""
    recorder = viewing.DraftRecorder(model.tree, tokenizer)
    if options.watch:
        with viewing.TerminalView() as terminal:
            recorder.show = terminal.show
            model.generate(**settings, callback=recorder)
    else:
        print(tokenizer.decode(model.generate(**settings, callback=recorder)[0]))
    if options.animation is not None:
        viewing.write_animation(options.animation, recorder.drafts, f"A text by {Path(options.model).name}")
        print(f"{options.animation}: {options.animation.stat().st_size / 1e3:.0f} kB, {len(recorder)} drafts")


def word_tokens(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> list[list[int]]:
    """Return the tokens of each word, with and without a space before it."""
    spellings = [space + word for word in words for space in ("", " ")]
    return [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]


def starting_nodes(
    tokenizer: PreTrainedTokenizerBase, mask_token_id: int, prompt: str | None, infill: str | None
) -> torch.Tensor | None:
    """Return the (1, T) nodes to start from: the tokens of a prompt, or of a text whose every _ is open."""
    if infill is not None:
        node_ids: list[int] = []
        for part in re.findall(r"_|[^_]+", infill):
            node_ids += [mask_token_id] if part == "_" else tokenizer(part, add_special_tokens=False)["input_ids"]
        if mask_token_id not in node_ids:
            raise ValueError("A text to fill in needs at least one _.")
        return torch.tensor([node_ids])
    if prompt is not None:
        return torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]], dtype=torch.long)
    return None


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"generate.py: {error}")
