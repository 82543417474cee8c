"""Where a tree errs: sums against the bound, a flat model against enumeration, perfect and constructed models."""

import itertools
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.bayes_optimal import TREES, random_joint
from helpers.models import tiny_model
from helpers.processes import REPOSITORY, SAMPLE, load_example, run_python
from helpers.vocabularies import byte_level, tokenizer_of

from benchmarks.quality.error_tables import check_errors, errors_section
from modeling_treediff import VocabularyTree
from modeling_treediff.evaluation import WindowProtocol, analyze_errors, check_same_tokens, cut_windows
from modeling_treediff.evaluation.error_analysis import ComparedText, compare_tokens, confusions, right_choices
from modeling_treediff.evaluation.error_tables import error_markdown, summary
from modeling_treediff.evaluation.level_terms import measure_levels
from modeling_treediff.evaluation.perplexity import _pool, estimate_windows
from modeling_treediff.evaluation.token_groups import WORD_PLACES, frequency_deciles, group_tokens
from modeling_treediff.text import read_documents

TREE = VocabularyTree.random(30, 4, 3, seed=0)
FLAT = VocabularyTree.flat(30)
SETTINGS = {"num_samples": 4, "batch_size": 5}


def some_windows(window: int = 8, tokens: int = 45):
    token_ids = torch.randint(0, 30, (tokens,), generator=torch.Generator().manual_seed(0)).numpy()
    return token_ids, cut_windows(token_ids, WindowProtocol(window, window // 2))


# ---- terms ----


@pytest.mark.parametrize(
    ("tree", "fields"),
    [
        (TREE, {}),
        (TREE, {"head": "node", "schedule": "binomial"}),
        (TREE, {"head": "leaf", "schedule": "poisson"}),
        (FLAT, {}),
        (FLAT, {"head": "node"}),
        (FLAT, {"head": "leaf"}),
    ],
)
def test_terms_of_the_levels_add_up_to_the_bound(tree, fields):
    """Of the same corruptions; a model of the tree has the level's losses as its terms."""
    model = tiny_model(tree, **fields).double()
    token_ids, windows = some_windows()
    value, _, levels = _pool(estimate_windows(model, windows, SETTINGS, seed=3, progress=False))
    terms = measure_levels(model, TREE, windows, **SETTINGS, seed=3)
    assert terms.nats.shape == (len(token_ids), 3)
    assert terms.nats.sum() / len(token_ids) == pytest.approx(value, rel=1e-12)
    if tree is TREE:
        assert terms.nats.mean(axis=0) == pytest.approx(levels, rel=1e-12)
    for level in (1, 2, 3):
        chosen = terms.looks.level == level
        assert terms.looks.weight[chosen].sum() == pytest.approx(len(token_ids), rel=1e-12)
        nats = -terms.looks.weight[chosen] @ np.log(terms.looks.probability[chosen])
        assert nats == pytest.approx(terms.nats[:, level - 1].sum(), rel=1e-9)


def test_a_flat_model_is_read_as_enumeration_of_the_leaves_below_each_node_says():
    tree = VocabularyTree.random(7, 3, 3, seed=2)
    model = tiny_model(VocabularyTree.flat(7), max_position_embeddings=2).double()
    row = np.array([3, 5])
    windows = cut_windows(row, WindowProtocol(2, 2))
    looks = measure_levels(model, tree, windows, num_samples=40).looks
    below = {node: [v for v in range(7) if node in tree.ancestors[v]] for node in range(tree.num_nodes)}
    known = set()
    for nodes in [(7, 7), (7, 5), (3, 7)]:
        with torch.no_grad():
            p_TV = model(torch.tensor([nodes])).logits[0].softmax(dim=-1)[:, model.tree.child_slot[:7]]
        for place, level in itertools.product((0, 1), (1, 2, 3)):
            if nodes[place] == 7:
                p = {node: sum(float(p_TV[place, v]) for v in below[node]) for node in below}
                parent, child = (int(tree.ancestors[row[place], depth]) for depth in (level - 1, level))
                siblings = [node for node in tree.children[parent - 7].tolist() if node >= 0]
                best = max(siblings, key=lambda node, p=p: p[node])
                known.add((level, child, best, round(p[child] / p[parent], 9)))
    found = zip(looks.level, looks.child, looks.best, looks.probability.round(9), strict=True)
    assert {tuple(one.item() for one in look) for look in found} == known


def test_perfect_models_have_the_entropy_and_shift_it_between_levels():
    """8 estimates, 4 standard errors. H(X) for both; level 1: H(clusters) with the tree, less read off the flat one."""
    tree, joint = TREES["uneven"], random_joint(5, 5)
    texts = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    chance_O = joint.flatten()
    cluster_O2 = tree.ancestors[texts, 1]
    clusters = {tuple(pair): 0.0 for pair in cluster_O2.tolist()}
    for pair, chance in zip(cluster_O2.tolist(), chance_O.tolist(), strict=True):
        clusters[tuple(pair)] += chance
    entropy = float(-(chance_O * chance_O.log()).sum())
    of_clusters = -sum(chance * math.log(chance) for chance in clusters.values())
    levels = {}
    for name, its_tree in (("tree", tree), ("flat", TREES["flat"])):
        model = perfect(its_tree, joint)
        windows = cut_windows(texts.flatten().numpy(), WindowProtocol(2, 2))
        runs = [
            measure_levels(model, tree, windows, num_samples=128, batch_size=3200, seed=seed).nats for seed in range(8)
        ]
        levels[name] = np.array([chance_O.repeat_interleave(2).numpy() @ run for run in runs])
        assert near(levels[name].sum(axis=1), entropy)
    assert near(levels["tree"][:, 0], of_clusters)
    assert near(levels["tree"][:, 1], entropy - of_clusters)
    lower = levels["tree"][:, 0].mean() - levels["flat"][:, 0].mean()
    assert lower > 0.01 and lower > 4 * levels["flat"][:, 0].std() / 8**0.5


def near(values: np.ndarray, truth: float) -> bool:
    return abs(values.mean() - truth) < 4 * values.std(ddof=1) / len(values) ** 0.5 + 1e-9


def perfect(tree, joint):
    """A model that knows the joint distribution: hidden states are log-posteriors of tokens, its leaf head copies."""
    model = tiny_model(tree, head="leaf", max_position_embeddings=2).double()
    texts_O2 = torch.cartesian_prod(torch.arange(5), torch.arange(5))

    def posterior(node_ids, *masks):
        possible_B2V = tree.ancestors.T[tree.depth[node_ids]] == node_ids[..., None]
        weight_BO = joint.flatten() * possible_B2V[:, 0, texts_O2[:, 0]] * possible_B2V[:, 1, texts_O2[:, 1]]
        token_B2V = torch.stack([weight_BO @ torch.eye(5, dtype=torch.float64)[texts_O2[:, i]] for i in (0, 1)], dim=1)
        return SimpleNamespace(last_hidden_state=token_B2V.clamp(min=1e-30).log())

    model.model.forward = posterior
    model.head.tokens = torch.nn.Linear(5, 5).double()
    torch.nn.init.zeros_(model.head.tokens.bias)
    torch.nn.init.eye_(model.head.tokens.weight)
    return model


# ---- comparison ----


def constant(tree, *level_probabilities):
    """A model whose children have the same probabilities everywhere."""
    model = tiny_model(tree, head="child", max_position_embeddings=1).double()
    for level, probabilities in zip(model.head.levels, level_probabilities, strict=True):
        torch.nn.init.zeros_(level.weight)
        level.bias.data = torch.tensor(probabilities, dtype=torch.float64).log()
    return model


def test_known_confusions_and_losses_are_found():
    """Windows of one token leave nothing to chance: clusters of 0.6, 0.3 and 0.1, so all are taken for the first."""
    tree = VocabularyTree.from_paths([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]], 3)
    row = np.array([0, 1, 1, 2, 2, 2, 3, 4, 5, 5])
    windows = cut_windows(row, WindowProtocol(1, 1))
    model = constant(tree, [0.6, 0.3, 0.1], [0.5, 0.5, 1e-9])
    flat = constant(VocabularyTree.flat(6), [0.1, 0.1, 0.1, 0.1, 0.3, 0.3])
    terms = [measure_levels(one, tree, windows, num_samples=2) for one in (model, flat)]
    text = ComparedText(tree, row, np.arange(10), *terms)
    first, second, third = (int(tree.ancestors[token, 1]) for token in (0, 2, 4))
    found = {(one["node"], one["taken_for"]): one for one in confusions(text)}
    assert found.keys() == {(second, first), (third, first)}
    for node, tokens, probability in ((second, 4, 0.3), (third, 3, 0.1)):
        one = found[(node, first)]
        assert one["tokens"] == pytest.approx(tokens) and one["share"] == pytest.approx(1)
        assert one["probability"] == pytest.approx(probability) and one["reference_share"] == 0
    right = right_choices(text, 1)
    assert right["model"]["value"] == pytest.approx(0.3) and right["reference"]["value"] == pytest.approx(0.3)
    facts = compare_tokens(text, row >= 4)
    assert facts["model"]["levels"][0]["value"] == pytest.approx(-math.log(0.1))
    assert facts["reference"]["levels"][0]["value"] == pytest.approx(-math.log(0.6))
    assert facts["difference"]["levels"][0]["value"] == pytest.approx(math.log(6))
    assert facts["difference"]["levels"][1]["value"] == pytest.approx(0, abs=1e-6)


def test_errors_of_differences_are_those_of_the_jackknife():
    """Leaving out one window at a time, an independent estimate to second order: within 5 %."""
    random = np.random.default_rng(0)
    windows = random.integers(0, 60, 900)
    member = random.random(900) < 0.3 + 0.3 * (windows < 20)
    nats = [random.gamma(2, 1, (900, 2)) * (1 + windows[:, None] / 60) for _ in range(2)]
    terms = [SimpleNamespace(nats=one) for one in nats]
    facts = compare_tokens(ComparedText(TREE, windows, windows, *terms), member)
    difference = (nats[0] - nats[1]).sum(axis=1)

    def statistics(kept):
        mean = difference[kept & member].mean()
        return mean, mean - difference[kept].mean()

    left_out = np.array([statistics(windows != one) for one in range(60)])
    expected = np.sqrt(59 * left_out.var(axis=0))
    for name, index in (("difference", 0), ("relative", 1)):
        estimate = facts[name]["total"] if name == "difference" else facts[name]
        assert estimate["value"] == pytest.approx(statistics(windows >= 0)[index])
        assert estimate["standard_error"] == pytest.approx(expected[index], rel=0.05)


# ---- groups ----


def test_places_in_words_and_capitals():
    pieces = [b" the", b" in", b"vent", b"ion", b" In", b",", b'"', b"We", b" 19", b" Act", b" dog"]
    tokenizer = tokenizer_of(*map(byte_level, pieces))
    *_, places, capitals = group_tokens(np.arange(11), tokenizer, 11, np.ones(11))
    function, word, first, later, none = range(5)
    assert places.index.tolist() == [function, first, later, later, function, none, none, function, none, word, word]
    assert capitals.index.tolist() == [1, 1, 2, 2, 0, 2, 2, 0, 2, 0, 1]
    assert places.groups == WORD_PLACES


def test_tenths_hold_a_tenth_of_the_text_each_and_unseen_tokens_are_rare():
    counts = np.random.default_rng(0).zipf(1.5, 4000).clip(max=3000) - 1
    decile = frequency_deciles(counts)
    mass = np.bincount(decile, counts) / counts.sum()
    assert abs(mass - 0.1).max() < counts.max() / counts.sum() + 1e-9
    ordered = counts[np.argsort(decile, kind="stable")]
    lows, highs = (np.array([pick(counts[decile == one]) for one in range(10)]) for pick in (np.min, np.max))
    assert (lows[:-1] >= highs[1:]).all() and (decile[counts == 0] == 9).all() and len(ordered) == 4000


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """A tree model and a flat one with the tokenizer of the sample, and a text."""
    folder = tmp_path_factory.mktemp("errors")
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "initializer_range": 0.5}
    for name, tree in (("tree", VocabularyTree.from_pretrained(SAMPLE)), ("flat", VocabularyTree.flat(8192))):
        tiny_model(tree, **sizes).save_pretrained(folder / name, tokenizer=tokenizer)
    text = read_documents(SAMPLE / "validation.txt.xz")[0][:2500]
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def facts(saved, tokenizer):
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "initializer_range": 0.5}
    models = [tiny_model(tree, **sizes) for tree in (VocabularyTree.from_pretrained(SAMPLE), VocabularyTree.flat(8192))]
    texts = read_documents(saved / "text.txt")
    return analyze_errors(models[0], tokenizer, texts, reference=models[1], seed=1)


