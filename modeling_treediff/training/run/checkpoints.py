"""Checkpoints of a run: folders written atomically; the newest few and the best are kept."""

import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import load
from safetensors import SafetensorError

from modeling_treediff.files.atomic_files import commit_folder, set_aside, write_atomically
from modeling_treediff.files.fingerprints import file_sha256
from modeling_treediff.files.json_files import read_json, write_json
from modeling_treediff.hub.card import CARD_NAME
from modeling_treediff.hub.records import EVALUATION_RECORD
from modeling_treediff.training.memory.tracker import GIBIBYTE

from .identity import differences, missing_names
from .processes import on_main, together
from .trained_model import TrainedModel

NAME = re.compile(r"checkpoint-(\d+)")
BEST_NAME = "checkpoint-best"
FACTS_NAME = "run.json"
NOT_OF_THE_STATE = (FACTS_NAME, CARD_NAME, EVALUATION_RECORD)  # may change, or come later


class CheckpointStore:
    """The folders `checkpoint-STEP` below a run's output; each is a model `from_pretrained` loads, and the run's state.

    `checkpoint-best` is a link to the one with the lowest validation NELBO. Accelerate writes optimizer, random states
    and what is registered with it; `run.json`, written last, says of which run it is and which files belong to it.
    """

    def __init__(
        self, accelerator: Accelerator, model: TrainedModel, folder: Path, keep: int, identity: dict[str, Any]
    ) -> None:
        """Keep the newest `keep` checkpoints in `folder`.

        The identity is what must be equal for a checkpoint to continue the same run: JSON facts by name.
        """
        self.accelerator, self.model, self.folder, self.keep = accelerator, model, folder, keep
        self.identity = identity
        accelerator.register_save_state_pre_hook(self._save_model)
        accelerator.register_load_state_pre_hook(self._load_model)

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.folder / f"checkpoint-{step:07d}"

    def latest(self) -> Path | None:
        """Return the newest checkpoint, None if there is none."""
        steps = checkpoint_steps(self.folder)
        return self.path(steps[-1]) if steps else None

    def best(self) -> tuple[int, float] | None:
        """Return step and validation NELBO of the best checkpoint; None if none was validated."""
        measured = [
            (nelbo, step)
            for step in checkpoint_steps(self.folder)
            if isinstance(nelbo := _read_facts(self.path(step)).get("nelbo"), float) and math.isfinite(nelbo)
        ]
        return (min(measured)[1], min(measured)[0]) if measured else None

    # ---- saving -----------------------------------------------------------------------------------------------

    def save(self, step: int, nelbo: float | None = None) -> Path:
        """Save the run at `step`, where the validation NELBO is `nelbo` if it was measured; every process calls this.

        Raises:
            FloatingPointError: the parameters are not finite; nothing is written.
            OSError: the disk is full or cannot be written; earlier checkpoints are as they were.

        """
        if not self.model.is_finite():
            raise FloatingPointError(f"The parameters are not finite after step {step}.")
        final = self.path(step)
        partial = self.folder / f".{final.name}.partial"
        try:
            on_main(lambda: _make_anew(partial))
            together(lambda: self.accelerator.save_state(str(partial)))
            on_main(lambda: self._commit(partial, final, {"step": step, "nelbo": nelbo}))
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
            raise OSError(self._could_not_save(step, error)) from error
        on_main(self.prune)
        return final

    def _commit(self, partial: Path, final: Path, facts: dict[str, Any]) -> None:
        facts |= {"identity": self.identity, "files": _fingerprints(partial)}
        write_json(partial / FACTS_NAME, facts)
        commit_folder(partial, final)

    def _could_not_save(self, step: int, error: Exception) -> str:
        latest = self.latest()
        kept = f"{latest} is whole: go on from there with --resume" if latest else "there is no earlier one"
        free = shutil.disk_usage(self.folder).free / GIBIBYTE
        reason = f"{str(error).splitlines()[0]}; {free:.3g} GiB free"  # torch and safetensors do not say what failed
        return (
            f"Could not save the checkpoint of step {step} ({reason}); {kept} when {self.folder} can be written again."
        )

    def prune(self) -> None:
        """Point `checkpoint-best` to the best checkpoint and remove all but it and the newest; main process alone.

        A folder is renamed before it is removed, so that a kill leaves no half of a checkpoint.
        """
        best = self.best()
        if best:
            link = self.folder / BEST_NAME
            if link.is_dir() and not link.is_symlink():  # a copy that followed the link
                set_aside(link)
            write_atomically(link, lambda temporary: os.symlink(self.path(best[0]).name, temporary))
        for step in checkpoint_steps(self.folder)[: -self.keep]:
            if best is None or step != best[0]:
                removed = self.folder / f".{self.path(step).name}.removed"
                os.rename(self.path(step), removed)
                shutil.rmtree(removed)

    def _save_model(self, models: list[Any], weights: list[Any], folder: str) -> None:
        self.model.save_state(Path(folder))
        weights.clear()  # accelerate would write them a second time

    # ---- loading ----------------------------------------------------------------------------------------------

    def load_latest(self) -> int:
        """Load the newest whole checkpoint into everything that was prepared; return its step, 0 if there is none.

        Raises:
            ValueError: the checkpoint is of another run, all are damaged, or a file would run code.

        """
        step = on_main(self._newest_whole)
        if step:
            on_main(lambda: _refuse_code(self.path(step)))
            together(lambda: self.accelerator.load_state(str(self.path(step))))
        return step

    def _newest_whole(self) -> int:
        remove_leftovers(self.folder)
        damaged: dict[int, str] = {}
        for step in reversed(checkpoint_steps(self.folder)):
            facts = _read_facts(self.path(step))
            damage = find_damage(self.path(step), facts) or self._check_identity(self.path(step), facts["identity"])
            if not damage:
                self._set_aside(damaged, step)
                return step
            damaged[step] = damage
        if damaged:
            first = max(damaged)
            raise ValueError(
                f"No checkpoint in {self.folder} is whole ({self.path(first).name}: {damaged[first]}): train "
                "anew into another --output."
            )
        return 0

    def _set_aside(self, damaged: dict[int, str], whole: int) -> None:
        """Rename damaged checkpoints, so that the run can save them again."""
        for step, damage in damaged.items():
            name = self.path(step).name
            print(f"{name} is damaged ({damage}): going on from {self.path(whole).name}.", file=sys.stderr)
            set_aside(self.path(step))

    def _check_identity(self, folder: Path, theirs: dict[str, Any]) -> str:
        """Raise ValueError for another run's checkpoint; return what its facts lack, empty if nothing."""
        if differing := differences(theirs, self.identity):
            raise ValueError(
                f"{folder} is of another run: {'; '.join(differing)}. Restore these to resume it, or take another "
                "--output."
            )
        missing = missing_names(theirs, self.identity)
        return f"{FACTS_NAME} does not say of which run it is: {missing[0]} is missing" if missing else ""

    def _load_model(self, models: list[Any], folder: str) -> None:
        self.model.load_state(Path(folder))
        models.clear()  # accelerate would look for them in files of its own


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a run's folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := NAME.fullmatch(path.name)))


