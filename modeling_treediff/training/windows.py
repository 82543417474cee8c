"""Documents -> token windows -> corrupted batches, in an order that depends on the seed and the step alone.

Shape legend: W windows, T tokens per window.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
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
GOLDEN_RATIO = 0x9E3779B97F4A7C15  # of 2^64


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


@dataclass(frozen=True)
class TokenWindows:
    """Windows of text, all (W, T): token ids, and where needed masks (1 = real token, 1 = given)."""

    input_ids: np.ndarray
    attention_mask: np.ndarray | None = None
    fixed_mask: np.ndarray | None = None
    segment_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, part: slice) -> "TokenWindows":
        return TokenWindows(**{name: array[part] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that are there, by name."""
        return {name: array for name, array in vars(self).items() if array is not None}

    @property
    def length(self) -> int:
        """T, tokens per window."""
        return self.input_ids.shape[1]

    @property
    def fingerprint(self) -> str:
        """Sha256 of all arrays."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def dataset(self, first: int, count: int, seed: int, place: tuple[int, ...] | None = None) -> Dataset:
        """Return the items number first..count-1 of a run; the place is for streams."""
        return ShuffledWindows(self, count, seed, first)


class ShuffledWindows(Dataset):
    """Windows in the order of training: epoch after epoch, each shuffled by (seed, epoch).

    Item i is the window number `first + i` of the whole run, so a resumed run starts at any place without a state.
    """

    def __init__(self, windows: TokenWindows, count: int, seed: int, first: int = 0) -> None:
        """Serve the items first..count-1 of a run over the windows."""
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
        row = self._order[place]
        return {name: array[row] for name, array in self.windows.arrays().items()} | {"position": position}


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
        """Return input_ids (B, T), labels (B, T) and timesteps (B,), as `forward` takes them, and masks if given."""
        parts = [self._corrupt_one(feature) for feature in features]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _corrupt_one(self, feature: dict[str, Any]) -> dict[str, torch.Tensor]:
        row = {
            name: torch.from_numpy(np.asarray(feature[name], np.int64))[None]
            for name in ("input_ids", "attention_mask", "fixed_mask")
            if feature.get(name) is not None
        }
        if "position" not in feature:
            generator, uniform = None, torch.rand(1)
        else:
            state = np.random.SeedSequence([self.seed, feature["position"]]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
            start = int(np.random.SeedSequence(self.seed).generate_state(1, np.uint64)[0])
            uniform = torch.tensor([((start + feature["position"] * GOLDEN_RATIO) % 2**64) / 2**64])
        timesteps = self.schedule.place_times(uniform.clamp(max=1 - 2**-24), self.smallest_fraction)
        tokens = row.pop("input_ids")
        batch = corrupt(tokens, self.tree, self.schedule, timesteps, generator, **row)
        row.pop("fixed_mask", None)
        return {"input_ids": batch.input_ids, "labels": batch.labels, "timesteps": batch.timesteps, **row}
