"""Training: windows of text, memory, checkpoints and the loop. Needs the extra `train`."""

try:
    import accelerate as _accelerate  # noqa: F401
except ImportError as error:
    raise ImportError("Training needs accelerate: pip install 'modeling-treediff[train]'.") from error

from .chat import chat_windows
from .collator import DiffusionCollator
from .loop import TrainingResult, train
from .memory import MemoryTracker, PeakMemory, memory_report
from .memory_plan import MemoryPlan, TrainingStep, largest_batch, plan_memory
from .preflight import check_run, check_settings, check_windows
from .records import write_record
from .settings import TrainingConfig
from .sources import DataOptions, open_training_data
from .streaming import StreamedWindows
from .tokenizing import tokenize_documents
from .windows import TokenWindows, pack_windows, unigram_entropy

__all__ = [
    "DataOptions",
    "DiffusionCollator",
    "MemoryPlan",
    "MemoryTracker",
    "PeakMemory",
    "StreamedWindows",
    "TokenWindows",
    "TrainingConfig",
    "TrainingResult",
    "TrainingStep",
    "chat_windows",
    "check_run",
    "check_settings",
    "check_windows",
    "largest_batch",
    "memory_report",
    "open_training_data",
    "pack_windows",
    "plan_memory",
    "tokenize_documents",
    "train",
    "unigram_entropy",
    "write_record",
]
