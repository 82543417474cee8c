"""Heads and embeddings against plain references in double precision: values, gradients, sizes of what they compute."""

import copy

import pytest
import torch
from helpers.heads import TREES, built, gradients, largest_seen, layouts, slots_of
from helpers.models import tiny_model
from helpers.shapes import Shapes
from helpers.untraced import untraced
from safetensors.torch import load_file
from torch.nn import functional as F

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.building.budget import budget_config, count_parameters
from modeling_treediff.configuration_treediff import TreeDiffConfig
from modeling_treediff.node_layers_treediff import (
    HEAD_CLASSES,
    FactorisedEmbedding,
    child_cross_entropy,
    embed_paths,
    group_by_parent,
    subtree_logsumexp,
)
from modeling_treediff.vocabulary_tree import VocabularyTree

SHARED = {"node_embedding": "factorised", "head": "node", "tie_word_embeddings": True}


def reference(name, head, hidden, nodes, tree):
    """Position by position, child by child; None at leaves. `hidden` (B, T, E) -> B T vectors (K,)."""
    rows = []
    for vector, node in zip(hidden.flatten(0, 1), nodes.flatten().tolist(), strict=True):
        depth = int(tree.depth[node])
        if depth == tree.tree_depth:
            rows.append(None)
            continue
        scores = []
        for slot, child in enumerate(tree.children[node - tree.vocab_size].tolist()):
            if child < 0:
                scores.append(torch.tensor(-torch.inf, dtype=hidden.dtype))
            elif name == "child":
                layer = head.levels[depth]
                scores.append(layer.weight[slot] @ vector + layer.bias[slot])
            elif name == "node":
                row = child if child < tree.vocab_size else child - 1
                scores.append(head.nodes.weight[row] @ (head.levels[depth].weight @ vector) + head.nodes.bias[row])
            else:
                below = tree.ancestors[:, depth + 1] == child
                scores.append((head.tokens.weight[below] @ vector + head.tokens.bias[below]).logsumexp(0))
        rows.append(torch.stack(scores))
    return rows


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_values_and_gradients_equal_the_plain_reference(name, tree):
    head = built(name, tree)
    for layout, nodes in layouts(tree).items():
        generator = torch.Generator().manual_seed(3)
        hidden = torch.randn(*nodes.shape, 16, generator=generator, dtype=torch.float64, requires_grad=True)
        slots = slots_of(tree, nodes)
        rows = reference(name, head, hidden, nodes, tree)
        if name == "leaf":  # whose fp32 sums are double here
            assert head(hidden, nodes, tree).dtype == torch.float64
        logits = head(hidden, nodes, tree).flatten(0, 1)
        for row, expected in zip(logits, rows, strict=True):
            if expected is not None:
                torch.testing.assert_close(row, expected, msg=lambda text, layout=layout: f"{layout}: {text}")
        pairs = [(row, slot) for row, slot in zip(rows, slots.flatten().tolist(), strict=True) if slot >= 0]
        truth = sum(-row.log_softmax(-1)[slot] for row, slot in pairs) + 0 * hidden.sum()
        nats = child_cross_entropy(head, hidden, nodes, slots, tree)
        assert nats.shape == nodes.shape
        assert (nats[slots == -100] == 0).all()
        torch.testing.assert_close(nats.sum(), truth)
        torch.testing.assert_close(gradients(nats.sum(), hidden, head), gradients(truth, hidden, head))


def test_leaf_head_on_the_flat_tree_is_the_child_head():
    tree = TREES["flat"]
    child, leaf = built("child", tree), built("leaf", tree)
    leaf.tokens.load_state_dict(child.levels[0].state_dict())
    hidden = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nodes = torch.full((2, 9), tree.root_id)
    assert torch.equal(leaf(hidden, nodes, tree), child(hidden, nodes, tree))


