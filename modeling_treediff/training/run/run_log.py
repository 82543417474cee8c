"""The log of a run: `metrics.jsonl` and experiment trackers."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_trackio_available, is_wandb_available

from modeling_treediff.files.atomic_files import set_aside, write_atomically
from modeling_treediff.files.json_files import without_non_numbers

PROJECT_NAME = "treediff"
METRICS_NAME = "metrics.jsonl"
AVAILABLE = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "trackio": is_trackio_available,
}


class RunLog:
    """One line of JSON per optimizer step, the same numbers to the trackers; the main process alone writes."""

    def __init__(self, accelerator: Accelerator, folder: Path, done: int, settings: dict[str, Any]) -> None:
        """Go on after step `done`: what an interrupted run logged later is dropped, since it is run again."""
        self.accelerator, self.file = accelerator, folder / METRICS_NAME
        if accelerator.is_main_process:
            drop_later_steps(self.file, done)
        if accelerator.log_with:
            simple = {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
            accelerator.init_trackers(PROJECT_NAME, simple, {"tensorboard": {"purge_step": done + 1}})

    def write(self, step: int, facts: dict[str, Any]) -> None:
        """Log what was measured at a step."""
        if not self.accelerator.is_main_process:
            return
        facts = without_non_numbers(facts)
        with self.file.open("a", encoding="utf-8") as stream:
            print(json.dumps({"step": step} | facts, allow_nan=False), file=stream)
        self.accelerator.log(_flat(facts), step=step)

    def read(self) -> list[dict[str, Any]]:
        """Return the facts of all steps."""
        lines = self.file.read_bytes().splitlines() if self.file.exists() else []
        return [facts for line in lines if (facts := parse_step(line)) is not None]

    def close(self) -> None:
        """Let the trackers write what they still hold."""
        for tracker in self.accelerator.trackers:  # not `end_training`: it ends the processes' connection, too
            tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raise ImportError naming the package that a tracker lacks; accelerate would leave the tracker out silently."""
    for name in names:
        if not AVAILABLE[name]():
            raise ImportError(f"Logging to {name} needs its package: pip install {name}")


def drop_later_steps(metrics: Path, step: int) -> None:
    """Keep the lines up to `step`. A kill may have cut the last line; a folder or other damage is set aside."""
    if metrics.is_dir():
        aside = set_aside(metrics)
        print(f"{metrics} is a folder, now {aside.name}: going on with an empty log.", file=sys.stderr)
    if not metrics.exists():
        return
    whole = [line for line in metrics.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    steps = [parse_step(line) for line in whole]
    if damaged := steps.count(None):
        aside = set_aside(metrics)
        said = f"{metrics} has {damaged} damaged lines: going on without them, the file as it was is {aside.name}."
        print(said, file=sys.stderr)
    kept = [line for line, facts in zip(whole, steps, strict=True) if facts is not None and facts["step"] <= step]
    write_atomically(metrics, lambda path: path.write_bytes(b"".join(kept)))


def parse_step(line: bytes) -> dict[str, Any] | None:
    """Return the facts in a line of `metrics.jsonl`; None unless all that a run's end reads is there."""
    try:
        facts = json.loads(line)
        numbers = [facts[name] for name in ("step", "loss", "seconds")]
        if facts.get("nelbo") is not None:
            numbers += [facts["nelbo"], facts["nelbo_standard_error"] or 0.0, *facts["level_losses"]]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return facts if all(isinstance(number, int | float) for number in numbers) else None


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name the parts of what has parts, and leave out what is missing."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, list | tuple):
            value = {str(index): number for index, number in enumerate(value, start=1)}
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        elif value is not None:
            flat[prefix + name] = value
    return flat
