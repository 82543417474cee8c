"""Gaps that must become words of given kinds: a tree model, which takes clusters as input, beside a flat one.

python -m benchmarks.generation.kinds --tree TREE_MODEL --flat FLAT_MODEL   # benchmarks/results/kinds.json

In windows of held-out text, some places are opened, and every word there must be one of the cluster that the text's own
token is in. The tree model gets the clusters. The flat model, which cannot take them, gets masks, so that its share is
that of chance and context; and a second time its choice at each gap is restricted to the cluster's tokens, which then
are of the kind, but the network does not know the kinds of the other gaps. Both models must have seen the same text as
often; the clusters are those of the tree model's tree, and the sampler is the same.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.markdown import table
from benchmarks.places import RESULTS, SAMPLE
from benchmarks.record_schema import Schema, read_record
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.drafts_treediff import Draft, TokenWeights
from modeling_treediff.files.records import write_record
from modeling_treediff.text import decode_nodes, pack_windows, read_documents, tokenize_documents

RECORD = RESULTS / "kinds.json"
TEXT = SAMPLE / "validation.txt.xz"
TITLES = {
    "tree": "tree, given the clusters",
    "flat": "flat (MDLM), given masks",
    "flat_restricted": "flat, restricted to the cluster at each gap",
}
MODEL: Schema = {
    **dict.fromkeys(("layers", "parameters", "passes"), int),
    **dict.fromkeys(("of_the_kind", "texts_of_the_kinds", "own_word"), float),
}
SCHEMA: Schema = {
    "commit": str,
    "text": str,
    **dict.fromkeys(("windows", "length", "gaps", "clusters"), int),
    "models": dict.fromkeys(TITLES, MODEL),
    "examples": [{"text": str, "own_word": str, "words": dict.fromkeys(TITLES, str)}],
}
EXAMPLES, AROUND = 6, 5  # windows shown, and tokens on either side of a gap


def main() -> None:
    """Measure both models and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, required=True, help="folder of a tree model")
    parser.add_argument("--flat", type=Path, required=True, help="folder of a flat model with its tokenizer")
    parser.add_argument("--windows", type=int, default=256, help="texts (default %(default)s)")
    parser.add_argument("--gaps", type=int, default=4, help="open positions of each (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--output", type=Path, default=RECORD, help="(default %(default)s)")
    options = parser.parse_args()
    models = {name: TreeDiffForDiffusionLM.from_pretrained(getattr(options, name)).eval() for name in ("tree", "flat")}
    tree = models["tree"].tree
    if models["flat"].tree.tree_depth != 1 or tree.tree_depth == 1:
        raise SystemExit("--flat must be a flat model and --tree one of a deeper tree.")
    length = min(model.config.max_position_embeddings for model in models.values())
    tokenizer = AutoTokenizer.from_pretrained(options.tree)
    documents = tokenize_documents(read_documents(TEXT), tokenizer)
    windows = torch.from_numpy(pack_windows(documents, length)[: options.windows].astype("int64"))
    generator = torch.Generator().manual_seed(options.seed)
    places = torch.rand(windows.shape, generator=generator).argsort(dim=1)[:, : options.gaps]
    clusters = tree.parent[: tree.vocab_size]
    facts = {"text": TEXT.name, "windows": len(windows), "length": length, "gaps": options.gaps}
    found, filled = {}, {}
    for name in TITLES:
        model = models[name.removesuffix("_restricted")]
        given = clusters[windows] if name == "tree" else torch.full_like(windows, model.config.mask_token_id)
        start = windows.scatter(1, places, given.gather(1, places))
        constraints = OfKinds(clusters, windows) if name == "flat_restricted" else None
        filled[name], passes = written(model, start, places, options.seed, constraints)
        found[name] = shares(model, filled[name], windows, clusters, places) | {"passes": passes}
    examples = []
    for index, place in enumerate(places[:EXAMPLES, 0].tolist()):
        row = windows[index].scatter(0, places[index], clusters[windows[index, places[index]]])
        text = decode_nodes(row[max(0, place - AROUND) : place + AROUND + 1], tree, tokenizer)
        words = {name: tokenizer.decode(tokens[index, 0]) for name, tokens in filled.items()}
        examples.append({"text": text, "own_word": tokenizer.decode(windows[index, place]), "words": words})
    facts |= {"clusters": len(clusters.unique()), "models": found, "examples": examples}
    write_record(options.output, facts, options.seed)
    print(kinds_table(read_record(options.output, SCHEMA)))


