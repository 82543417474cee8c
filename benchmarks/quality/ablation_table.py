"""The records of `benchmarks.quality.ablations` as tables."""

import math
from statistics import mean
from typing import Any

from benchmarks.markdown import table
from benchmarks.places import RESULTS
from benchmarks.quality.ablations import RECORDS, SEEDS
from benchmarks.quality.packed_data import VALIDATION
from benchmarks.quality.variants import BASE, NODE, ORDERS, SOURCES, TREE, VARIANTS
from benchmarks.record_schema import Schema, check_schema, read_record

ESTIMATE: dict[str, Schema] = {"nats": float, "standard_error": float, "interval": [float]}
RUN: dict[str, Schema] = {
    **{"variant": str, "group": str, "title": str, "seed": int, "num_hidden_layers": int, "parameters": int},
    **{"nats": float, "interval": [float], "difference": ESTIMATE, "level_losses": [float], "branching": int},
}
SCHEMA: dict[str, Schema] = {
    "protocol": {"steps": int, "batch_size": int, "sequence_length": int},
    "learning_rate": float,
    "trained_with": {"device": str, "commit": str, "versions": {"torch": str}},
    "runs": [RUN],
}
FURTHER: Schema = ESTIMATE | {"to_mdlm": ESTIMATE}
CANDIDATES_SCHEMA: Schema = SCHEMA | {"runs": [RUN | {"to_mdlm": ESTIMATE, "further": {VALIDATION: FURTHER}}]}
EMBEDDINGS_SCHEMA: Schema = SCHEMA | {"runs": [RUN | {"further": {VALIDATION: ESTIMATE | {"difference": ESTIMATE}}}]}
SHARED: Schema = {"share": float, "texts": {VALIDATION: FURTHER}}
SHARES_SCHEMA: dict[str, Schema] = SCHEMA | {"runs": [{"variant": str, "title": str, "seed": int, "shares": [SHARED]}]}
# Of the other parts SCHEMA.
SCHEMAS = {
    "candidates": CANDIDATES_SCHEMA,
    "embeddings": EMBEDDINGS_SCHEMA,
    "embeddings-long": EMBEDDINGS_SCHEMA,
    "blocks": EMBEDDINGS_SCHEMA,
    "blocks-causes": EMBEDDINGS_SCHEMA,
    "perturbed": EMBEDDINGS_SCHEMA,
    "unseen": SHARES_SCHEMA,
    "shares": SHARES_SCHEMA,
}
UNCHANGED = (BASE, "mdlm")  # what differences are to
COMMON = ("layers", "seed", "nats/token", "by level")  # columns

Record = dict[str, Any]


def read_part(part: str) -> Record:
    """Return the record of a part of the ablations; ValueError if it is missing or lacks anything."""
    record = read_record(RESULTS / f"{RECORDS[part]}.json", SCHEMAS.get(part, SCHEMA))
    if part == "candidates":
        for index, run in enumerate(record["runs"]):
            for title in record["runs"][0]["further"]:
                check_schema(run["further"].get(title), FURTHER, f"{RECORDS[part]}.runs[{index}].further.{title}")
    return record


def trees_table(record: Record) -> str:
    """Return a row for each source of clusters, a column for each order of siblings; differences to the base."""
    found = {run["variant"]: run for run in record["runs"] if run["seed"] == SEEDS[0]}
    names = {(VARIANTS[name].source, VARIANTS[name].order): name for name in found if name in VARIANTS}
    if missing := [f"{source}, {order}" for source in SOURCES for order in ORDERS if (source, order) not in names]:
        raise ValueError(f"{RECORDS['trees']} lacks trees: {'; '.join(missing)}.")
    rows = [
        [title, *(_with_difference(found[names[source, order]]) for order in ORDERS)]
        for source, title in SOURCES.items()
    ]
    header = ("clusters", *(f"siblings {title}" for title in ORDERS.values()))
    return f"{table(header, rows)}\n{_facts(record)}"


