"""The batches of every optimizer step, and the position in the text for resuming."""

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from traceback import clear_frames
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from modeling_treediff.training.data.collator import DiffusionCollator
from modeling_treediff.training.data.sources import Windows

from .preflight import check_workers
from .settings import TrainingConfig
from .signals import leave_to_parent

WORKER_TRACE = "Original Traceback (most recent call last)"  # in the message of an error that a worker has met


class StepBatches:
    """Yields this process's passes of each step; what an interrupted run needs to go on is saved with a checkpoint.

    Step s of a run takes the windows number s L to (s+1) L - 1, counted from 0, of which L = batch size x accumulation
    x processes; how they are split among processes and passes changes neither their order nor their noise.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        training: Windows,
        collator: DiffusionCollator,
        config: TrainingConfig,
    ) -> None:
        """Take windows from `training`; the config has the batch size and accumulation that the processes use.

        Raises:
            ValueError: more workers than the windows can have.

        """
        check_workers(training, config.workers)
        self.accelerator, self.training, self.collator, self.config = accelerator, training, collator, config
        self.windows_per_step = config.windows_per_step(accelerator.num_processes)
        self._place: tuple[int, ...] | None = None

    def after(self, done: int) -> Generator[list[dict[str, torch.Tensor]]]:
        """Yield the passes of each step after the first `done`; close it when no more are needed.

        Raises:
            ValueError: the text has come to its end.
            Exception: what a worker has met, in its own words; where it did is in the notes.

        """
        config, windows = self.config, self.windows_per_step
        dataset = self.training.dataset(done * windows, config.max_steps * windows, config.seed, self._place)
        loader = DataLoader(
            dataset,
            config.batch_size,
            collate_fn=self.collator,
            num_workers=config.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=leave_to_parent,
            generator=torch.Generator(),  # seeds workers; the global one stays as a checkpoint has it
        )
        # Closed at the end whatever happens, so that workers, which ignore signals, end with the run.
        with closing(iter(self.accelerator.prepare(loader))) as batches:
            for step in range(done + 1, config.max_steps + 1):
                try:
                    passes = self._passes(step, batches)
                except Exception as error:
                    # Whoever keeps the error would keep torch's iterator, and so the workers would never end.
                    clear_frames(error.__traceback__)
                    raise _in_its_own_words(error)  # noqa: B904 -- it is the same error
                yield passes

    def _passes(self, step: int, batches: Iterator[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        passes = list(islice(batches, self.config.gradient_accumulation_steps))
        if len(passes) < self.config.gradient_accumulation_steps:
            raise ValueError(f"The training text ended before step {step} of {self.config.max_steps}.")
        places = [batch.pop("place", None) for batch in passes]
        if (first := places[0]) is not None:  # a stream tells where each window begins
            self._place = ((step - 1) * self.windows_per_step, *first[0].tolist())
        return passes

    def state_dict(self) -> dict[str, Any]:
        """Return where the first window of the last step begins: (its number, epoch, document, token), or None."""
        return {"place": self._place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._place = state["place"]


def _in_its_own_words(error: Exception) -> Exception:
    """Return a data worker's error with its own message; torch's traceback becomes a note."""
    message = str(error)
    if WORKER_TRACE in message:
        error.args = (message.rstrip().splitlines()[-1].partition(": ")[2],)
        error.add_note(message)
    return error
