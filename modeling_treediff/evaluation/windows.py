"""Evaluation windows: texts -> one row of tokens -> windows in which each token is counted exactly once.

Shape legend: N tokens of all texts, W windows, T tokens per window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.text import encode_documents, tokenize_pieces
from modeling_treediff.text.unknown_tokens import count_unknown, warn_of_unknown


@dataclass(frozen=True)
class WindowProtocol:
    """How texts become windows; numbers are comparable only under the same one.

    With stride = sequence_length, windows do not overlap and every token is predicted within its own: the windows that
    `training` validates on, and the incomplete last one, which training drops. With a smaller stride, windows overlap,
    and each after the first is given its first sequence_length - stride tokens and counted on the others, so that fewer
    tokens lack context. Both are bounds on the likelihood of the same tokens.

    Attributes:
        sequence_length: tokens of a window, which the model sees at once.
        stride: tokens from the start of one window to that of the next.
        eos: whether each text is followed by the tokenizer's end-of-sequence token, which is counted.

    """

    sequence_length: int
    stride: int
    eos: bool = True

    def __post_init__(self) -> None:
        """Refuse strides that would leave tokens out."""
        if not 1 <= self.stride <= self.sequence_length:
            raise ValueError(
                f"The stride must lie in 1..{self.sequence_length} (the sequence length), got {self.stride}."
            )

    @classmethod
    def for_model(
        cls,
        model: TreeDiffForDiffusionLM,
        tokenizer: PreTrainedTokenizerBase,
        sequence_length: int | None = None,
        stride: int | None = None,
    ) -> "WindowProtocol":
        """Fill in what is not given: the model's longest window, no overlap, EOS if the tokenizer has one."""
        length = model.config.max_position_embeddings if sequence_length is None else sequence_length
        return cls(length, length if stride is None else stride, tokenizer.eos_token_id is not None)

    def __str__(self) -> str:
        """State the protocol in one sentence."""
        end = "each followed by EOS, which is counted" if self.eos else "without EOS"
        given = self.sequence_length - self.stride
        overlap = f"each but the first given its first {given} tokens" if given else "without overlap"
        return (
            f"texts tokenised without special tokens, {end}, joined, and cut into windows of {self.sequence_length} "
            f"tokens, stride {self.stride}, {overlap}; the last one padded, padding masked; each token counted once"
        )


@dataclass(frozen=True)
class EvaluationWindows:
    """Windows as `nelbo` takes them.

    Attributes:
        token_ids: (W, T) int64; at padding any token.
        attention_mask: (W, T) int64, 0 at padding.
        fixed_mask: (W, T) int64, 1 where a token is given and not counted.

    """

    token_ids: torch.Tensor
    attention_mask: torch.Tensor
    fixed_mask: torch.Tensor

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def counted(self) -> torch.Tensor:
        """(W, T) bool: neither padding nor given. In row order these are all tokens of the texts in theirs."""
        return (self.attention_mask == 1) & (self.fixed_mask == 0)


def tokenize_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, eos: bool = True) -> np.ndarray:
    """Return all texts as one row (N,) of token ids (int64), each text followed by the EOS token if asked for.

    Raises:
        ValueError: no text, an empty one, one string in place of several, one that holds the tokenizer's mask, or EOS
            without such a token.

    """
    if isinstance(texts, str):
        raise ValueError("Expected a list of texts, got a single string.")
    if not texts:
        raise ValueError("There is no text to evaluate.")
    if empty := [index for index, text in enumerate(texts) if not text]:
        raise ValueError(f"Text {empty[0]} (counted from 0) of {len(texts)} is empty; leave empty texts out.")
    if eos and tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no eos_token to put after each text: use a protocol with eos=False.")
    pieces = tokenize_pieces(enumerate(texts), tokenizer, eos, whole=True)
    row = np.concatenate([piece.token_ids for piece in pieces]).astype(np.int64)
    warn_of_unknown(count_unknown(row, tokenizer), len(row), f"The texts, which begin {texts[0][:30]!r}")
    return row


def check_same_tokens(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Raise ValueError unless two tokenizers make the same tokens with the same ids of these texts, and the same EOS.

    They may differ in what no text holds, such as a mask.
    """
    ours, theirs = (
        (rows, one.convert_ids_to_tokens(sorted(set().union(*rows))), one.eos_token_id)
        for one in (tokenizer, other)
        for rows in [[ids.tolist() for ids in encode_documents(one, texts)]]
    )
    if ours != theirs:
        raise ValueError(
            "The two models have different tokenizers, which make other tokens of this text: their losses per token "
            "do not compare. Train both with one tokenizer."
        )


def cut_windows(token_ids: np.ndarray, protocol: WindowProtocol) -> EvaluationWindows:
    """Cut a row (N,) of tokens into windows of which each token is counted, not given and not padding, in one.

    Raises:
        ValueError: the row is empty.

    """
    if not len(token_ids):
        raise ValueError("There is no token to count.")
    length, stride = protocol.sequence_length, protocol.stride
    start_W = torch.arange(0, max(len(token_ids) - (length - stride), 1), stride)
    place_T = torch.arange(length)
    place_WT = start_W[:, None] + place_T
    return EvaluationWindows(
        token_ids=torch.from_numpy(token_ids)[place_WT.clamp(max=len(token_ids) - 1)],
        attention_mask=(place_WT < len(token_ids)).long(),
        fixed_mask=((start_W[:, None] > 0) & (place_T < length - stride)).long(),
    )
