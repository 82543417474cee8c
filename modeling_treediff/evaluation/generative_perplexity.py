"""Generative perplexity: how likely texts are to an autoregressive model that had no part in making them.

The judge reads text, not tokens, so that models with different tokenizers are compared by the same measure. It prefers
dull and repetitive text: report `text_statistics` beside it, and the judge's numbers of real text of the same lengths.

Shape legend: B texts of a batch, T tokens of the longest one.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from modeling_treediff.text.tree_tokenizer import load_tokenizer

from .intervals import Interval, exponential, finite, normal_interval, ratio_and_error


@dataclass(frozen=True)
class GenerativePerplexityResult:
    """Generative perplexity of some texts: sums over all of them, with standard errors over texts.

    Standard errors and intervals are over texts: other texts from the same source stay inside. They are those of a
    ratio of two sums over texts (to first order), infinite for a single text.

    Attributes:
        nats_per_token: of the judge's tokens, the first token of each text included.
        standard_error: of that, in nats per token.
        nats_per_byte: of the texts in UTF-8; comparable between judges too.
        nats_per_byte_standard_error: of that, in nats per byte.
        num_texts: texts read, empty ones included.
        num_tokens: the judge's tokens in them.
        num_bytes: their bytes in UTF-8.

    """

    nats_per_token: float
    standard_error: float
    nats_per_byte: float
    nats_per_byte_standard_error: float
    num_texts: int
    num_tokens: int
    num_bytes: int

    @property
    def confidence_interval(self) -> Interval:
        """95 % interval of the nats per token."""
        return normal_interval(self.nats_per_token, self.standard_error)

    @property
    def perplexity(self) -> float:
        """exp(nats per token): the generative perplexity."""
        return exponential(self.nats_per_token)

    @property
    def perplexity_interval(self) -> Interval:
        """The ends of the 95 % interval as perplexities."""
        low, high = self.confidence_interval
        return exponential(low), exponential(high)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures under their names, ready for JSON: what is not finite becomes None."""
        facts = {name: finite(value) for name, value in asdict(self).items()}
        facts["perplexity"] = finite(self.perplexity)
        for name in ("confidence_interval", "perplexity_interval"):
            facts[name] = [finite(end) for end in getattr(self, name)]
        return facts


@dataclass(frozen=True)
class GenerativePerplexity:
    """A causal language model and its own tokenizer.

    Attributes:
        model: any `AutoModelForCausalLM`, in fp32 or better.
        tokenizer: its tokenizer. Its beginning-of-sequence token, or for want of one its end-of-sequence token, stands
            before every text and is not counted.

    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def from_pretrained(cls, judge: str | Path, device: str | torch.device = "cpu") -> "GenerativePerplexity":
        """Load a judge, in fp32, from a folder or the Hub."""
        model = AutoModelForCausalLM.from_pretrained(judge, dtype=torch.float32, trust_remote_code=False).eval()
        return cls(torch.nn.Module.to(model, device), load_tokenizer(str(judge)))

    def read(self, texts: Sequence[str], batch_size: int = 16) -> GenerativePerplexityResult:
        """Measure texts.

        Args:
            texts: strings; empty ones count as texts without tokens.
            batch_size: texts per forward pass; texts of similar lengths are read together.

        Raises:
            ValueError: no text, or none but empty ones; a text longer than the judge's positions; no token to start
                with.

        """
        nats, tokens = self.text_nats(texts, batch_size)
        if not tokens.sum():
            raise ValueError(f"There is nothing to judge: {len(texts)} texts, none of them with a token.")
        sizes = np.array([len(text.encode()) for text in texts])
        per_token, per_byte = ratio_and_error(nats, tokens), ratio_and_error(nats, sizes)
        return GenerativePerplexityResult(*per_token, *per_byte, len(texts), int(tokens.sum()), int(sizes.sum()))

    def text_nats(self, texts: Sequence[str], batch_size: int = 16) -> tuple[np.ndarray, np.ndarray]:
        """Return for each text the nats of all of it (fp64), and how many of the judge's tokens it has."""
        rows = [self._encode(text) for text in texts]
        lengths = np.array([len(row) - 1 for row in rows], dtype=np.int64)
        nats = np.zeros(len(rows))
        order = [index for index in np.argsort(-lengths, kind="stable") if lengths[index]]
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            nats[chosen] = self._batch_nats([rows[index] for index in chosen])
        return nats, lengths

    def _encode(self, text: str) -> list[int]:
        """Return start token and tokens of a text, in which the names of special tokens are plain text."""
        names = ("bos_token_id", "eos_token_id")
        starts = [token for name in names if (token := getattr(self.tokenizer, name)) is not None]
        if not starts:
            raise ValueError("The judge's tokenizer has neither a bos_token nor an eos_token to begin a text with.")
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        limit = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        if len(ids) >= limit:
            raise ValueError(
                f"The text that begins {text[:40]!r} has {len(ids)} of the judge's tokens, which reads at most "
                f"{limit - 1}: cut the text, or take another judge."
            )
        return [starts[0], *ids]

    @torch.no_grad()
    def _batch_nats(self, rows: list[list[int]]) -> np.ndarray:
        """Return the nats of each row, without its first token."""
        lengths_B1 = torch.tensor([[len(row)] for row in rows])
        longest = int(lengths_B1.max())
        # Padding is on the right, where no token of a causal model sees it: no mask, positions count from the start.
        padded_BT = torch.tensor([row + row[:1] * (longest - len(row)) for row in rows])
        inputs_BT, next_BT = padded_BT[:, :-1].to(self.model.device), padded_BT[:, 1:].to(self.model.device)
        logits_BTV = self.model(input_ids=inputs_BT, use_cache=False).logits
        nats_BT = F.cross_entropy(logits_BTV.flatten(0, 1), next_BT.flatten(), reduction="none").view_as(next_BT)
        return (nats_BT.cpu().double() * (torch.arange(1, longest) < lengths_B1)).sum(dim=1).numpy()