class OfKinds(TokenWeights):
    """Lets a flat model write, at each place, the tokens of one cluster alone."""

    def __init__(self, clusters: torch.Tensor, windows: torch.Tensor) -> None:
        """Take the cluster of each token (V,), and tokens (B, T) of the wanted ones."""
        self.clusters, self.wanted_BT = clusters, clusters[windows]

    def log_weights(self, draft: Draft, waiting: torch.Tensor, node_ids: torch.Tensor) -> torch.Tensor:
        """Return (n, V), in the order of the tree's slots: 0 for the tokens of the wanted clusters, else -inf."""
        is_of_kind_nV = self.clusters[self.tree.children[0]] == self.wanted_BT.gather(1, draft.place)[waiting][:, None]
        return torch.zeros(is_of_kind_nV.shape, dtype=self.dtype).masked_fill(~is_of_kind_nV, -torch.inf)


def written(
    model: TreeDiffForDiffusionLM,
    start: torch.Tensor,
    places: torch.Tensor,
    seed: int,
    constraints: TokenWeights | None,
) -> tuple[torch.Tensor, int]:
    """Return what a model writes at the places (B, gaps) of nodes (B, T), and the forward passes that it takes."""
    how: Any = {"unmasking": "confidence", "constraints": constraints, "return_dict_in_generate": True}
    result: Any = model.generate(start, generator=torch.Generator().manual_seed(seed), **how)
    return result.sequences.gather(1, places), int(result.num_forward_passes)


def shares(
    model: TreeDiffForDiffusionLM,
    tokens: torch.Tensor,
    windows: torch.Tensor,
    clusters: torch.Tensor,
    places: torch.Tensor,
) -> dict[str, Any]:
    """Return which share of tokens (B, gaps) is of the wanted clusters, and the text's own word.

    Args:
        model: that wrote them.
        tokens: (B, gaps) written.
        windows: (B, T) the texts' own tokens.
        clusters: (V,) of every token.
        places: (B, gaps) where they stand.

    """
    own = windows.gather(1, places)
    right = clusters[tokens] == clusters[own]
    return {
        "layers": model.config.num_hidden_layers,
        "parameters": model.num_parameters(),
        "of_the_kind": float(right.float().mean()),
        "texts_of_the_kinds": float(right.all(dim=1).float().mean()),
        "own_word": float((tokens == own).float().mean()),
    }


def kinds_table(record: dict[str, Any]) -> str:
    """Return both models side by side, in figures and with the first gaps."""
    rows = []
    for name, title in TITLES.items():
        figures = record["models"][name]
        shares = [figures[key] for key in ("of_the_kind", "texts_of_the_kinds", "own_word")]
        rows.append([title, f"{figures['layers']}", *(f"{share:.1%}" for share in shares)])
    header = ("model", "layers", "words of their kind", "texts with all words of their kinds", "the text's own word")
    figures = table(header, rows)
    columns = ("text, its gaps as clusters", "own word", "tree", "flat", "flat, restricted")
    rows = [
        [f"`{one['text']}`", f"`{one['own_word']}`", *(f"`{one['words'][name]}`" for name in TITLES)]
        for one in record["examples"]
    ]
    return figures + (
        f"\n{record['windows']} windows of {record['length']} tokens of held-out text, {record['gaps']} gaps in each, "
        f"{record['clusters']} clusters; {record['models']['tree']['parameters'] / 1e6:.1f}M parameters each, trained "
        f"alike; one text drawn for each window, surest place first; commit {record['commit']}. A gap of each of the "
        f"first windows, drawn at random, with the words around it:\n\n{table(columns, rows)}"
    )


if __name__ == "__main__":
    main()
