"""Training: windows of text, memory, checkpoints and the loop. Needs the extra `train`.

Names are imported when they are first used, so that the command line reads its options quickly.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from modeling_treediff import import_on_use

if TYPE_CHECKING:
    from .data.chat import chat_windows
    from .data.collator import DiffusionCollator
    from .data.options import DataOptions
    from .data.sources import open_training_data
    from .data.streaming import StreamedWindows
    from .memory import make_lean, undo_lean
    from .memory.fake_step import TrainingStep
    from .memory.plan import MemoryPlan, largest_batch, plan_memory
    from .memory.tracker import MemoryTracker, PeakMemory, memory_report
    from .run.loop import TrainingResult, train
    from .run.preflight import check_run, check_settings, check_windows
    from .run.settings import TrainingConfig
    from .run.sizes import check_sizes

if find_spec("accelerate") is None:
    raise ImportError("Training needs accelerate: pip install 'modeling-treediff[train]'.")

HOMES = {
    "data.chat": ("chat_windows",),
    "data.collator": ("DiffusionCollator",),
    "data.options": ("DataOptions",),
    "data.sources": ("open_training_data",),
    "data.streaming": ("StreamedWindows",),
    "memory": ("make_lean", "undo_lean"),
    "memory.fake_step": ("TrainingStep",),
    "memory.plan": ("MemoryPlan", "largest_batch", "plan_memory"),
    "memory.tracker": ("MemoryTracker", "PeakMemory", "memory_report"),
    "run.loop": ("TrainingResult", "train"),
    "run.preflight": ("check_run", "check_settings", "check_windows"),
    "run.settings": ("TrainingConfig",),
    "run.sizes": ("check_sizes",),
}

__all__ = [
    "DataOptions",
    "DiffusionCollator",
    "MemoryPlan",
    "MemoryTracker",
    "PeakMemory",
    "StreamedWindows",
    "TrainingConfig",
    "TrainingResult",
    "TrainingStep",
    "chat_windows",
    "check_run",
    "check_settings",
    "check_sizes",
    "check_windows",
    "largest_batch",
    "make_lean",
    "memory_report",
    "open_training_data",
    "plan_memory",
    "train",
    "undo_lean",
]


__getattr__ = import_on_use(__name__, HOMES)