def test_scores_of_the_node_head_do_not_depend_on_slots():
    """The same tree with every node's children in reverse order: the same score for the same child."""
    tree = TREES["depth 3"]
    turned = VocabularyTree.from_paths(3 - tree.paths, 4)
    head, other = built("node", tree), built("node", turned)
    same = turned.ancestors[tree.representative, tree.depth]  # this tree's nodes in the other
    rows = torch.arange(tree.num_nodes)[torch.arange(tree.num_nodes) != tree.root_id]
    there = same[rows] - (same[rows] > turned.root_id).long()  # the root has no row
    with torch.no_grad():
        other.levels.load_state_dict(head.levels.state_dict())
        other.nodes.weight[there] = head.nodes.weight
        other.nodes.bias[there] = head.nodes.bias
    nodes = torch.arange(tree.vocab_size, tree.num_nodes)[None]
    hidden = torch.randn(1, nodes.numel(), 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(other(hidden, same[nodes], turned).flip(-1), head(hidden, nodes, tree))


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 weights", "autocast"])
@pytest.mark.parametrize("layout", ["all at the last parent", "every parent once", "many"])
@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_bf16_errors_are_bounded_by_those_of_the_naive_computation(name, layout, autocast):
    """|fast bf16 - fp64| <= |naive bf16 - fp64| + 1 % of the scale, for nats and for all gradients."""
    tree = TREES["depth 3"]
    nodes = layouts(tree)[layout]
    slots = slots_of(tree, nodes)
    results = {}
    for kind, dtype in (("truth", torch.float64), ("naive", torch.bfloat16), ("fast", torch.bfloat16)):
        head = built(name, tree).to(torch.float32 if kind == "fast" and autocast else dtype)
        hidden = torch.randn(*nodes.shape, 16, generator=torch.Generator().manual_seed(0))
        hidden = hidden.to(dtype).requires_grad_()
        if kind == "fast":
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                nats = child_cross_entropy(head, hidden, nodes, slots, tree).flatten()
            assert nats.dtype == torch.float32
        else:
            rows = reference(name, head, hidden, nodes, tree)
            pairs = zip(rows, slots.flatten().tolist(), strict=True)
            nats = torch.stack([0 * row.sum() if slot < 0 else -row.log_softmax(-1)[slot] for row, slot in pairs])
        results[kind] = [nats.detach(), *gradients(nats.nan_to_num().sum(), hidden, head)]
    for truth, naive, fast in zip(*results.values(), strict=True):
        naive_error, fast_error = (naive.double() - truth).abs().nan_to_num(), (fast.double() - truth).abs()
        counted = truth.isfinite()
        assert fast_error[counted].max() <= naive_error[counted].max() + 0.01 * truth[counted].abs().max()


@pytest.mark.parametrize("count", [1, 3, 12, 13, 100, 4000])
def test_blocks_hold_every_position_with_its_parent(count):
    parents = 12
    for seed, largest in enumerate((1, 3, parents, parents + 1)):  # the last: some positions have none
        parent = torch.randint(0, largest, (count,), generator=torch.Generator().manual_seed(seed))
        blocks = group_by_parent(parent, parents)
        size = blocks.source_GC.shape[1]
        assert blocks.parent_G.shape == blocks.source_GC.shape[:1]
        assert len(blocks.parent_G) < count / size + parents
        has_parent = parent < parents
        assert torch.equal(blocks.source_GC.flatten()[blocks.place_n][has_parent], torch.arange(count)[has_parent])
        assert torch.equal(blocks.parent_G[blocks.place_n // size][has_parent], parent[has_parent])


def test_subtree_logsumexp_is_stable_and_knows_minus_infinity():
    tree = TREES["depth 2"]
    scores = torch.zeros(1, 20)
    below = tree.ancestors[:, 1] == tree.root_id + 1
    scores[:, below] = -1e4  # underflows next to the others
    scores[:, tree.ancestors[:, 1] == tree.root_id + 2] = 1e4
    scores[:, tree.ancestors[:, 1] == tree.root_id + 3] = -torch.inf
    scores[0, below.nonzero()[0]] = -torch.inf
    scores.requires_grad_()
    totals = subtree_logsumexp(scores, tree)[0]
    clusters = range(tree.root_id + 1, tree.num_nodes)
    expected = torch.stack([scores[0, tree.ancestors[:, 1] == node].logsumexp(0) for node in clusters])
    torch.testing.assert_close(totals[1:], expected)
    assert totals[0].isneginf()
    totals[totals.isfinite()].sum().backward()
    assert scores.grad.isfinite().all()
    torch.testing.assert_close(scores.grad[0, below].sum(), torch.tensor(1.0))


def test_leaf_head_adds_in_fp32_under_bf16():
    """A sum of 600 equal terms: added one by one in bf16, it would stop growing at 256."""
    tree = VocabularyTree.from_paths([[token >= 600, token % 600] for token in range(700)], 600)
    head = built("leaf", tree).to(torch.bfloat16)
    torch.nn.init.zeros_(head.tokens.weight)
    torch.nn.init.zeros_(head.tokens.bias)
    logits = head(torch.ones(1, 1, 16, dtype=torch.bfloat16), torch.tensor([[tree.root_id]]), tree)[0, 0, :2]
    torch.testing.assert_close(logits, torch.tensor([600.0, 100.0]).log())


def test_a_position_without_a_way_to_a_loss_leaves_no_nan():
    """The softmax of every row is finite, at leaves too, and its gradient is."""
    for tree in TREES.values():
        for name in HEAD_CLASSES:
            head, nodes = built(name, tree), layouts(tree)["with leaves"]
            hidden = torch.ones(3, 13, 16, dtype=torch.float64, requires_grad=True)
            probabilities = head(hidden, nodes, tree).softmax(-1)
            assert probabilities.isfinite().all()
            gradients(probabilities.square().sum(), hidden, head)


@untraced
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_heads_compile_without_a_graph_break_and_once(name, backend):
    """Other nodes of the same shape need no other graph: no shape depends on the data."""
    tree = TREES["depth 3"]
    head = built(name, tree)
    torch._dynamo.reset()
    compiled = torch.compile(child_cross_entropy, fullgraph=True, backend=backend, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            nodes = torch.randint(0, tree.num_nodes, (2, 30), generator=generator)
            hidden = torch.randn(2, 30, 16, generator=generator, dtype=torch.float64, requires_grad=True)
            arguments = head, hidden, nodes, slots_of(tree, nodes), tree
            fast, slow = compiled(*arguments), child_cross_entropy(*arguments)
            torch.testing.assert_close(fast, slow)
            torch.testing.assert_close(gradients(fast.sum(), hidden, head), gradients(slow.sum(), hidden, head))


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_a_known_level_changes_nothing(name, tree):
    """Neither the nats of positions that stand at it, nor those of leaves, nor any gradient."""
    head, generator = built(name, tree), torch.Generator().manual_seed(3)
    for level in range(tree.tree_depth):
        at_level = (tree.depth == level).nonzero()[:, 0]
        either = torch.cat([at_level, torch.arange(min(tree.vocab_size, len(at_level)))])
        nodes = either[torch.randint(len(either), (3, 29), generator=generator)]
        hidden = torch.randn(3, 29, 16, generator=generator, dtype=torch.float64).requires_grad_()
        arguments = head, hidden, nodes, slots_of(tree, nodes), tree
        known, found = child_cross_entropy(*arguments, level), child_cross_entropy(*arguments)
        torch.testing.assert_close(known, found)
        torch.testing.assert_close(gradients(known.sum(), hidden, head), gradients(found.sum(), hidden, head))


@pytest.mark.parametrize("positions", [64, 1000, 4096])
def test_node_head_never_holds_the_vectors_of_all_children_of_all_positions(positions):
    tree = random_tree(900, 30, 2)
    head = built("node", tree, head_rank=32).float()
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randint(tree.root_id, tree.num_nodes, (2, positions // 2), generator=generator)
    size = min(-(-positions // 30), 32)
    largest = largest_seen(head, nodes, tree)
    # In each block: the vectors of the children, the positions' queries, their logits.
    assert largest <= (positions / size + 30) * max(30 * 32, size * 32, size * 30)
    if positions > 1000:
        assert largest < positions * 30 * 32 / 10


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_parameter_count_is_the_heads(name, tree):
    for size, rank in ((8, 1), (16, 5), (40, 64)):
        sizes = {"hidden_size": size, "num_attention_heads": 4, "head_rank": rank, "tie_word_embeddings": False}
        config = TreeDiffConfig.from_tree(tree, head=name, **sizes)
        built_count = sum(parameter.numel() for parameter in HEAD_CLASSES[config.head](config).parameters())
        assert count_parameters(config)["head"] == built_count


@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_a_budget_counts_the_head(name):
    tree = random_tree(8192, 91, 2)
    fields = {"hidden_size": 224, "num_attention_heads": 7}
    config = budget_config(tree, 9_000_000, head=name, **fields)
    layer = count_parameters(config)["layers"] / config.num_hidden_layers
    assert abs(sum(count_parameters(config).values()) - 9_000_000) <= layer / 2
    with pytest.raises(ValueError, match="do not pay for one layer"):
        budget_config(tree, 1_000_000, head=name, **fields)


def test_config_says_what_is_wrong_with_a_head():
    for fields, message in (
        ({"head": "full"}, "Unknown head 'full'; known: child, node, leaf"),
        ({"head_rank": 0}, "head_rank must be at least 1"),
        ({"node_embedding": "sum"}, "Unknown node_embedding 'sum'; known: path, free, factorised"),
        ({"embedding_rank": 16}, "embedding_rank belongs to node_embedding='factorised'"),
        ({"node_embedding": "factorised", "embedding_rank": 0}, "embedding_rank must be at least 1"),
        ({"tie_word_embeddings": True, "head": "node", "node_embedding": "path"}, "tie_word_embeddings needs"),
        ({"tie_word_embeddings": True, "node_embedding": "factorised", "head": "leaf"}, "tie_word_embeddings needs"),
        (SHARED | {"embedding_rank": 32, "head_rank": 16}, "tie_word_embeddings needs .* embedding_rank=head_rank"),
    ):
        with pytest.raises(ValueError, match=message):
            TreeDiffConfig(**fields)


def test_every_parameter_is_of_a_layer_that_transformers_initialises():
    for name in HEAD_CLASSES:
        head = HEAD_CLASSES[name](
            TreeDiffConfig.from_tree(TREES["depth 3"], hidden_size=16, num_attention_heads=4, head=name)
        )
        owned = {id(p) for layer in head.modules() if isinstance(layer, torch.nn.Linear) for p in layer.parameters()}
        assert {id(parameter) for parameter in head.parameters()} == owned


def test_the_node_heads_first_scores_are_as_large_as_the_child_heads():
    """Both products start at the size of <W h> with W of the config's standard deviation; kept when loaded."""
    tree = random_tree(900, 30, 2, seed=0)
    torch.manual_seed(0)
    spread = {}
    for name in ("child", "node"):
        model = TreeDiffForDiffusionLM.from_tree(
            tree, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, head=name
        )
        with torch.no_grad():
            logits = model(torch.arange(900, 931)[None]).logits
        spread[name] = float(logits[logits.isfinite()].std())
    assert 0.5 < spread["node"] / spread["child"] < 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_cuda_agrees_with_the_cpu(name):
    tree = TREES["depth 3"]
    head, nodes = built(name, tree).float(), layouts(tree)["many"]
    hidden = torch.randn(*nodes.shape, 16, generator=torch.Generator().manual_seed(0))
    here = head(hidden, nodes, tree).softmax(-1)
    there = head.cuda()(hidden.cuda(), nodes.cuda(), tree.to("cuda")).softmax(-1)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-5)


def test_the_way_down_the_tree_is_one_distribution_over_tokens():
    """The product of child probabilities on the way to each token sums to 1 over the tokens."""
    for name in HEAD_CLASSES:
        for tree in TREES.values():
            head = built(name, tree)
            hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            log_p = torch.zeros(5, tree.vocab_size, dtype=torch.float64)
            for level in range(1, tree.tree_depth + 1):
                for token, (parent, child) in enumerate(tree.ancestors[:, level - 1 : level + 1]):
                    logits = head(hidden[None], parent.expand(1, 5), tree)[0]
                    log_p[:, token] += logits.log_softmax(-1)[:, tree.child_slot[child]].detach()
            torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(5, dtype=torch.float64))
            if name == "leaf":  # siblings normalised over subtrees: the chain of levels is one softmax over tokens
                torch.testing.assert_close(log_p, F.log_softmax(head.tokens(hidden), -1).detach())


def factorised(tree, **fields):
    """A factorised embedding of double precision, and its model's config."""
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "head_rank": 6, "node_embedding": "factorised"}
    torch.manual_seed(0)
    return FactorisedEmbedding(TreeDiffConfig.from_tree(tree, **(sizes | fields))).double()


@pytest.mark.parametrize("fields", [{}, {"embedding_rank": 3}, SHARED], ids=["rank of the head", "own rank", "shared"])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_a_factorised_vector_is_the_sum_along_the_path(tree, fields):
    embedding = factorised(tree, **fields)
    nodes = torch.cat([torch.arange(tree.num_nodes), torch.arange(tree.num_nodes).flip(0)]).view(2, -1)
    rows = []
    for node in nodes.flatten().tolist():
        path = [node] if node >= tree.root_id else []
        above = int(tree.parent[node])
        while above >= 0:
            path.append(above)
            above = int(tree.parent[above])
        rows.append(embedding.internal.weight[torch.tensor(path) - tree.root_id].sum(0))
        if node != tree.root_id:
            own = embedding.nodes.weight[node - (node > tree.root_id)]
            rows[-1] = rows[-1] + embedding.projection.weight @ own
    vectors, expected = embedding(nodes, tree), torch.stack(rows).view(*nodes.shape, -1)
    torch.testing.assert_close(vectors, expected)
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = list(embedding.parameters())
    found, wanted = (torch.autograd.grad((some * weights).sum(), parameters) for some in (vectors, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_at_full_rank_a_factorised_embedding_can_be_any_sum_along_the_path(tree):
    table = torch.nn.Embedding(tree.num_nodes, 16, dtype=torch.float64)
    embedding, (leaf_VE, internal_IE) = (
        factorised(tree, embedding_rank=16),
        table.weight.split([tree.vocab_size, tree.num_nodes - tree.vocab_size]),
    )
    with torch.no_grad():
        embedding.projection.weight.copy_(torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0])
        embedding.nodes.weight.zero_()
        embedding.nodes.weight[: tree.vocab_size] = leaf_VE @ embedding.projection.weight
        embedding.internal.weight.copy_(internal_IE)
    nodes = torch.arange(tree.num_nodes)[None]
    torch.testing.assert_close(embedding(nodes, tree), embed_paths(table, nodes, tree))


def test_no_tensor_of_a_factorised_embedding_has_a_vector_per_level_and_position_or_per_token():
    tree = random_tree(20000, 28, 3)
    embedding, positions, internal = factorised(tree, hidden_size=32), 2400, tree.num_nodes - tree.vocab_size
    nodes = torch.randint(0, tree.num_nodes, (8, positions // 8), generator=torch.Generator().manual_seed(0))
    with Shapes() as shapes:
        embedding(nodes, tree).square().sum().backward()
    largest = max(torch.Size(shape).numel() for _, shape in shapes.seen)
    assert largest <= max(positions * 32, 3 * internal * 32, tree.num_nodes * 6) < min(3 * positions, 20000) * 32


def test_shared_vectors_are_one_tensor_from_the_first_weights_to_the_loaded_file(tmp_path):
    tree = TREES["depth 2"]
    model = tiny_model(tree, **SHARED, head_rank=6)
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "model.embed_nodes.nodes.weight" in names and "head.nodes.weight" not in names
    for some in (model, copy.deepcopy(model), TreeDiffForDiffusionLM.from_pretrained(tmp_path)):
        assert some.head.nodes.weight is some.model.embed_nodes.nodes.weight
        assert len(some.head.nodes.bias) == len(some.head.nodes.weight) == tree.num_nodes - 1
    assert torch.equal(some.head.nodes.weight, model.head.nodes.weight)
    apart = tiny_model(tree, **(SHARED | {"tie_word_embeddings": False}), head_rank=6)
    assert apart.head.nodes.weight is not apart.model.embed_nodes.nodes.weight
    assert apart.model.embed_nodes.nodes.weight.shape == (tree.num_nodes - 1, 6)
    apart.save_pretrained(tmp_path / "apart")
    with pytest.raises(ValueError, match="head.nodes.weight, which tie_word_embeddings says is the embedding's"):
        TreeDiffForDiffusionLM.from_pretrained(tmp_path / "apart", tie_word_embeddings=True)


def test_a_factorised_vector_starts_as_large_as_those_of_internal_nodes():
    tree = random_tree(900, 30, 2)
    torch.manual_seed(0)
    for fields in ({"embedding_rank": 32}, SHARED | {"head_rank": 32}, {"embedding_rank": 128, "head": "child"}):
        fields = {"node_embedding": "factorised"} | fields
        model = TreeDiffForDiffusionLM.from_tree(
            tree, hidden_size=256, num_attention_heads=4, num_hidden_layers=1, **fields
        )
        embedding = model.model.embed_nodes
        tokens = embedding.projection(embedding.nodes(torch.arange(900)))
        for vectors in (tokens, embedding.internal.weight):
            assert float(vectors.detach().std()) == pytest.approx(0.02, rel=0.1)
