"""Training: windows of text, memory, checkpoints and the loop. Needs the extra `train`."""

try:
    import accelerate as _accelerate  # noqa: F401
except ImportError as error:
    raise ImportError("Training needs accelerate: pip install 'modeling-treediff[train]'.") from error

from .loop import TrainingResult, train
from .memory import MemoryTracker, PeakMemory
from .preflight import check_run, check_windows
from .records import write_record
from .settings import TrainingConfig
from .windows import (
    DiffusionCollator,
    ShuffledWindows,
    TokenWindows,
    pack_windows,
    tokenize_documents,
    unigram_entropy,
)

__all__ = [
    "DiffusionCollator",
    "MemoryTracker",
    "PeakMemory",
    "ShuffledWindows",
    "TokenWindows",
    "TrainingConfig",
    "TrainingResult",
    "check_run",
    "check_windows",
    "pack_windows",
    "tokenize_documents",
    "train",
    "unigram_entropy",
    "write_record",
]
