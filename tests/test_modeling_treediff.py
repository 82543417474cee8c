"""The model: what it computes, what it refuses, and what its training graph holds."""

import functools
import itertools

import pytest
import torch
from helpers.models import IDS, TREES, check_compiled_step, corrupted, tiny_model
from helpers.shapes import Shapes
from helpers.untraced import untraced
from torch.nn import functional as F
from transformers import DynamicCache

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import HEADS

FAMILY = [
    {"schedule": "sequential", "level_durations": [3.0, 1.0]},
    {"schedule": "binomial", "time_warp": "cosine", "node_embedding": "free"},
    {"schedule": "poisson", "head": "leaf"},
    {"schedule": "binomial", "head": "node", "head_rank": 3},
    {"schedule": "sequential", "num_timesteps": 7},
]


@pytest.mark.parametrize("tree", TREES, ids=IDS)
def test_loss_is_the_weighted_cross_entropy_of_the_true_child(tree):
    model = tiny_model(tree)
    batch = corrupted(model)
    batch.labels[0, :3] = -100
    with torch.no_grad():
        output = model(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps)
    weight = model.schedule.weight(batch.timesteps)
    total, levels, rows = 0.0, [0.0] * tree.tree_depth, [0.0] * 4
    for row, place in itertools.product(range(4), range(10)):
        node, label = int(batch.input_ids[row, place]), int(batch.labels[row, place])
        depth = int(tree.depth[node])
        if label == -100 or depth == tree.tree_depth:
            continue
        child = int(tree.ancestors[label, depth + 1])
        children = tree.children[node - tree.vocab_size].tolist()
        log_p = output.logits[row, place].log_softmax(-1)[children.index(child)]
        nats = -float(log_p) * float(weight[row, depth])
        total, levels[depth], rows[row] = total + nats, levels[depth] + nats, rows[row] + nats
    count = int((batch.labels >= 0).sum())
    torch.testing.assert_close(output.loss, torch.tensor(total / count))
    torch.testing.assert_close(output.level_losses, torch.tensor(levels) / count)
    torch.testing.assert_close(output.nelbo, torch.tensor(rows))


def test_loss_of_the_flat_model_is_mdlms_to_fp64_precision():
    """The whole model in double precision: loss = 1/t x cross-entropy over masked positions, per token."""
    model = tiny_model(TREES[0]).double()
    tokens = torch.randint(0, 20, (4, 10), generator=torch.Generator().manual_seed(0))
    times = torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batch = corrupt(tokens, model.tree, model.schedule, times, torch.Generator().manual_seed(2))
    output = model(batch.input_ids, labels=batch.labels, timesteps=times)
    log_p = output.logits - output.logits.exp().sum(-1, keepdim=True).log()
    masked = batch.input_ids == model.config.mask_token_id
    reference = -(log_p.gather(-1, tokens[..., None])[..., 0] * masked / times[:, None]).sum() / tokens.numel()
    torch.testing.assert_close(output.loss, reference, rtol=1e-12, atol=0)


@pytest.mark.parametrize("tree", TREES, ids=IDS)
def test_child_probabilities_multiply_to_a_distribution_over_tokens(tree):
    """Leaf probability = product of child probabilities down its path; over all leaves they sum to 1."""
    model = tiny_model(tree)
    context = torch.randint(0, 20, (1, 8), generator=torch.Generator().manual_seed(1))
    log_p = torch.zeros(20)
    for depth in range(tree.tree_depth):
        for node in tree.ancestors[:, depth].unique():
            context[0, 3] = node
            log_children = model(context).logits[0, 3].log_softmax(-1)
            below = tree.ancestors[:, depth] == node
            log_p[below] += log_children[tree.child_slot[tree.ancestors[below, depth + 1]]]
    torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0))
    assert log_p.isfinite().all()


@pytest.mark.parametrize("tree", TREES[1:], ids=IDS[1:])
def test_missing_children_have_no_probability(tree):
    model = tiny_model(tree)
    internal = torch.arange(20, tree.num_nodes)[None, :16]
    logits = model(internal).logits[0]
    assert torch.equal(logits.isneginf(), tree.children[internal[0] - 20] < 0)


