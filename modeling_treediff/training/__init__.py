"""Training: windows of text, memory, checkpoints and the loop. Needs the extra `train`."""

try:
    import accelerate as _accelerate  # noqa: F401
except ImportError as error:
    raise ImportError("Training needs accelerate: pip install 'modeling-treediff[train]'.") from error

from .data.chat import chat_windows
from .data.collator import DiffusionCollator
from .data.sources import DataOptions, open_training_data
from .data.streaming import StreamedWindows
from .memory import make_lean, undo_lean
from .memory.fake_step import TrainingStep
from .memory.plan import MemoryPlan, largest_batch, plan_memory
from .memory.tracker import MemoryTracker, PeakMemory, memory_report
from .run.loop import TrainingResult, train
from .run.preflight import check_run, check_settings, check_windows
from .run.settings import TrainingConfig

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
    "check_windows",
    "largest_batch",
    "make_lean",
    "memory_report",
    "open_training_data",
    "plan_memory",
    "train",
    "undo_lean",
]
