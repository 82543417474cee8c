"""The bound as a metric of the `evaluate` library. Needs the extra `eval`; never downloads anything itself."""

from pathlib import Path
from typing import Any

import torch

try:
    from datasets import Features, Value
    from evaluate import Metric, MetricInfo
except ModuleNotFoundError as error:
    raise ImportError("The metric needs evaluate: pip install 'modeling-treediff[eval]'.") from error
from transformers import PreTrainedTokenizerBase

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.text.tree_tokenizer import load_tokenizer

from .perplexity import evaluate_texts
from .windows import WindowProtocol

DESCRIPTION = """
Upper bounds (NELBO) on the perplexity per token and the bits per byte that a tree-structured diffusion language model
gives to texts, with Monte Carlo standard errors and 95 % intervals. Masked diffusion (MDLM) is the flat tree.
"""
INPUTS_DESCRIPTION = """
Args:
    predictions (list of str): the texts to measure, none of them empty.
    model (TreeDiffForDiffusionLM, str or Path): a model, on any device; or its folder or Hub repository, then loaded
        onto a CUDA device if there is one.
    tokenizer (PreTrainedTokenizerBase, optional): its tokenizer; not needed with a folder or repository.
    sequence_length, stride (int, optional): of the protocol, see `WindowProtocol`; by default the model's longest
        window, and no overlap.
    **settings: num_samples, batch_size, seed and progress of `evaluate_texts`.
Returns:
    dict: nelbo (nats per token), perplexity, bits_per_byte, for each its standard error and 95 % interval, and what
        else `LikelihoodResult` says, the protocol included.
"""
CITATION = """
@article{treediff,
  title={Rethinking Token Prediction: Tree-Structured Diffusion Language Model},
  author={Wu and Yang and Dong and Tarokh},
  journal={arXiv preprint arXiv:2604.03537}
}
"""


class TreeDiffPerplexity(Metric):  # type: ignore[misc]  # evaluate has no types
    """`TreeDiffPerplexity().compute(predictions=texts, model=...)`; made directly, not by `evaluate.load`."""

    def _info(self) -> MetricInfo:
        """Describe the metric."""
        return MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=Features({"predictions": Value("string")}),
            reference_urls=["https://arxiv.org/abs/2604.03537"],
        )

    def _compute(
        self,
        predictions: list[str],
        model: TreeDiffForDiffusionLM | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        sequence_length: int | None = None,
        stride: int | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Measure the texts; see INPUTS_DESCRIPTION."""
        if isinstance(model, str | Path):
            tokenizer = load_tokenizer(str(model)) if tokenizer is None else tokenizer
            loaded = TreeDiffForDiffusionLM.from_pretrained(model)
            loaded.to("cuda" if torch.cuda.is_available() else "cpu")
        elif tokenizer is None:
            raise ValueError("A model that is already loaded needs its tokenizer beside it.")
        else:
            loaded = model
        protocol = WindowProtocol.for_model(loaded, tokenizer, sequence_length, stride)
        return evaluate_texts(loaded, tokenizer, predictions, protocol, **settings).to_dict()