def test_a_batch_gives_what_each_of_its_rows_gives_alone():
    model = tiny_model(TREES[1])
    nodes = torch.randint(0, model.config.num_tree_nodes, (5, 9), generator=torch.Generator().manual_seed(0))
    together = model(nodes).logits
    for row in range(5):
        torch.testing.assert_close(model(nodes[row : row + 1]).logits[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", FAMILY)
def test_every_member_of_the_family_is_saved_loaded_and_trained(fields, tmp_path):
    """Also at the first and the last time, where nothing or everything is lost."""
    tree = TREES[0] if fields.get("num_timesteps") else TREES[1]
    model = tiny_model(tree, **fields)
    model.save_pretrained(tmp_path)
    loaded = TreeDiffForDiffusionLM.from_pretrained(tmp_path).train()
    tokens = torch.randint(0, tree.vocab_size, (6, 8), generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for member in (model.train(), loaded):
        batch = corrupt(tokens, tree, member.schedule, times, torch.Generator().manual_seed(1))
        member.loss = member(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps).loss
        member.loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in member.parameters() if parameter.grad is not None)
    assert torch.equal(model.loss, loaded.loss) and model.loss.isfinite()


def test_bf16_error_is_bounded_by_that_of_rounding_the_weights():
    """|bf16 - fp64| is at most 4 times |fp64 with weights rounded to bf16 - fp64|, plus half a percent of the scale."""
    exact = tiny_model(TREES[1]).double()
    rounded = tiny_model(TREES[1]).to(torch.bfloat16).double()
    low = tiny_model(TREES[1]).to(torch.bfloat16)
    nodes = torch.arange(20, 27)[None]
    truth = exact(nodes).logits
    real = truth.isfinite()
    allowed = 4 * (rounded(nodes).logits - truth)[real].abs().max() + 0.005 * truth[real].abs().max()
    assert (low(nodes).logits.double() - truth)[real].abs().max() <= allowed


@pytest.mark.parametrize(("branching", "depth"), [(29, 2), (10, 3)])
def test_training_graph_has_no_vocabulary_axis(branching, depth):
    """Only the node embedding's own gradient is as long as the vocabulary; the flat tree's logits are the contrast."""
    vocab_size = 811

    def vocabulary_sized(tree):
        model = tiny_model(tree, head="child").train()
        batch = corrupted(model)
        with Shapes() as shapes:
            model(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps).loss.backward()
        return {name for name, shape in shapes.seen if any(size >= vocab_size for size in shape)}

    own = {"aten.embedding_dense_backward.default", "aten.detach.default"}  # detach hands that gradient to .grad
    assert vocabulary_sized(random_tree(vocab_size, branching, depth)) <= own
    assert any("softmax" in name for name in vocabulary_sized(VocabularyTree.flat(vocab_size)))


def test_nelbo_estimate_agrees_with_enumeration_over_corruptions():
    """Two positions, all corruptions and 200 times enumerated: the estimate lies within 4 of its standard errors."""
    tree = TREES[1]
    model = tiny_model(tree).double()
    tokens = torch.tensor([[3, 11]])
    exact, grid = 0.0, 200
    times = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    alpha = model.schedule.alpha(times)
    occupancy = torch.cat([alpha[:, :-1] - alpha[:, 1:], alpha[:, -1:]], dim=1)
    with torch.no_grad():
        for first, second in itertools.product(range(3), repeat=2):
            nodes = torch.stack([tree.ancestors[3, first], tree.ancestors[11, second]]).repeat(grid, 1)
            output = model(nodes, labels=tokens.repeat(grid, 1), timesteps=times)
            exact += float((output.nelbo * occupancy[:, first] * occupancy[:, second]).mean()) / 2
    estimates = torch.tensor(
        [
            model.nelbo(tokens, num_samples=256, batch_size=256, generator=torch.Generator().manual_seed(seed)).value
            for seed in range(40)
        ]
    )
    standard_error = float(estimates.std()) / len(estimates) ** 0.5
    assert abs(float(estimates.mean()) - exact) < 4 * standard_error + 1e-3 * exact  # the second: times below 1e-3


def test_nelbo_reproduces_by_seed_and_counts_tokens_only():
    model = tiny_model(TREES[1])
    tokens = torch.randint(0, 20, (5, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[:, 6:] = 0
    draws = [
        model.nelbo(tokens, mask, num_samples=4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0].num_tokens == 30
    assert abs(sum(draws[0].level_losses) - draws[0].value) < 1e-5
    assert draws[0].standard_error > 0


NO_IDS = {
    "a list": ([[1, 2]], "must be a tensor, got list"),
    "nothing": (None, "must be a tensor, got NoneType"),
    "floats": (torch.tensor([[1.0, 2.0]]), r"must be whole numbers .* got torch.float32 of shape \(1, 2\)"),
    "bools": (torch.tensor([[True, False]]), "must be whole numbers .* got torch.bool"),
    "bytes": (torch.tensor([[1, 2]], dtype=torch.uint8), "must be whole numbers .* got torch.uint8"),
    "one text as it is": (torch.tensor([1, 2]), r".* shape \(batch, length\), .* of shape \(2,\)"),
    "a dimension more": (torch.ones(1, 2, 3, dtype=torch.long), r".* of shape \(1, 2, 3\)"),
    "no text": (torch.ones(0, 2, dtype=torch.long), r".* at least one text, got .* \(0, 2\)"),
}
NO_MASKS = {
    "a list": ([[1, 1]], "must be a tensor, got list"),
    "a bool": (True, "must be a tensor, got bool"),
    "one dimension": (torch.ones(2), r"\(2,\).* differ in shape"),
    "another length": (torch.ones(1, 3), r"\(1, 3\).* differ in shape"),
    "for each head": (torch.ones(1, 1, 2, 2), r"\(1, 1, 2, 2\).* differ in shape"),
}
DOORS = {  # and the masks that each takes
    "forward": (lambda model: model, "attention_mask segment_ids labels"),
    "body": (lambda model: model.model, "attention_mask segment_ids"),
    "generate": (lambda model: model.generate, "attention_mask"),
    "token_log_probs": (lambda model: model.token_log_probs, "attention_mask segment_ids"),
    "nelbo": (lambda model: functools.partial(model.nelbo, num_samples=2), "attention_mask segment_ids fixed_mask"),
    "corrupt": (
        lambda model: lambda ids, **masks: corrupt(ids, model.tree, model.schedule, **masks),
        "attention_mask fixed_mask uniforms",
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_are_no_ids_or_masks_is_refused_in_a_sentence(door):
    model, (of, masks), ids = tiny_model(TREES[1]), DOORS[door], torch.tensor([[1, 2]])
    enter = of(model)
    enter(ids.int()), enter(ids)
    for value, message in NO_IDS.values():
        if not (value is None and door == "generate"):  # which then writes from nothing
            with pytest.raises(ValueError, match=f"^(input|token)_ids {message}"):
                enter(value)
    for mask, (value, message) in itertools.product(masks.split(), NO_MASKS.values()):
        with pytest.raises(ValueError, match=message):
            enter(ids, **{mask: value})


def test_bad_calls_say_what_is_wrong():
    model = tiny_model(TREES[1])
    nodes = model.config.num_tree_nodes
    for bad in (-1, nodes):
        with pytest.raises(ValueError, match=rf"0\.\.{nodes - 1} \(nodes of the tree\)"):
            model(torch.tensor([[0, bad]]))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.19"):
        model(torch.tensor([[20]]), labels=torch.tensor([[20]]), timesteps=torch.ones(1))
    blocks = tiny_model(TREES[1], block_size=1)
    for label in (20, 10**6):
        with pytest.raises(ValueError, match=r"labels must lie in 0\.\.19"):
            blocks(torch.tensor([[20]]), labels=torch.tensor([[label]]), timesteps=torch.ones(1, 1))
    with pytest.raises(ValueError, match="input_ids must be a tensor, got list"):
        model([[1, 2]], past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="nothing to measure"):
        model.nelbo(torch.tensor([[1]]), attention_mask=torch.tensor([[0]]))
    for timesteps in (None, [1.0], torch.ones(2), torch.ones(1, 1)):
        with pytest.raises(ValueError, match="needs `timesteps` of shape"):
            model(torch.tensor([[20]]), labels=torch.tensor([[1]]), timesteps=timesteps)
    for dtype in (torch.bfloat16, torch.int64):
        with pytest.raises(ValueError, match=f"{dtype}, too coarse"):
            model(torch.tensor([[20]]), labels=torch.tensor([[1]]), timesteps=torch.ones(1, dtype=dtype))
    with pytest.raises(ValueError, match="labels must be whole numbers .* got torch.float32"):
        model(torch.tensor([[20]]), labels=torch.ones(1, 1), timesteps=torch.ones(1))
    with pytest.raises(ValueError, match="`timesteps` need `labels` here"):
        model(torch.tensor([[20]]), timesteps=torch.ones(1))
    with pytest.raises(ValueError, match="extend_tree, then from_tree"):
        model.resize_token_embeddings(30)
    for fields, message in (
        ({"hidden_size": 30}, "multiple of num_attention_heads"),
        ({"schedule": "linear"}, "Unknown schedule 'linear'; known: sequential"),
        ({"head": "full"}, "Unknown head 'full'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"vocab_size": 5}, "vocab_size come from the tree"),
    ):
        with pytest.raises(ValueError, match=message):
            TreeDiffForDiffusionLM.from_tree(TREES[1], **({"num_attention_heads": 4, "hidden_size": 32} | fields))


@untraced
@pytest.mark.parametrize(
    "fields",
    [
        *({"head": head, "flat": head == "child"} for head in HEADS),
        {"head": "child", "schedule": "binomial", "time_warp": "cosine", "padding": True},
        {"node_embedding": "free", "schedule": "poisson", "checkpointing": True},
        {"head": "node", "node_embedding": "factorised", "tie_word_embeddings": True, "flat": True},
        {"head": "node", "block_size": 4, "padding": True},
        {"head": "node", "perturbation": 0.1},
        {"head": "node", "lookahead": 0.5},
    ],
    ids=lambda fields: " ".join(map(str, fields.values())),
)
def test_training_step_compiles_whole_and_once(fields):
    """No graph break, the same loss and gradients, and no other graph for other batches of the same shape."""
    fields = dict(fields)
    padding, checkpointing, flat = (fields.pop(name, False) for name in ("padding", "checkpointing", "flat"))
    model = tiny_model(TREES[0 if flat else 2], **fields).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    masks = [(torch.arange(10) < 7 + seed).long().expand(4, 10) if padding else None for seed in range(3)]
    batches = [
        vars(corrupted(model, seed=seed, attention_mask=mask)) | {"attention_mask": mask}
        for seed, mask in enumerate(masks)
    ]
    check_compiled_step(model, batches)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    model = tiny_model(TREES[1])
    batch = corrupted(model)
    arguments = {"input_ids": batch.input_ids, "labels": batch.labels, "timesteps": batch.timesteps}
    here = model(**arguments).loss
    there = model.cuda()(**{name: value.cuda() for name, value in arguments.items()}).loss
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)


def test_head_levels_are_separate():
    """Changing one level's projection changes the scores at nodes of that depth alone."""
    model = tiny_model(TREES[2], head="child")
    nodes = torch.tensor([[model.tree.root_id, int(model.tree.ancestors[0, 1]), int(model.tree.ancestors[0, 2])]])
    before = model(nodes).logits
    for depth in range(3):
        with torch.no_grad():
            model.head.levels[depth].bias += torch.arange(3.0)
        changed = F.softmax(model(nodes).logits, -1) - F.softmax(before, -1)
        moved = changed.abs().amax(-1)[0] > 1e-6
        single = (model.tree.children[nodes[0] - 20] >= 0).sum(-1) == 1  # an only child has probability 1 anyway
        assert moved.tolist() == [index == depth and not single[index] for index in range(3)]
        with torch.no_grad():
            model.head.levels[depth].bias -= torch.arange(3.0)


def test_a_node_is_embedded_as_the_sum_along_its_path():
    tree = TREES[2]
    model = tiny_model(tree).model
    parent, vectors = tree.parent, model.embed_nodes.weight
    for node in (0, 13, int(tree.ancestors[5, 1]), int(tree.ancestors[5, 2]), tree.root_id):
        expected, above = vectors[node], int(parent[node])
        while above != -1:
            expected, above = expected + vectors[above], int(parent[above])
        torch.testing.assert_close(model._embed(torch.tensor([[node]]))[0, 0], expected)
