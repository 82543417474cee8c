"""Evaluation: likelihood bounds of texts, and what generated texts are like.

`evaluation.metric` wraps the bounds for `evaluate` and needs the extra `eval`, `evaluation.harness` for
lm-evaluation-harness and needs the extra `harness`.
"""

from .error_analysis import analyze_errors
from .generative_perplexity import GenerativePerplexity, GenerativePerplexityResult
from .greedy import is_greedy
from .perplexity import LikelihoodResult, evaluate_texts
from .text_statistics import TextStatistics, measure_texts
from .windows import EvaluationWindows, WindowProtocol, check_same_tokens, cut_windows, tokenize_texts

__all__ = [
    "EvaluationWindows",
    "GenerativePerplexity",
    "GenerativePerplexityResult",
    "LikelihoodResult",
    "TextStatistics",
    "WindowProtocol",
    "analyze_errors",
    "check_same_tokens",
    "cut_windows",
    "evaluate_texts",
    "is_greedy",
    "measure_texts",
    "tokenize_texts",
]
