"""Training: windows of text, memory, checkpoints and the loop. Needs the extra `train`."""

try:
    import accelerate as _accelerate  # noqa: F401
except ImportError as error:
    raise ImportError("Training needs accelerate: pip install 'modeling-treediff[train]'.") from error

from .chat import chat_windows
from .collator import DiffusionCollator
from .loop import TrainingConfig, TrainingResult, train
from .memory import MemoryTracker, PeakMemory
from .records import write_record
from .sources import DataOptions, open_training_data
from .streaming import StreamedWindows
from .tokenizing import tokenize_documents
from .windows import TokenWindows, pack_windows, unigram_entropy

__all__ = [
    "DataOptions",
    "DiffusionCollator",
    "MemoryTracker",
    "PeakMemory",
    "StreamedWindows",
    "TokenWindows",
    "TrainingConfig",
    "TrainingResult",
    "chat_windows",
    "open_training_data",
    "pack_windows",
    "tokenize_documents",
    "train",
    "unigram_entropy",
    "write_record",
]