def test_groups_of_every_grouping_add_up_to_all_tokens(facts):
    whole, *rows = facts["rows"]
    assert {row["grouping"] for row in rows} == {"frequency", "kind of token", "place in a word", "capitals"}
    for _, group in itertools.groupby(rows, key=lambda row: row["grouping"]):
        group = list(group)
        assert sum(row["tokens"] for row in group) == whole["tokens"] == facts["num_tokens"]
        assert sum(row["tokens"] * row["relative"]["value"] for row in group) == pytest.approx(0, abs=1e-6)
        for role in ("model", "reference", "difference"):
            total = sum(row["tokens"] * row[role]["total"]["value"] for row in group) / whole["tokens"]
            assert total == pytest.approx(whole[role]["total"]["value"], abs=1e-9)
    for row in facts["rows"]:
        assert sum(level["value"] for level in row["model"]["levels"]) == pytest.approx(row["model"]["total"]["value"])
        paired = row["model"]["total"]["value"] - row["reference"]["total"]["value"]
        assert row["difference"]["total"]["value"] == pytest.approx(paired)


def test_deeper_trees_have_clusters_at_every_level_above_the_tokens(saved, tokenizer):
    tree = VocabularyTree.random(8192, 21, 3)
    model = tiny_model(tree, num_hidden_layers=1, head="node", schedule="binomial")
    facts = analyze_errors(model, tokenizer, read_documents(saved / "text.txt"), num_samples=3)
    for name in ("confusions", "clusters"):
        assert {row["level"] for row in facts[name]} == {1, 2}
        assert all(tree.depth[row["node"]] == row["level"] for row in facts[name])
    for row in facts["confusions"]:
        assert tree.parent[row["node"]] == tree.parent[row["taken_for"]] and 0 < row["probability"] <= 0.5
    for row in facts["clusters"]:
        assert row["nats"] == pytest.approx(row["tokens"] * row["model"]["total"]["value"])
    assert len(facts["right"]) == len(facts["rows"][0]["model"]["levels"]) == 3


