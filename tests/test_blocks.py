"""Models with blocks: each block is a diffusion of its own, given the clean tokens before it."""

from types import SimpleNamespace

import pytest
import torch
from helpers.attentions import ATTENTIONS, uncompiled
from helpers.bayes_optimal import TREES, random_joint
from helpers.models import tiny_model
from helpers.shapes import Shapes

from modeling_treediff import TreeDiffForMaskedLM, VocabularyTree, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import HEADS, SCHEDULES
from modeling_treediff.diffusion_process import number_blocks
from modeling_treediff.training import DiffusionCollator, make_lean, plan_memory

TREE = random_tree(100, branching=5, depth=3, seed=1)
TOKENS = torch.randint(0, 100, (3, 16), generator=torch.Generator().manual_seed(0))
SIZE = 5  # which does not divide 16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_with(block_size, tree=TREE, **fields):
    return tiny_model(tree, block_size=block_size, **fields).double().eval()


def numbered(*rows):
    return torch.tensor(rows)


def test_each_text_and_segment_begins_a_block_and_padding_is_in_the_first():
    ids = torch.zeros(1, 8, dtype=torch.long)
    assert torch.equal(number_blocks(ids, None, None, 3), numbered([0, 0, 0, 1, 1, 1, 2, 2]))
    left, right = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]]), torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    assert torch.equal(number_blocks(ids, left, None, 3), numbered([0, 0, 0, 0, 0, 1, 1, 1]))
    assert torch.equal(number_blocks(ids, right, None, 3), numbered([0, 0, 0, 1, 1, 0, 0, 0]))
    segments = torch.tensor([[7, 7, 7, 7, 2, 2, 2, 2]])
    assert torch.equal(number_blocks(ids, None, segments, 3), numbered([0, 0, 0, 1, 2, 2, 2, 3]))
    assert torch.equal(number_blocks(ids, left, segments, 3), numbered([0, 0, 0, 0, 1, 1, 1, 2]))
    holes = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1]])  # the second segment begins with padding
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    assert torch.equal(number_blocks(ids, holes, segments, 3), numbered([0, 0, 0, 0, 0, 0, 1, 1]))
    for size in (0, -2, 2.5, "4", True):
        with pytest.raises(ValueError, match="block_size must be a whole number, at least 1"):
            number_blocks(ids, None, None, size)


@uncompiled
@torch.no_grad()
@pytest.mark.parametrize("implementation", ATTENTIONS)
def test_one_pass_over_noisy_and_clean_tokens_is_a_pass_for_each_block(implementation):
    """Each block alone behind the clean tokens before it, in a model of one stream."""
    model = model_with(SIZE, head="node")
    model.set_attn_implementation(implementation)
    number = number_blocks(TOKENS, None, None, SIZE)
    noisy = corrupt(TOKENS, TREE, model.schedule, block_numbers=number, generator=generator()).input_ids
    both = model.model(noisy, clean_ids=TOKENS).last_hidden_state
    for block in range(int(number.max()) + 1):
        own = number[0] == block
        text = torch.where(own, noisy, TOKENS)[:, : int(own.nonzero().max()) + 1]
        alone = model.model(text).last_hidden_state[:, own[: text.shape[1]]]
        torch.testing.assert_close(both[:, own], alone, rtol=0, atol=1e-12 if implementation == "sdpa" else 1e-6)


def test_a_block_of_the_whole_text_is_the_model_without_blocks():
    plain, blocks = model_with(None), model_with(16)
    blocks.load_state_dict(plain.state_dict())
    first, second = (model.nelbo(TOKENS, num_samples=3, generator=generator()) for model in (plain, blocks))
    torch.testing.assert_close(first.token_losses, second.token_losses, rtol=1e-12, atol=1e-14)
    for name in ("value", "standard_error", "level_losses"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-12)
    batch = corrupt(TOKENS, TREE, plain.schedule, generator=generator())
    times = batch.timesteps[:, None].expand(-1, 16)
    one = plain(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps)
    other = blocks(batch.input_ids, labels=batch.labels, timesteps=times)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-12, atol=0)
    texts = [model.generate(max_new_tokens=16, num_steps=16, generator=generator()) for model in (plain, blocks)]
    assert torch.equal(*texts)


