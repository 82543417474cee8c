"""`treediff generate`: generates text, and shows drafts live, as snapshots, or in an animation."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.constraints import TokenConstraints
from modeling_treediff.files.utf8 import check_utf8
from modeling_treediff.text import decode_nodes
from modeling_treediff.text.mask_token import nodes_with_gaps
from modeling_treediff.text.token_kinds import LINES, printable

from .options.generate import Sampling, Shown, Text
from .saved_model import load_model


def run(text: Text, sampling: Sampling, shown: Shown) -> None:
    """Load, generate, print snapshots and the final text."""
    viewing = load_viewing(shown)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_model(
        text.model, trust_remote_code=text.trust_remote_code, device=device, block_size=text.block_size
    )
    settings = sampling.settings() | start(text, model, tokenizer)
    if viewing is not None:
        view(viewing, model, tokenizer, text, shown, settings)
        return
    result: Any = model.generate(**settings, output_history=True, return_dict_in_generate=True)
    last = len(result.history) - 1
    count = shown.snapshots
    for step in range(last + 1) if count > last else sorted({round(last * index / count) for index in range(count)}):
        draft = str(decode_nodes(result.history[step][0], model.tree, tokenizer))
        print(f"step {step:3d}/{last}: {printable(draft, keep=LINES)}")
    print(f"\n{printable(str(tokenizer.decode(result.sequences[0])), keep=LINES)}")


def start(text: Text, model: TreeDiffForDiffusionLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the arguments of `generate` that hold prompt or infilling."""
    nodes = starting_nodes(tokenizer, model.config.mask_token_id, text.prompt, text.infill)
    settings: dict[str, Any] = {
        "input_ids": in_clusters(nodes, text.like or [], model, tokenizer),
        "max_new_tokens": None if text.infill is not None else text.max_new_tokens,
        "generator": torch.Generator(model.device).manual_seed(text.seed),
    }
    if text.bad_words:
        settings["constraints"] = TokenConstraints(bad_words_ids=word_tokens(tokenizer, text.bad_words))
    return settings


def load_viewing(shown: Shown) -> ModuleType | None:
    """Import what --watch and --animation need; None if neither is asked for."""
    if not shown.watch and shown.animation is None:
        return None
    from modeling_treediff.viewing import drafts as viewing

    if shown.animation is not None:
        viewing.check_suffix(shown.animation)
    return viewing


def view(
    viewing: ModuleType,
    model: TreeDiffForDiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    text: Text,
    shown: Shown,
    settings: dict[str, Any],
) -> None:
    """Generate, drawing each draft live or into a file."""
    recorder, written = viewing.DraftRecorder(model.tree, tokenizer), None
    if shown.watch:
        with viewing.TerminalView() as terminal:
            recorder.show = terminal.show
            model.generate(**settings, callback=recorder)
    else:
        written = model.generate(**settings, callback=recorder)[0]
    if shown.animation is not None:
        viewing.write_animation(shown.animation, recorder.drafts, f"A text by {Path(text.model).name}")
    if written is not None:
        print(printable(str(tokenizer.decode(written)), keep=LINES))
    if shown.animation is not None:
        print(f"{shown.animation}: {shown.animation.stat().st_size / 1e3:.0f} kB, {len(recorder)} drafts")


def word_tokens(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> list[list[int]]:
    """Return the tokens of each word, with and without a space before it."""
    spellings = [space + word for word in words for space in ("", " ")]
    return [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]


def starting_nodes(
    tokenizer: PreTrainedTokenizerBase, mask_token_id: int, prompt: str | None, infill: str | None
) -> torch.Tensor | None:
    """Return the (1, T) nodes to start from: the tokens of a prompt, or of a text whose every _ is open."""
    check_utf8(infill or prompt or "")
    if infill is not None:
        node_ids = nodes_with_gaps(infill, tokenizer, mask_token_id)
        if mask_token_id not in node_ids:
            raise ValueError("A text to fill in needs at least one _.")
        return torch.tensor([node_ids])
    if prompt is not None:
        return torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]], dtype=torch.long)
    return None


def in_clusters(
    nodes: torch.Tensor | None,
    words: list[str],
    model: TreeDiffForDiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
) -> torch.Tensor | None:
    """Return the nodes (1, T) with the parents of words' tokens in place of the first open positions.

    Raises:
        ValueError: the tree is flat, there are more words than open positions, or a word is not one token.

    """
    if nodes is None or not words:
        return nodes
    if model.tree.tree_depth == 1:
        raise ValueError("--like needs a tree with clusters, and this model's is flat (MDLM).")
    open_positions = torch.nonzero(nodes[0] == model.config.mask_token_id)[:, 0]
    if len(words) > len(open_positions):
        raise ValueError(f"--like has {len(words)} words for {len(open_positions)} gaps: one word for a gap at most.")
    tokens = [one_token(word, tokenizer) for word in words]
    nodes[0, open_positions[: len(tokens)]] = model.tree.parent[tokens]
    return nodes


def one_token(word: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token of a word, with a space before it if there is such a token."""
    for spelling in (f" {word}", word):
        token_ids = tokenizer(spelling, add_special_tokens=False)["input_ids"]
        if len(token_ids) == 1:
            return int(token_ids[0])
    raise ValueError(f"--like {word!r} is not one token of this vocabulary: take a more frequent word of its kind.")