# ---- script ----


def test_the_script_writes_what_the_benchmarks_render(saved, tmp_path, facts):
    arguments = [
        saved / "tree",
        saved / "flat",
        "--text",
        saved / "text.txt",
        "--output",
        tmp_path / "out",
        "--seed",
        "1",
    ]
    ran = run_python(REPOSITORY / "examples" / "analyze_errors.py", *arguments, ACCELERATE_USE_CPU="true")
    assert ran.returncode == 0, ran.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["errors.json", "errors.md", "errors.png"]
    record = json.loads((tmp_path / "out" / "errors.json").read_text("utf-8"))
    for row, expected in zip(record["rows"], facts["rows"], strict=True):
        assert row["difference"]["total"]["value"] == pytest.approx(expected["difference"]["total"]["value"], rel=1e-4)
    section = errors_section(record)
    assert error_markdown(record) in section and (tmp_path / "out" / "errors.md").read_text("utf-8") in section
    assert all(sentence in " ".join(ran.stdout.replace("\n", " ").split()) for sentence in summary(record))
    with pytest.raises(ValueError, match=r"errors\.rows\[0\]\.difference"):
        check_errors(record | {"rows": [record["rows"][0] | {"difference": None}]})


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["analyze_errors.py", *map(str, arguments)])
    load_example("analyze_errors").main()