def ablation_table(record: Record) -> str:
    """Return a row for each variant, the best of a group first; differences to the base, or MDLM, of the same seed.

    Trees have a table of their own.
    """
    shown = [run for run in record["runs"] if run["group"] != TREE]
    groups = list(dict.fromkeys(run["group"] for run in shown))
    ordered = sorted(shown, key=lambda run: (groups.index(run["group"]), run["nats"]))
    header = ("question", "variant", *COMMON, "difference from the base (variants of MDLM: from MDLM)")
    rows = [[run["group"], run["title"], *_common(run), _difference(run)] for run in ordered]
    return f"{table(header, rows)}\n{_facts(record)}"


def candidates_table(record: Record) -> str:
    """Return two tables with a row for each variant and seed, the best variant first.

    The first shows the windows by which the default is chosen, the second the perplexity on others, divided by MDLM's.
    """
    runs = [run for variant in ranked_candidates(record) for run in candidate_runs(record, variant)]
    header = ("variant (question)", *COMMON, "difference from the base", "from the same with `sequential`")
    chosen = table(header, [[_name(run), *_common(run), _difference(run), _schedule_alone(run)] for run in runs])
    titles = list(runs[0]["further"])
    rows = [[_name(run), f"{run['seed']}", *(_ratio(run, title) for title in titles)] for run in runs]
    further = table(("perplexity / MDLM", "seed", *titles), rows)
    return f"{chosen}\n{further}\n{_facts(record)}"


def shares_table(record: Record) -> str:
    """Return a row for each model, seed and share: nats per token of each text, and the perplexity over MDLM's."""
    texts = list(record["runs"][0]["shares"][0]["texts"])
    rows = [
        [run["title"], f"{run['seed']}", f"{row['share']:g}", *(_with_ratio(run, row["texts"][text]) for text in texts)]
        for run in record["runs"]
        for row in run["shares"]
    ]
    return (
        f"{table(('model', 'seed', 'share', *texts), rows)}\n"
        "Nats per token; perplexity divided by MDLM's of the same shares in training and measuring, with its 95 % "
        f"interval over blocks of the text, paired. {_trained(record)} {_made(record)}\n"
    )


def times_table(record: Record) -> str:
    """Return a row for each variant of the training times and seed, with differences to the default."""
    rows = []
    for run in sorted(record["runs"], key=lambda run: list(VARIANTS).index(run["variant"])):
        (word,) = run["further"].values()
        differences = ["–" if run["variant"] == NODE else _spread(one["difference"], "+") for one in (run, word)]
        title = "from 0.1 of a window, the default" if run["variant"] == NODE else run["title"]
        rows.append([title, *_common(run)[1:], differences[0], _spread(word, ""), differences[1]])
    header = (
        "training times",
        *COMMON[1:],
        "difference",
        *(f"{title}: nats" for title in run["further"]),
        "difference",
    )
    return f"{table(header, rows)}\n{_facts(record)}"


def embeddings_table(record: Record) -> str:
    """Return a row for each input embedding, size and seed: nats of each text, and the difference from without it.

    For models that have none, the difference is that from the default, of the same seed.
    """
    texts = list(record["runs"][0]["further"])
    rows = []
    for run in record["runs"]:
        unchanged = run["variant"] in (NODE, "mdlm")
        title = embedding_title(run)
        found = [run, *(run["further"][text] for text in texts)]
        cells = [f"{one['nats']:.3f}" + ("" if unchanged else f"; {_spread(one['difference'], '+')}") for one in found]
        size = [f"{run['num_hidden_layers']}", f"{run['parameters'] / 1e6:.2f}M", f"{run['seed']}"]
        rows.append([title, *size, *cells])
    header = ("model, input embedding", "layers", "parameters", "seed", "selection", *texts)
    return f"{table(header, rows)}\n{_facts(record)}"


def changed_table(record: Record) -> str:
    """Return a row for each size of blocks or rate of perturbation, and seed: nats; perplexity over that without it.

    What changes a model with blocks of 4 also has its perplexity over that model's.
    """
    texts = list(record["runs"][0]["further"])
    titles = {NODE: "tree", "mdlm": "flat (MDLM)"}
    rows, of_blocks = [], any("to_blocks" in run for run in record["runs"])
    for run in record["runs"]:
        held_out = run["further"][VALIDATION]
        row = [titles.get(run["variant"], str(run["title"])), f"{run['seed']}", _spread(held_out, "")]
        for text in texts:
            row.append("1" if run["variant"] in titles else _perplexities(run["further"][text]["difference"]))
        if of_blocks:
            row.append(_perplexities(held_out["to_blocks"]) if "to_blocks" in held_out else "")
        rows.append(row)
    header = ("model", "seed", "held out, nats/token", *(f"{text}: perplexity / without" for text in texts))
    header += ("held out: perplexity / tree, S = 4",) * of_blocks
    return f"{table(header, rows)}\n{_facts(record)}"


