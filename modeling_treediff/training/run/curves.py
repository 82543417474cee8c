"""A picture of a run: losses, bounds, learning rate and gradient norm over its steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modeling_treediff.files.atomic_files import write_atomically

SMOOTH_PARTS = 50  # a point of the smooth curve is the mean over this part of the run


def draw_curves(steps: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw the lines of `metrics.jsonl`, one at least, as a PNG.

    Raises:
        ImportError: matplotlib is missing.

    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state
    except ImportError as error:
        raise ImportError("The picture of the curves needs matplotlib: pip install matplotlib") from error

    figure = Figure(figsize=(12, 8), layout="constrained")
    (losses, levels), (rate, norm) = figure.subplots(2, 2)
    validated = [line for line in steps if line.get("nelbo") is not None]
    _draw_losses(losses, steps, validated)
    for index, _ in enumerate(validated[0]["level_losses"] if validated else []):
        numbers = [line["level_losses"][index] for line in validated]
        levels.plot([line["step"] for line in validated], numbers, marker=".", label=f"level {index + 1}")
    levels.set(title="validation NELBO of each level, coarsest first", ylabel="nats per token")
    for axes, name in ((rate, "learning_rate"), (norm, "gradient_norm")):
        drawn = [line for line in steps if line.get(name) is not None]
        axes.plot([line["step"] for line in drawn], [line[name] for line in drawn], linewidth=0.8)
        axes.set(title=name.replace("_", " "))
    norm.set_yscale("log")
    for axes in figure.axes:
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=100))


def _draw_losses(axes: Any, steps: Sequence[dict[str, Any]], validated: Sequence[dict[str, Any]]) -> None:
    number, loss = [line["step"] for line in steps], [line["loss"] for line in steps]
    window = np.ones(1 + len(loss) // SMOOTH_PARTS)
    smooth = np.convolve(loss, window, "same") / np.convolve(np.ones(len(loss)), window, "same")
    axes.plot(number, loss, color="C0", alpha=0.25, linewidth=0.8)
    axes.plot(number, smooth, color="C0", label="training, smoothed")
    if validated:
        error = [2 * (line["nelbo_standard_error"] or 0.0) for line in validated]
        bound = [line["nelbo"] for line in validated]
        axes.errorbar([line["step"] for line in validated], bound, error, color="C1", label="validation NELBO ± 2 s.e.")
    axes.set_ylim(0.9 * min(smooth), 1.05 * max(smooth))
    axes.set(title="bound", ylabel="nats per token")