def test_one_model_alone_and_a_flat_one(saved, monkeypatch, capsys):
    for name, depth in (("tree", 2), ("flat", 1)):
        run_main(monkeypatch, saved / name, "--text", saved / "text.txt", "--counts-of", saved / "text.txt")
        shown = capsys.readouterr().out
        assert "difference" not in shown and f"level {depth}" in shown and f"level {depth + 1}" not in shown
        assert ("Clusters most often taken for others" in shown) == (depth > 1)


@pytest.mark.parametrize(
    ("models", "more", "message"),
    [
        (["flat", "tree"], [], "A model of another tree cannot be read"),
        (["tree", "other"], [], "different tokenizers"),
        (["tree"], ["--samples", "1"], "cannot visit the tree's 2 levels"),
        (["tree"], ["--limit", "0"], "--limit must be at least 1"),
        (["tree"], ["--text", "missing.txt"], "no text file missing.txt"),
    ],
)
def test_bad_input_is_explained(saved, monkeypatch, tokenizer, models, more, message):
    if "other" in models:
        tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[:8192]
        other = tokenizer_of(tokens[1], tokens[0], *tokens[2:])
        tiny_model(VocabularyTree.flat(8192)).save_pretrained(saved / "other", tokenizer=other)
    folders = [saved / name for name in models]
    with pytest.raises((ValueError, OSError), match=message):
        run_main(monkeypatch, *folders, "--text", saved / "text.txt", *more)


def test_tokenizers_may_differ_in_the_mask_alone():
    one, other = tokenizer_of("a", "b"), tokenizer_of("a", "b", special=("<|mask|>",))
    check_same_tokens(one, other, ["a b"])
    with pytest.raises(ValueError, match="different tokenizers"):
        check_same_tokens(one, tokenizer_of("b", "a"), ["a b"])


def test_models_of_another_vocabulary_or_tree_are_refused():
    _, windows = some_windows()
    for tree, message in ((VocabularyTree.flat(31), "30 and 31 tokens"), (VocabularyTree.random(30, 6, 2), "flat")):
        with pytest.raises(ValueError, match=message):
            measure_levels(tiny_model(tree), TREE, windows, num_samples=3)
