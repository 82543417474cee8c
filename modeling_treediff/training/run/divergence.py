"""The report on a diverged run (NaN or infinity)."""

from dataclasses import asdict
from pathlib import Path

from modeling_treediff.files.json_files import write_json

from .processes import on_main
from .update import Update

DIVERGENCE_NAME = "divergence.json"


def report_divergence(folder: Path, step: int, update: Update, windows_per_step: int, latest: Path | None) -> str:
    """Write the run's state to `divergence.json`, on the main process, and return a sentence about it.

    Args:
        folder: of the run.
        step: the optimizer step, counted from 1.
        update: what it measured.
        windows_per_step: of all processes; gives the numbers of the windows of the step.
        latest: the newest checkpoint; what is saved is finite, so it is good.

    """
    numbers = {name: str(value) if isinstance(value, float) else value for name, value in asdict(update).items()}
    facts = numbers | {
        "step": step,
        "first_window": (step - 1) * windows_per_step,
        "last_window": step * windows_per_step - 1,
        "last_good_checkpoint": str(latest) if latest else None,
    }
    file = folder / DIVERGENCE_NAME
    on_main(lambda: write_json(file, facts))
    return (
        f"Stopped at step {step}: loss {update.loss:g}, gradient norm {update.gradient_norm:g}, parameters "
        f"{'as they were before it' if update.diverged else 'no longer finite'}. Last good checkpoint: "
        f"{latest.name if latest else 'none'}; details in {file}. Lower the learning rate, or use bf16 instead of fp16."
    )
