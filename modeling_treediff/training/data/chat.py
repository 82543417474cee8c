"""Conversations -> windows for supervised fine-tuning: prompts stay clean, answers are learned.

Shape legend: T tokens per window.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from modeling_treediff.text.mask_token import refuse_mask
from modeling_treediff.text.tokenizing import end_of_sequence

Message = dict[str, Any]
GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
TRUNCATED, DROPPED, EXAMPLES = "answers cut off", "dropped, no room for an answer", "examples"
NOT_FOUND = "dropped, beginning of the answer not found"
REFUSED = "dropped, refused by the chat template"  # and its reason
LONGEST_REASON = 100  # characters


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the tokenizer can turn conversations into text."""
    if tokenizer.chat_template is None:
        raise ValueError(
            "The tokenizer has no chat template: set tokenizer.chat_template (a Jinja text, as in the tokenizer of any "
            "chat model) and save the tokenizer with the tree, or take a tokenizer that has one."
        )


def chat_windows(
    row: dict[str, Any],
    number: int,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    pad_answers: bool,
    counts: Counter[str],
) -> Iterator[dict[str, np.ndarray]]:
    """Turn a conversation into windows, one for each answer of the assistant.

    A window holds the conversation up to an answer, and nothing after it: in a bidirectional model later turns would
    give the answer away. All before the answer is a prompt (`fixed_mask` 1): never noised, not counted. The answer ends
    with EOS, which is counted.

    Without `pad_answers`, EOS fills the window after the answer and is counted, as in LLaDA (arXiv 2502.09992), up to
    the longest answer of a batch: a diffusion model generates in a canvas of fixed length, and so learns to end its
    answers early and to leave the rest of the canvas empty. A window much longer than the answers makes most of what
    is counted EOS, so choose it by them. With it the rest is padding that the model never sees
    (`attention_mask` 0): every counted token but the last is text, but at generation the canvas must have the length
    of the answer.

    Args:
        row: with `messages` (role, content), or with `prompt` and `completion` (texts or such messages).
        number: of the row, for messages.
        tokenizer: with a chat template. Where that has {% generation %} blocks they say where an answer begins,
            otherwise the template of the messages before it does, with `add_generation_prompt`.
        sequence_length: T. Longer answers are cut off at the end of the window; prompts that leave no room are dropped.
        pad_answers: as above.
        counts: what was used, cut off and dropped is added here.

    Yields:
        input_ids, fixed_mask and, with `pad_answers`, attention_mask, each (T,).

    Raises:
        ValueError: no chat template, a row of another form, or one that holds the tokenizer's mask. What the template
            refuses, such as a system's message, is only counted.

    """
    check_chat_template(tokenizer)
    end = end_of_sequence(tokenizer)
    messages = _messages(row, number)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            ids, start = _encode(messages[: turn + 1], tokenizer)
        except Exception as error:  # a template is code of others, and not for every conversation
            counts[f"{REFUSED} ({' '.join(str(error).split())[:LONGEST_REASON]})"] += 1
            continue
        refuse_mask(ids, tokenizer, f"Row {number}")
        if start is None:
            counts[NOT_FOUND] += 1
            continue
        ids = _end_once(ids, start, end)
        if start >= sequence_length:
            counts[DROPPED] += 1
            continue
        counts[EXAMPLES] += 1
        counts[TRUNCATED] += len(ids) > sequence_length
        yield _window(ids[:sequence_length], start, sequence_length, end, pad_answers)


def _messages(row: dict[str, Any], number: int) -> list[Message]:
    """Return the conversation of a row."""
    if row.get("messages") is not None:
        messages = row["messages"]
    elif row.get("prompt") is not None and row.get("completion") is not None:
        messages = [
            message
            for name, role in (("prompt", "user"), ("completion", "assistant"))
            for message in ([{"role": role, "content": row[name]}] if isinstance(row[name], str) else row[name])
        ]
    else:
        raise ValueError(
            f"Row {number} has the columns {', '.join(row)}; a conversation has `messages`, or `prompt` and "
            "`completion`."
        )
    if not all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in messages):
        raise ValueError(f"Row {number} has a message without `role` and `content`.")
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


def _encode(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int | None]:
    """Return the tokens of a conversation that ends with an answer, and where that begins; None if it cannot be told.

    A template may change what stands before an answer once that is there, or a token may hold the end of the prompt and
    the beginning of the answer.
    """
    apply: Callable[..., Any] = partial(tokenizer.apply_chat_template, tokenize=True, return_dict=True)
    if GENERATION_BLOCK.search(tokenizer.get_chat_template()):
        encoded = apply(messages, return_assistant_tokens_mask=True)
        ids, mask = encoded["input_ids"], encoded["assistant_masks"]
        starts = [index for index, inside in enumerate(mask) if inside and not (index and mask[index - 1])]
        if len(starts) == sum(message["role"] == "assistant" for message in messages):  # each answer is marked
            return ids, starts[-1]
    ids = apply(messages)["input_ids"]
    prompt = apply(messages[:-1], add_generation_prompt=True)["input_ids"]
    return ids, len(prompt) if ids[: len(prompt)] == prompt else None


def _end_once(ids: list[int], start: int, end: int) -> list[int]:
    """Let an answer end with its last EOS, or put one there; what templates write after it belongs to no answer."""
    for index in range(len(ids) - 1, start - 1, -1):
        if ids[index] == end:
            return ids[: index + 1]
    return [*ids, end]


def _window(ids: list[int], start: int, sequence_length: int, end: int, pad_answers: bool) -> dict[str, np.ndarray]:
    place = np.arange(sequence_length)
    window: dict[str, np.ndarray] = {
        "input_ids": np.array(ids + [end] * (sequence_length - len(ids)), np.int32),
        "fixed_mask": (place < start).astype(np.uint8),
    }
    return window | {"attention_mask": (place < len(ids)).astype(np.uint8)} if pad_answers else window
