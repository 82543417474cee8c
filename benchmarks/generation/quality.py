"""Quality of generated texts: what an independent judge thinks of them, and how varied they are, by sampler and passes.

python -m benchmarks.generation.quality tree=runs/quickstart/model flat=runs/flat --judge runs/SmolLM2-135M-Instruct

`benchmarks.generation.judge` makes the judge. Texts are generated without a prompt, cut at the first end of text, and
read by the judge as strings. What is said of passes is of a whole text, whose blocks, if a model has some, share them.
Beside them stand windows of real held-out text of the same length, and the same with its words or its tokens in random
order. With `--infill` these windows are given, but for the middle half, which is written. Points that the record has
are not measured again; every point is written when it is finished. The figure is drawn, and the table in
docs/how_to/generation.md made (`benchmarks.report.render`), from the record.
"""

import argparse
import hashlib
import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.generation.figures import FIGURE, RECORD, check_record, draw
from benchmarks.generation.samplers import Sampler, all_samplers
from benchmarks.places import SAMPLE
from modeling_treediff import TreeDiffForDiffusionLM, TreeDiffGenerationOutput
from modeling_treediff.building.budget import count_parameters
from modeling_treediff.evaluation import GenerativePerplexity, measure_texts
from modeling_treediff.files.records import current_commit, write_record
from modeling_treediff.text import pack_windows, read_documents, tokenize_documents, tokenizer_fingerprint

TEXT = SAMPLE / "validation.txt.xz"
KIND = ("schedule", "head", "tree_depth", "max_branching", "vocab_size")  # fields of a config
PASSES = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Generator:
    """A model that writes, its tokenizer, and windows with a gap (texts, length), if it fills these."""

    model: TreeDiffForDiffusionLM
    tokenizer: PreTrainedTokenizerBase
    gaps: torch.Tensor | None = None

    @classmethod
    def load(cls, folder: Path, options: argparse.Namespace) -> "Generator":
        """Load it, the model onto the GPU if there is one; ValueError for gaps and a model that has blocks."""
        model = TreeDiffForDiffusionLM.from_pretrained(folder).to(PartialState().device).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not options.infill:
            return cls(model, tokenizer)
        if model.config.block_size is not None:
            raise ValueError(f"{folder} has blocks, of which a gap is a part: leave it out of --infill.")
        return cls(model, tokenizer, open_middles(real_windows(tokenizer, options), model))

    def write(self, arguments: dict[str, Any], options: argparse.Namespace) -> tuple[list[list[int]], float]:
        """Return the token ids of the texts that `options` ask for, and the forward passes per text on average."""
        source = torch.Generator(self.model.device).manual_seed(options.seed)
        texts: list[list[int]] = []
        passes = 0
        while wanted := min(options.batch_size, options.texts - len(texts)):
            asked: dict[str, Any] = {"max_new_tokens": options.length, "num_return_sequences": wanted}
            if self.gaps is not None:
                asked = {"input_ids": self.gaps[len(texts) : len(texts) + wanted]}
            result = self.model.generate(generator=source, return_dict_in_generate=True, **asked, **arguments)
            assert isinstance(result, TreeDiffGenerationOutput) and result.sequences is not None
            texts += result.sequences.tolist()
            passes += wanted * result.num_forward_passes
        return texts, passes / len(texts)


def main() -> None:
    """Measure what the record lacks, then draw it."""
    options = parse_arguments()
    tokenizer = AutoTokenizer.from_pretrained(options.models[0][1])
    record = read_record(options, tokenizer)
    judge = GenerativePerplexity.from_pretrained(options.judge, PartialState().device)
    if not record["references"]:
        record["references"] = references(judge, tokenizer, options)
        write_record(options.record, record, options.seed)
    for name, folder in options.models:
        generator = Generator.load(folder, options)
        note_model(record, name, generator, folder)
        done = {(point["sampler"], point["num_steps"]) for point in record["points"] if point["model"] == name}
        config = generator.model.config
        blocks = 1 if config.block_size is None else math.ceil(options.length / config.block_size)
        wanted = combinations(config.tree_depth, blocks, options)
        for title, sampler, num_steps in tqdm([some for some in wanted if (some[0], some[2]) not in done], desc=name):
            point = {"model": name, "sampler": title, "num_steps": num_steps}
            point |= {"chooses_passes": sampler.chooses_passes}
            arguments = sampler.arguments(num_steps // blocks)
            record["points"].append(point | measure(generator, arguments, judge, options))
            write_record(options.record, record, options.seed)
    record = json.loads(options.record.read_text(encoding="utf-8"))
    check_record(record)
    draw(record, options.figure)
    print(options.record, options.figure)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=named_folder, metavar="name=folder", help="trained models")
    parser.add_argument("--judge", required=True, help="folder or Hub repository of a causal language model")
    parser.add_argument("--text", type=Path, default=TEXT, help="real, held-out text (default: the sample's)")
    parser.add_argument("--texts", type=int, default=64, help="texts per point (default %(default)s)")
    parser.add_argument("--infill", action="store_true", help="write the middle half of windows of that text alone")
    parser.add_argument("--length", type=int, default=64, help="tokens per text (default %(default)s)")
    parser.add_argument("--passes", type=int, nargs="+", default=PASSES, help="(default %(default)s)")
    parser.add_argument("--samplers", nargs="+", choices=all_samplers(), metavar="NAME", help="default: all")
    parser.add_argument("--batch-size", type=int, default=64, help="texts per forward pass (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default %(default)s)")
    parser.add_argument("--record", type=Path, default=RECORD, help="(default %(default)s)")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="(default %(default)s)")
    return parser.parse_args()


