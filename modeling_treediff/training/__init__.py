"""Training: windows of text, memory, checkpoints and the loop. Needs the extra `train`."""

try:
    import accelerate as _accelerate  # noqa: F401
except ImportError as error:
    raise ImportError("Training needs accelerate: pip install 'modeling-treediff[train]'.") from error

from .loop import TrainingConfig, TrainingResult, train
from .memory import MemoryTracker, PeakMemory, memory_report
from .memory_plan import MemoryPlan, TrainingStep, largest_batch, plan_memory
from .records import write_record
from .windows import (
    DiffusionCollator,
    ShuffledWindows,
    pack_windows,
    tokenize_documents,
    unigram_entropy,
)

__all__ = [
    "DiffusionCollator",
    "MemoryPlan",
    "MemoryTracker",
    "PeakMemory",
    "ShuffledWindows",
    "TrainingConfig",
    "TrainingResult",
    "TrainingStep",
    "largest_batch",
    "memory_report",
    "pack_windows",
    "plan_memory",
    "tokenize_documents",
    "train",
    "unigram_entropy",
    "write_record",
]
