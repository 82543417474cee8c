"""The reference checkpoint in examples/: complete, of this package's code, and it measures and writes as it did."""

import json
from pathlib import Path

import pytest
import torch
from helpers.processes import REPOSITORY, run_python
from safetensors.torch import load_file
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_treediff.hub import weights_sha256

FOLDER = REPOSITORY / "examples" / "classics-7m"
ENTRY = REPOSITORY / "modeling_treediff" / "modeling_treediff.py"
MOST_BYTES = 24_000_000

# What it gives; another training changes these lines.
SENTENCE, BOUND = "In the beginning God created the heavens and the earth.", 4.4427
GAPS, FILLED = (
    "The{gap} spoke to his{gap}, and they{gap} to the{gap}.",
    "The king spoke to his father, and they said to the king.",
)

USE = """
import json, sys
import torch
from transformers import AutoModel, AutoTokenizer

folder, sentence, gaps = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
generator = torch.Generator().manual_seed(0)
tokens = tokenizer(sentence, return_tensors="pt")["input_ids"]
bound = model.nelbo(tokens, num_samples=256, generator=generator)
text = tokenizer(gaps.format(gap=tokenizer.mask_token), return_tensors="pt")["input_ids"]
filled = model.generate(text, unmasking="confidence", temperature=1e-3, generator=generator)
print(json.dumps({
    "package": "modeling_treediff" in sys.modules,
    "bound": bound.value,
    "error": bound.standard_error,
    "filled": tokenizer.decode(filled[0]),
}))
"""


def test_it_is_a_complete_small_checkpoint_of_this_packages_code():
    for file in map(Path, (ENTRY, *get_relative_import_files(str(ENTRY)))):
        saved = FOLDER / file.name
        assert saved.read_bytes() == file.read_bytes(), f"cp modeling_treediff/{file.name} {saved.parent}"
    files = [file for file in FOLDER.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    assert {"config.json", "tokenizer.json", "vocabulary_tree.safetensors", "curves.png"} <= {f.name for f in files}
    weights = load_file(FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.bfloat16}
    record = json.loads((FOLDER / "result.json").read_text(encoding="utf-8"))
    assert record["weights_sha256"] == weights_sha256(FOLDER)
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "language: en" in card and all(sample["text"].split()[0] in card for sample in record["samples"])


def test_it_measures_and_writes_as_it_did_in_a_process_without_the_package():
    ran = run_python("-c", USE, FOLDER, SENTENCE, GAPS)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert not found["package"]
    assert found["bound"] == pytest.approx(BOUND, abs=1e-3) and found["error"] < 0.2
    assert found["filled"] == FILLED
