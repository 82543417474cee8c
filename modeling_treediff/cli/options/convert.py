"""Start a tree model from a BERT-, GPT-2- or LLaMA-style checkpoint, to train it on with `treediff train --from`.

Without --tree, the checkpoint's own embeddings say which tokens are alike. A tree that has seen a text, too, is better:
`treediff build-tree --tokenizer CHECKPOINT --embeddings CHECKPOINT --text corpus.txt --output my_tree`.

The new model has the `path` embedding, which holds the checkpoint's exactly, and a head of its own, unless
--node-embedding says otherwise.
"""

from dataclasses import dataclass
from pathlib import Path

from .fields import REQUIRED, operand, option, trust_option
from .model import Process

EXAMPLES = """
  treediff convert openai-community/gpt2 --output my_model
  treediff convert openai-community/gpt2 --tree my_tree --output my_model
  treediff train --text corpus.txt --from my_model --sequence-length 128 --output my_trained_model
"""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The checkpoint to convert, the tree, and the output."""

    checkpoint: str = operand("folder or Hub id, with weights in safetensors and a tokenizer")
    output: Path = option(REQUIRED, "folder for the model")
    tree: str | None = option(None, "tree folder or Hub repository, or `flat` (MDLM) (default: build one)")
    layers: int | None = option(None, "number of layers to keep, the first ones (default: all)")
    seed: int = option(0, "seed of the parameters that are initialised at random")
    trust_remote_code: bool = trust_option()


OPTIONS = (Conversion, Process)
