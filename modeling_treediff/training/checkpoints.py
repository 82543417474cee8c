"""Checkpoints of a run: whole folders that appear in one rename, the newest few of them kept."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from modeling_treediff.atomic_files import commit_folder
from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM

NAME = re.compile(r"checkpoint-(\d+)")
IDENTITY_NAME = "run.json"


class CheckpointStore:
    """The folders `checkpoint-STEP` below a run's output; each is a model `from_pretrained` loads, and the run's state.

    The model is saved once, by `save_pretrained`; accelerate adds optimizer, schedule and random states.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        keep: int,
        tokenizer: PreTrainedTokenizerBase,
        identity: dict[str, Any],
    ) -> None:
        """Keep the newest `keep` checkpoints in `folder`; tokenizer and identity are saved with each.

        The identity is what must be equal for a checkpoint to continue the same run: JSON facts by name.
        """
        self.accelerator, self.folder, self.keep, self.tokenizer = accelerator, folder, keep, tokenizer
        self.identity = identity
        accelerator.register_save_state_pre_hook(self._save_model)
        accelerator.register_load_state_pre_hook(self._load_model)

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name)))

    def save(self, step: int) -> Path:
        """Save the run at `step`; every process calls this."""
        final = self.folder / f"checkpoint-{step:07d}"
        partial = self.folder / f".{final.name}.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            commit_folder(partial, final)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.folder / f"checkpoint-{old:07d}")
        self.accelerator.wait_for_everyone()
        return final

    def load_latest(self) -> int:
        """Load the newest checkpoint into everything that was prepared; return its step, 0 if there is none.

        Raises:
            ValueError: the checkpoint is of another run.

        """
        steps = self.steps()
        if not steps:
            return 0
        folder = self.folder / f"checkpoint-{steps[-1]:07d}"
        theirs = json.loads((folder / IDENTITY_NAME).read_text(encoding="utf-8"))
        differing = [
            f"{name} was {theirs.get(name)}, is {self.identity.get(name)}"
            for name in sorted(theirs.keys() | self.identity.keys())
            if theirs.get(name) != self.identity.get(name)
        ]
        if differing:
            raise ValueError(f"{folder} is of another run and cannot be resumed: {'; '.join(differing)}.")
        self.accelerator.load_state(str(folder))
        return steps[-1]

    def _save_model(self, models: list[torch.nn.Module], weights: list[Any], folder: str) -> None:
        for model in models:
            unwrapped = self.accelerator.unwrap_model(model)
            is_main = self.accelerator.is_main_process
            unwrapped.save_pretrained(folder, tokenizer=self.tokenizer, is_main_process=is_main)
            if is_main:
                (Path(folder) / IDENTITY_NAME).write_text(json.dumps(self.identity, indent=2), encoding="utf-8")
        weights.clear()  # accelerate would write them a second time

    def _load_model(self, models: list[torch.nn.Module], folder: str) -> None:
        while models:
            unwrapped = self.accelerator.unwrap_model(models.pop())
            unwrapped.load_state_dict(TreeDiffForDiffusionLM.from_pretrained(folder).state_dict())