def named_folder(text: str) -> tuple[str, Path]:
    """Read name=folder."""
    name, separator, folder = text.partition("=")
    if not (name and separator and Path(folder).is_dir()):
        raise argparse.ArgumentTypeError(f"expected a name and an existing folder, name=folder, got {text}")
    return name, Path(folder)


def read_record(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the record so far; ValueError if it was measured by another protocol."""
    protocol = {
        "judge": Path(options.judge).name,
        "text": options.text.name,
        "texts": options.texts,
        "length": options.length,
        "seed": options.seed,
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    if options.infill:
        protocol["infill"] = True
    if not options.record.exists():
        return {"protocol": protocol, "models": {}, "references": [], "points": []}
    record = json.loads(options.record.read_text(encoding="utf-8"))
    refuse_other("protocol", {"infill": False} | record["protocol"], {"infill": False} | protocol)
    return {name: record[name] for name in ("protocol", "models", "references", "points")}


def note_model(record: dict[str, Any], name: str, generator: Generator, folder: Path) -> None:
    """Record what a model is; ValueError if the record has points of another one by this name."""
    config = generator.model.config
    facts = {
        "weights_sha256": weights_sha256(folder),
        "parameters": sum(count_parameters(config).values()),
    } | {field: getattr(config, field) for field in KIND}
    if config.block_size is not None:
        facts["block_size"] = config.block_size
    if config.perturbation:
        facts["perturbation"] = config.perturbation
    if tokenizer_fingerprint(generator.tokenizer) != record["protocol"]["tokenizer"]:
        raise ValueError(f"{name} has another tokenizer than the record: its texts have other lengths.")
    refuse_other(f"model {name}", record["models"].setdefault(name, facts), facts)


def weights_sha256(folder: Path) -> str:
    """Return the hash of a model's weights, in one file or several."""
    content = hashlib.sha256()
    for file in sorted(folder.glob("model*.safetensors")):
        content.update(file.read_bytes())
    return content.hexdigest()


def refuse_other(what: str, recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ValueError if points of two kinds would get into one record."""
    for field, value in wanted.items():
        if recorded.get(field) != value:
            raise ValueError(
                f"The record has another {what}: {field} is {recorded.get(field)}, not {value}. Name another --record."
            )


def combinations(depth: int, blocks: int, options: argparse.Namespace) -> list[tuple[str, Sampler, int]]:
    """Return name, sampler and number of passes of every point; a text's passes are shared by its blocks."""
    per_block = list(dict.fromkeys(passes // blocks for passes in options.passes))
    length = math.ceil((options.length // 2 if options.infill else options.length) / blocks)
    return [
        (title, sampler, num_steps * blocks)
        for title, sampler in all_samplers().items()
        if options.samplers is None or title in options.samplers
        for num_steps in sampler.budgets(per_block, depth, length)
    ]


def measure(
    generator: Generator, arguments: dict[str, Any], judge: GenerativePerplexity, options: argparse.Namespace
) -> dict[str, Any]:
    """Generate, judge, and return all figures of a point."""
    start = time.perf_counter()
    texts, passes = generator.write(arguments, options)
    seconds = time.perf_counter() - start
    facts = {
        "settings": arguments,
        "sampling_dtype": arguments.get("sampling_dtype", generator.model.generation_config.sampling_dtype),
        "forward_passes": passes,
        "seconds": seconds,
        "commit": current_commit(),
    }
    return facts | figures(texts, generator.tokenizer, judge)


def figures(texts: list[list[int]], tokenizer: PreTrainedTokenizerBase, judge: GenerativePerplexity) -> dict[str, Any]:
    """Return what the judge and the statistics say of texts given as tokens, up to their first end of text."""
    end = tokenizer.eos_token_id
    cut = [text[: text.index(end)] if end in text else text for text in texts]
    strings = [str(tokenizer.decode(text, clean_up_tokenization_spaces=False)) for text in cut]
    return {"judge": judge.read(strings).to_dict(), "statistics": asdict(measure_texts(cut)), "sample": strings[0]}


def references(
    judge: GenerativePerplexity, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure real text, spread over the whole file, and what a judge must find worse."""
    texts = real_windows(tokenizer, options).tolist()
    shuffle = random.Random(options.seed).shuffle
    words = [str(tokenizer.decode(text, skip_special_tokens=True)).split() for text in texts]
    tokens = [token for text in texts for token in text]
    for some in (*words, tokens):
        shuffle(some)
    kinds = {
        "real text": texts,
        "its words shuffled": [tokenizer(" ".join(some), add_special_tokens=False)["input_ids"] for some in words],
        "its tokens shuffled": [
            tokens[start : start + options.length] for start in range(0, len(tokens), options.length)
        ],
    }
    return [{"name": name} | figures(some, tokenizer, judge) for name, some in kinds.items()]


def real_windows(tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> torch.Tensor:
    """Return windows (texts, length) of real text, spread over the whole file; ValueError if it is too short."""
    windows = pack_windows(tokenize_documents(read_documents(options.text), tokenizer), options.length)
    if len(windows) < options.texts:
        raise ValueError(f"{options.text} has {len(windows)} windows of {options.length} tokens, not {options.texts}.")
    return torch.as_tensor(windows[:: len(windows) // options.texts][: options.texts])


def open_middles(windows_BT: torch.Tensor, model: TreeDiffForDiffusionLM) -> torch.Tensor:
    """Return windows (B, T) whose middle half is open."""
    length, gaps_BT = windows_BT.shape[1], windows_BT.to(model.device, torch.long, copy=True)
    gaps_BT[:, length // 4 : length // 4 + length // 2] = model.config.mask_token_id
    return gaps_BT


if __name__ == "__main__":
    main()