def test_blocks_of_one_token_over_a_flat_tree_are_an_autoregressive_model():
    """Each token's bound is then its exact -log p: the softmax at a mask behind the clean tokens before it."""
    model = model_with(1, VocabularyTree.flat(30))
    tokens = TOKENS % 30
    found = model.nelbo(tokens, generator=generator())
    for place in range(16):
        text = torch.cat([tokens[:, :place], torch.full((3, 1), model.config.mask_token_id)], dim=1)
        with torch.no_grad():
            log_probs = model(text).logits[:, -1].log_softmax(dim=-1)
        expected = -log_probs.gather(1, tokens[:, place, None])[:, 0]
        torch.testing.assert_close(found.token_losses[:, place], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_is_the_mean_of_the_training_loss(schedule, head):
    """With a time for each block; within four standard errors of both."""
    model = model_with(SIZE, schedule=schedule, head=head)
    number = number_blocks(TOKENS, None, None, SIZE).repeat(40, 1)
    losses = []
    for seed in range(50):
        many = TOKENS.repeat(40, 1)
        batch = corrupt(many, TREE, model.schedule, block_numbers=number, generator=generator(seed))
        assert batch.timesteps.shape == many.shape
        assert all(len(times.unique()) == 1 for times in batch.timesteps[:, :SIZE])
        with torch.no_grad():
            losses.append(model(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps).loss)
    loss, bound = torch.stack(losses), model.nelbo(TOKENS, num_samples=300, generator=generator())
    error = (loss.var() / len(loss) + bound.standard_error**2) ** 0.5
    assert abs(float(loss.mean()) - bound.value) < 4 * error < 0.4


def test_padding_prompts_and_segments_leave_a_bound_as_alone():
    model, samples = model_with(SIZE), {"num_samples": 30}
    mask = torch.ones_like(TOKENS)
    mask[:, :3] = 0
    padded = model.nelbo(TOKENS, attention_mask=mask, generator=generator(), **samples)
    alone = model.nelbo(TOKENS[:, 3:], generator=generator(), **samples)
    assert padded.value == pytest.approx(alone.value, rel=1e-6) and not padded.token_losses[:, :3].any()
    fixed = torch.zeros_like(TOKENS)
    fixed[:, : 2 * SIZE] = 1
    given = model.nelbo(TOKENS, fixed_mask=fixed, generator=generator(), num_samples=600)
    whole = model.nelbo(TOKENS, generator=generator(), num_samples=600)
    rest = whole.token_losses[:, 2 * SIZE :].sum() / given.num_tokens  # blocks before it are clean in either
    assert abs(given.value - float(rest)) < 4 * 2**0.5 * given.standard_error
    segments = torch.arange(16).expand(3, -1) // 8
    packed = model.nelbo(TOKENS, segment_ids=segments, generator=generator(), num_samples=600)
    apart = model.nelbo(torch.cat([TOKENS[:, :8], TOKENS[:, 8:]]), generator=generator(), num_samples=600)
    assert abs(packed.value - apart.value) < 4 * (packed.standard_error + apart.standard_error)


def test_later_blocks_do_not_change_what_is_before_them():
    model = model_with(SIZE)
    changed = TOKENS.clone()
    changed[:, 10:] = (changed[:, 10:] + 7) % 100
    with torch.no_grad():
        first, second = (model.model(ids).last_hidden_state for ids in (TOKENS, changed))
    assert torch.equal(first[:, :10], second[:, :10]) and not torch.equal(first[:, 10:], second[:, 10:])


def test_the_collator_gives_each_block_a_time_and_all_times_of_a_run_are_even():
    model = model_with(4)
    collator = DiffusionCollator(model.tree, model.schedule, seed=3, sampling_eps=0.0, block_size=4)
    features = [{"input_ids": TOKENS[0], "position": position} for position in range(64)]
    times = collator(features)["timesteps"]
    assert times.shape == (64, 16) and (times.view(64, 4, 4) == times.view(64, 4, 4)[..., :1]).all()
    values, counts = times[:, ::4].unique(return_counts=True)
    assert values.tolist() == pytest.approx([lost / 12 for lost in range(1, 13)], abs=1e-5)  # of 4 positions, 3 levels
    assert counts.max() - counts.min() <= 2
    apart = torch.cat([collator(features[:10])["timesteps"], collator(features[10:])["timesteps"]])
    assert torch.equal(apart, times)


def test_a_lean_model_with_blocks_has_the_same_gradients_and_its_step_is_planned():
    plain, lean = model_with(SIZE).train(), model_with(SIZE).train()
    lean.load_state_dict(plain.state_dict())
    make_lean(lean, recompute_mlp=1)
    number = number_blocks(TOKENS, None, None, SIZE)
    batch = vars(corrupt(TOKENS, TREE, plain.schedule, block_numbers=number, generator=generator()))
    for model in (plain, lean):
        model(**batch).loss.backward()
    for one, other in zip(plain.parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    peaks = [plan_memory(tiny_model(TREE, block_size=size).config, 4, 16).peak for size in (None, SIZE)]
    assert peaks[0] < peaks[1] < 3 * peaks[0]


def test_the_masked_model_trains_blocks_of_several_sizes_as_the_diffusion_model():
    model = model_with(SIZE)
    masked = TreeDiffForMaskedLM(model.config).double()
    masked.load_state_dict(model.state_dict())
    features = [{"input_ids": row, "position": place} for place, row in enumerate(TOKENS)]
    batch = DiffusionCollator(TREE, model.schedule, block_size=[SIZE, 16])(features)
    torch.testing.assert_close(masked(**batch).loss, model(**batch).loss, rtol=0, atol=0)


def test_the_bound_is_above_the_exact_likelihood_of_blocks():
    """Of a flat model, two blocks of two positions: the law of all orders in which each block is written."""
    model = model_with(2, VocabularyTree.flat(4), max_position_embeddings=4, initializer_range=1.0)
    texts = torch.cartesian_prod(*[torch.arange(4)] * 4)
    log_law = torch.zeros(len(texts), dtype=torch.float64)
    for first, second in ((0, 1), (2, 3)):
        orders = []
        for before, after in ((first, second), (second, first)):
            nodes, log_order = texts[:, : second + 1].clone(), 0
            nodes[:, [first, second]] = model.config.mask_token_id
            for place in (before, after):
                with torch.no_grad():
                    log_probs = model(nodes).logits[:, place].log_softmax(dim=-1)
                log_order = log_order + log_probs.gather(1, texts[:, place, None])[:, 0]
                nodes[:, place] = texts[:, place]
            orders.append(log_order)
        log_law += torch.stack(orders).logsumexp(dim=0) - torch.tensor(2.0).log()
    assert float(log_law.exp().sum()) == pytest.approx(1)
    estimate = model.nelbo(texts, num_samples=400, batch_size=512, generator=generator())
    bound = estimate.token_losses.sum(dim=1)
    error = 4 * estimate.standard_error * 4 * len(texts) ** 0.5  # of a text: four tokens, and one of many
    assert (bound > -log_law - error).all() and float((bound + log_law).mean()) > 0


def test_blocks_are_found_without_tables_of_blocks_by_positions():
    """Memory grows with the positions: 16 windows of 128 positions have 2,048 blocks of one."""
    model = model_with(1, max_position_embeddings=128)
    tokens = torch.randint(0, 100, (16, 128), generator=generator())
    mask = torch.ones_like(tokens)
    mask[3, :40] = mask[5, 100:] = mask[7, 50:60] = 0
    counted = mask.bool() & (torch.rand(mask.shape, generator=generator()) < 0.7)
    with Shapes(floating_only=False) as shapes:
        blocks = model._blocks(tokens, mask, None, counted)
    assert max(torch.Size(shape).numel() for _, shape in shapes.seen) <= 2 * tokens.numel()
    model.config.block_size = 5
    blocks, number = model._blocks(tokens, mask, None, counted), number_blocks(tokens, mask, None, 5)
    expected = [
        (text, ((number[text] == block) & mask[text].bool()).nonzero()[:, 0].tolist())
        for text in range(16)
        for block in range(int(number[text].max()) + 1)
        if (counted[text] & (number[text] == block)).any()
    ]
    found = [
        (int(text), [int(one) for one in row if one >= 0]) for text, row in zip(*vars(blocks).values(), strict=True)
    ]
    assert found == expected


def test_what_does_not_fit_blocks_is_refused():
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        tiny_model(TREE, block_size=0)
    model = model_with(SIZE)
    batch = corrupt(TOKENS, TREE, model.schedule, generator=generator())
    with pytest.raises(ValueError, match=r"of shape \(3, 16\) .* block_numbers"):
        model(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps)


def with_exact_posteriors(model, joint):
    """Let a model score children by their exact posterior, given the nodes of their block and the clean tokens before.

    `joint` has one axis of V for each position.
    """
    tree, size, length = model.tree, model.config.block_size, joint.ndim
    texts_OT = torch.cartesian_prod(*[torch.arange(tree.vocab_size)] * length)

    class Exact(type(model.model)):
        def forward(self, node_ids, attention_mask=None, segment_ids=None, clean_ids=None):
            below_BTV = tree.ancestors.T[tree.depth[node_ids]] == node_ids[..., None]
            same_BTV = torch.nn.functional.one_hot(clean_ids, tree.vocab_size).bool()
            token_BTV = torch.zeros(below_BTV.shape, dtype=torch.float64)
            for start in range(0, length, size):
                own = range(start, min(start + size, length))
                weight_BO = joint.flatten().expand(len(node_ids), -1).clone()
                for place in range(own.stop):
                    known_BTV = below_BTV if place in own else same_BTV
                    weight_BO *= known_BTV[:, place, texts_OT[:, place]]
                for place in own:
                    token_BTV[:, place].index_add_(1, texts_OT[:, place], weight_BO)
            node_BTV = tree.ancestors.T[(tree.depth[node_ids] + 1).clamp(max=tree.tree_depth)]
            child_BTK = torch.zeros(*node_ids.shape, tree.max_branching, dtype=torch.float64)
            child_BTK.scatter_add_(2, tree.child_slot[node_BTV], token_BTV)
            return SimpleNamespace(last_hidden_state=child_BTK.log().log_softmax(dim=-1))

    model.model.__class__ = Exact
    model.child_cross_entropy = lambda hidden, _, slots: -hidden.gather(-1, slots[..., None])[..., 0]
    return texts_OT


@pytest.mark.parametrize("schedule", ["sequential", "binomial", "poisson"])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_the_bound_of_bayes_optimal_blocks_is_the_entropy_of_the_data(tree, schedule):
    """Of five tokens at three positions in blocks of two, the last shorter; within four standard errors."""
    joint = random_joint(5, 5, 5)
    model = model_with(2, tree, schedule=schedule, max_position_embeddings=3)
    texts = with_exact_posteriors(model, joint)
    means = []
    for seed in range(8):
        nats = model.nelbo(texts, num_samples=12, batch_size=500, generator=generator(seed)).token_losses.sum(dim=1)
        means.append(float((joint.flatten() * nats).sum()))
    entropy = float(torch.special.entr(joint).sum())
    error = float(torch.tensor(means).std()) / len(means) ** 0.5
    assert abs(sum(means) / len(means) - entropy) < 4 * error < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("length", [16, 300])
def test_flex_attention_trains_blocks_as_sdpa_does(length):
    """Loss and gradients on a GPU, with padding and segments; kernels work by tiles of 128 positions."""
    results, tokens = [], torch.randint(0, 100, (3, length), generator=generator())
    masks = {"attention_mask": torch.ones_like(tokens), "segment_ids": torch.zeros_like(tokens)}
    masks["attention_mask"][1, :3] = masks["attention_mask"][2, -5:] = 0
    masks["segment_ids"][0, length // 3 :] = 1
    for attention in ("sdpa", "flex_attention"):
        model = tiny_model(
            TREE, block_size=SIZE, hidden_size=64, num_attention_heads=2, max_position_embeddings=length
        ).cuda()
        model.train().set_attn_implementation(attention)
        number = number_blocks(tokens, *masks.values(), SIZE)
        noise = {"block_numbers": number, "attention_mask": masks["attention_mask"], "generator": generator()}
        batch = vars(corrupt(tokens, TREE, model.schedule, **noise)) | masks
        loss = model(**{name: value.cuda() for name, value in batch.items()}).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
