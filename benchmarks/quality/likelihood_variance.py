"""Variance of three estimators of the likelihood bound at equal forward passes, and what level counts gain.

python -m benchmarks.quality.likelihood_variance runs/quickstart/model tree_artifacts/sotu-8k/validation.txt.xz

Every estimator looks at the same windows, one corruption per window and pass, and is repeated with other seeds:
- plain: times drawn independently and uniformly, weights f_k / pi_{k-1};
- stratified: times drawn with low discrepancy over the batch, as in training, the same weights;
- counts: `model.nelbo`, levels and times stratified, exact numbers of refined positions, no unbounded weight.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.places import RESULTS
from modeling_treediff import TreeDiffForDiffusionLM, corrupt
from modeling_treediff.files.records import write_record
from modeling_treediff.text import pack_windows, read_documents, tokenize_documents

RESULT = RESULTS / "likelihood_variance.json"
ESTIMATORS = ("plain", "stratified", "counts")


def main() -> None:
    """Repeat all estimators and record mean, standard deviation and the ratio of variances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a trained model")
    parser.add_argument("text", type=Path, help="held-out text")
    parser.add_argument("--windows", type=int, default=64, help="(default %(default)s)")
    parser.add_argument("--samples", type=int, default=2, help="passes per window (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=40, help="(default %(default)s)")
    args = parser.parse_args()
    model = TreeDiffForDiffusionLM.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    length = model.config.max_position_embeddings
    token_ids = pack_windows(tokenize_documents(read_documents(args.text), tokenizer), length)[: args.windows]
    windows = torch.from_numpy(token_ids.astype("int64"))
    values = {
        name: [estimate(name, model, windows, args.samples, seed) for seed in tqdm(range(args.repeats), desc=name)]
        for name in ESTIMATORS
    }
    stated = model.nelbo(windows, num_samples=args.samples, generator=torch.Generator().manual_seed(0))
    facts = {
        "model": args.model.name,
        "schedule": model.config.schedule,
        "tree_depth": model.config.tree_depth,
        "windows": len(windows),
        "sequence_length": length,
        "samples": args.samples,
        "repeats": args.repeats,
        "stated_standard_error": stated.standard_error,
        "estimators": {name: summary(some, values["plain"]) for name, some in values.items()},
    }
    write_record(RESULT, facts, seed=0)
    print(json.dumps(facts, indent=2))


def summary(values: list[float], plain: list[float]) -> dict[str, float]:
    """Return mean, standard deviation and how many times less variance than the plain estimator."""
    spread, reference = (float(torch.tensor(some, dtype=torch.float64).std()) for some in (values, plain))
    return {
        "mean": math.fsum(values) / len(values),
        "standard_deviation": spread,
        "variance_ratio": (reference / spread) ** 2,
    }


@torch.no_grad()
def estimate(name: str, model: TreeDiffForDiffusionLM, windows: torch.Tensor, samples: int, seed: int) -> float:
    """Estimate the bound on all windows, nats per token, by one estimator."""
    generator = torch.Generator().manual_seed(seed)
    if name == "counts":
        return model.nelbo(windows, num_samples=samples, generator=generator).value
    repeated = windows.repeat(samples, 1)
    times = model.schedule.sample_times(len(repeated), generator)
    if name == "plain":
        times = model.schedule.place_times(torch.rand(len(repeated), generator=generator))
    batch = corrupt(repeated, model.tree, model.schedule, times, generator)
    parts = zip(*(part.split(32) for part in (batch.input_ids, batch.labels, batch.timesteps)), strict=True)
    nats = [model(ids, labels=labels, timesteps=some).nelbo.sum() for ids, labels, some in parts]
    return float(torch.stack(nats).double().sum()) / repeated.numel()


if __name__ == "__main__":
    main()