def embedding_title(run: Record) -> str:
    """Return the name of a model among those that differ in their input embedding."""
    names = {NODE: "tree, V x d vectors", "mdlm": "flat, V x d vectors", BASE: "TDLM (child head), V x d vectors"}
    return names.get(run["variant"], str(run["title"]))


def ranked_candidates(record: Record) -> list[str]:
    """Return the variants, the best mean over seeds first."""
    variants = dict.fromkeys(run["variant"] for run in record["runs"])
    return sorted(variants, key=lambda name: mean(run["nats"] for run in candidate_runs(record, name)))


def candidate_runs(record: Record, variant: str) -> list[Record]:
    """Return the runs of a variant, one for each seed."""
    return sorted((run for run in record["runs"] if run["variant"] == variant), key=lambda run: run["seed"])


def _name(run: Record) -> str:
    return f"{run['title']} ({run['group']})"


def _schedule_alone(run: Record) -> str:
    return _spread(run["to_sequential"], "+") if "to_sequential" in run else ""


def _with_difference(run: Record) -> str:
    return f"{run['nats']:.3f}" + ("" if run["variant"] in UNCHANGED else f" ({_difference(run)})")


def _common(run: Record) -> list[str]:
    levels = " + ".join(f"{share:.2f}" for share in run["level_losses"])
    return [f"{run['num_hidden_layers']}", f"{run['seed']}", _spread(run, ""), levels]


def _difference(run: Record) -> str:
    return "–" if run["variant"] in UNCHANGED else _spread(run["difference"], "+")


def _ratio(run: Record, title: str) -> str:
    return "1" if run["variant"] == "mdlm" else _perplexities(run["further"][title]["to_mdlm"])


def _perplexities(difference: Record) -> str:
    low, high = (math.exp(end) for end in difference["interval"])
    return f"{math.exp(difference['nats']):.3f} ({low:.3f} to {high:.3f})"


def _with_ratio(run: Record, figures: Record) -> str:
    low, high = (math.exp(end) for end in figures["to_mdlm"]["interval"])
    ratio = f"; {math.exp(figures['to_mdlm']['nats']):.3f} ({low:.3f} to {high:.3f})"
    return f"{figures['nats']:.3f}" + ("" if run["variant"].startswith("mdlm") else ratio)


def _spread(estimate: Record, sign: str) -> str:
    low, high = estimate["interval"]
    return f"{estimate['nats']:{sign}.3f} ± {(high - low) / 2:.3f}"


def _facts(record: Record) -> str:
    gap = _seed_gap(record)
    seeds = f": two of one variant differ by up to {gap:.3f}" if gap else ", of which there is one"
    return (
        f"{_trained(record)} ± is half of a 95 % interval over blocks of the text, of differences paired; it says "
        f"nothing of other seeds{seeds}. {_made(record)}\n"
    )


def seen_tokens(record: Record) -> str:
    """Return how many tokens each run of a part has seen."""
    protocol = record["protocol"]
    return f"{protocol['steps'] * protocol['batch_size'] * protocol['sequence_length'] / 1e6:.2f}M tokens"


def _trained(record: Record) -> str:
    protocol = record["protocol"]
    return (
        f"{seen_tokens(record)}, {protocol['steps']} steps of {protocol['batch_size']} windows of "
        f"{protocol['sequence_length']} tokens, learning rate {record['learning_rate']:g}."
    )


def _made(record: Record) -> str:
    made = record["trained_with"]
    return f"{made['device']}, torch {made['versions']['torch']}, commit {made['commit']}."


def _seed_gap(record: Record) -> float:
    nats: dict[Any, list[float]] = {}
    for run in record["runs"]:
        nats.setdefault((run["variant"], run.get("title")), []).append(run["nats"])
    return max(max(some) - min(some) for some in nats.values())
