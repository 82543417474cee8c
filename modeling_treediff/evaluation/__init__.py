"""Evaluation: likelihood bounds of texts, and what generated texts are like.

`evaluation.metric` wraps the bounds for `evaluate` and needs the extra `eval`.
"""

from .judge import Judge, JudgeResult
from .perplexity import LikelihoodResult, evaluate_texts
from .text_statistics import TextStatistics, measure_texts
from .windows import EvaluationWindows, WindowProtocol, cut_windows, tokenize_texts

__all__ = [
    "EvaluationWindows",
    "Judge",
    "JudgeResult",
    "LikelihoodResult",
    "TextStatistics",
    "WindowProtocol",
    "cut_windows",
    "evaluate_texts",
    "measure_texts",
    "tokenize_texts",
]