def _make_anew(folder: Path) -> None:
    """Make an empty folder in place of what a kill has left, or of a link, which is not followed."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _refuse_code(checkpoint: Path) -> None:
    """Raise ValueError for a pickle that would run code; accelerate looks out for that itself in all but these."""
    for file in checkpoint.glob("custom_checkpoint_*.pkl"):
        try:
            load(file, map_location="cpu")  # weights_only
        except Exception as error:  # a damaged file fails in many ways
            raise ValueError(f"{file} is damaged, or would run code: resume only runs of your own.") from error


def find_damage(checkpoint: Path, facts: dict[str, Any]) -> str:
    """Compare a checkpoint's files with what its facts say; return what is wrong, empty if nothing is."""
    files = facts.get("files")
    if not isinstance(files, dict) or not isinstance(facts.get("identity"), dict):
        return f"{FACTS_NAME} is missing, cannot be read or is not whole"
    found = {path.relative_to(checkpoint).as_posix(): path for path in _files(checkpoint)}
    for name, known in files.items():
        if not isinstance(known, list | tuple) or len(known) != 2:
            return f"{FACTS_NAME} does not say what {name} holds"
        size, sha256 = known
        if name not in found:
            return f"{name} is missing"
        if (length := found[name].stat().st_size) != size:
            return f"{name} has {length} bytes instead of {size}"
        if file_sha256(found[name]) != sha256:
            return f"{name} has other content than was saved"
    return ""


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill while saving or removing a checkpoint, or saving the model, has left."""
    for path in [*folder.glob(".*.partial"), *folder.glob(".checkpoint-*.removed")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_OF_THE_STATE)


def _fingerprints(folder: Path) -> dict[str, tuple[int, str]]:
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, file_sha256(path)) for path in _files(folder)}


def _read_facts(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / FACTS_NAME)
