"""Documents -> token windows -> corrupted batches, in an order that depends on the seed and the step alone.

Shape legend: W windows, T tokens per window.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from modeling_treediff.diffusion_process import corrupt
from modeling_treediff.schedule_base import LevelSchedule
from modeling_treediff.vocabulary_tree import VocabularyTree

# Keeps the rare huge weights out of the gradient, see `LevelSchedule.sample_times` and benchmarks/LOG.md.
TRAINING_SMALLEST_FRACTION = 0.1


def tokenize_documents(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return all documents as one row of token ids (int32), each followed by the end-of-sequence token.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token to separate documents with.

    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no eos_token; documents need one between them.")
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.array([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encoded])


def pack_windows(token_ids: np.ndarray, length: int, name: str = "text") -> np.ndarray:
    """Cut a row of tokens into (W, T=length) windows without overlap; the incomplete last one is dropped.

    Raises:
        ValueError: the row, called `name` in the message, is shorter than one window.

    """
    if length < 1:
        raise ValueError(f"A window needs at least one token, got {length}.")
    count = len(token_ids) // length
    if count == 0:
        raise ValueError(
            f"The {name} has {len(token_ids)} tokens, less than one window of {length}. Use a longer text or a shorter "
            "window."
        )
    return token_ids[: count * length].reshape(count, length)


def unigram_entropy(token_ids: np.ndarray) -> float:
    """Entropy of the tokens' own frequencies, nats per token: what a model without context could reach at best."""
    counts = np.unique(token_ids, return_counts=True)[1]
    frequency = counts / counts.sum()
    return float(-(frequency * np.log(frequency)).sum())


class ShuffledWindows(Dataset):
    """Windows in the order of training: epoch after epoch, each shuffled by (seed, epoch).

    Item i is the window number `first + i` of the whole run, so a resumed run starts at any place without a state.
    """

    def __init__(self, windows: np.ndarray, count: int, seed: int, first: int = 0) -> None:
        """Serve the items first..count-1 of a run over the (W, T) windows."""
        self.windows, self.count, self.seed, self.first = windows, count, seed, first
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.count - self.first

    def __getitem__(self, index: int) -> dict[str, Any]:
        position = self.first + index
        epoch, place = divmod(position, len(self.windows))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.windows))
            self._epoch = epoch
        return {"input_ids": self.windows[self._order[place]], "position": position}


class DiffusionCollator:
    """Stacks windows and corrupts them in the data loader: the model's forward stays free of randomness.

    With `position` in the features (see `ShuffledWindows`) the noise depends on (seed, position) alone, otherwise on
    torch's global generator.
    """

    def __init__(
        self,
        tree: VocabularyTree,
        schedule: LevelSchedule,
        seed: int = 0,
        smallest_fraction: float = TRAINING_SMALLEST_FRACTION,
    ) -> None:
        """Corrupt along `tree` by `schedule`, at times as `schedule.sample_times` draws with `smallest_fraction`.

        The default keeps the rare huge weights out of the gradient; `nelbo` measures without such a limit.
        """
        # The loader works on the host, wherever the model's own tree lies.
        self.tree, self.schedule, self.seed, self.smallest_fraction = tree.to("cpu"), schedule, seed, smallest_fraction

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return input_ids (B, T), labels (B, T) and timesteps (B,), as `forward` takes them."""
        token_ids = torch.from_numpy(np.stack([np.asarray(feature["input_ids"], np.int64) for feature in features]))
        generator = None
        if "position" in features[0]:
            state = np.random.SeedSequence([self.seed, features[0]["position"]]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        timesteps = self.schedule.sample_times(len(token_ids), generator, smallest_fraction=self.smallest_fraction)
        batch = corrupt(token_ids, self.tree, self.schedule, timesteps, generator)
        return {"input_ids": batch.input_ids, "labels": batch.labels, "timesteps": batch.timesteps}
