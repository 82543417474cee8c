"""Evaluation: likelihood bounds of texts. `evaluation.metric` wraps them for `evaluate` and needs the extra `eval`."""

from .perplexity import LikelihoodResult, evaluate_texts
from .windows import EvaluationWindows, WindowProtocol, cut_windows, tokenize_texts

__all__ = [
    "LikelihoodResult",
    "EvaluationWindows",
    "WindowProtocol",
    "cut_windows",
    "evaluate_texts",
    "tokenize_texts",
]
