"""Models with blocks: each block is a diffusion of its own, given the clean tokens before it."""

from types import SimpleNamespace

import pytest
import torch
from helpers.bayes_optimal import TREES, chi_square, random_joint
from helpers.models import tiny_model
from scipy.stats import chi2
from transformers import DynamicCache, StaticCache

from modeling_treediff import VocabularyTree, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import HEADS, SCHEDULES
from modeling_treediff.constraints import TokenConstraints
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


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
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
        torch.testing.assert_close(both[:, own], alone, rtol=0, atol=1e-6 if implementation == "eager" else 1e-12)


def test_a_block_of_the_whole_text_is_the_model_without_blocks():
    plain, blocks = model_with(None), model_with(16)
    blocks.load_state_dict(plain.state_dict())
    first, second = (model.nelbo(TOKENS, num_samples=3, generator=generator()) for model in (plain, blocks))
    assert first == second and torch.equal(first.token_losses, second.token_losses)
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


@pytest.mark.parametrize(("schedule", "head"), zip(SCHEDULES, HEADS, strict=True))
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
    assert abs(float(loss.mean()) - bound.value) < 4 * error < 0.3


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
    assert abs(given.value - float(rest)) < 4 * 2**0.5 * given.standard_error * 2
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


def test_texts_are_written_block_by_block_and_each_as_alone():
    """Prompts of different lengths, padded: blocks begin with each text, and one is finished before the next begins."""
    model, seen = model_with(SIZE), []
    prompts, mask = TOKENS[:2, :7].clone(), torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    together = model.generate(
        prompts,
        attention_mask=mask,
        max_new_tokens=9,
        num_steps=8,
        generator=[generator(1), generator(2)],
        callback=lambda step: seen.append(step.node_ids[0]),
    )
    for row, kept in ((0, slice(None)), (1, slice(3, None))):
        alone = model.generate(
            prompts[row : row + 1, kept], max_new_tokens=9, num_steps=8, generator=generator(row + 1)
        )
        assert torch.equal(alone[0], together[row, kept])
    for nodes in seen:
        is_open = nodes >= 100
        number = number_blocks(nodes[None], None, None, SIZE)[0]
        touched = number[(nodes < 100)].max()
        assert not is_open[number < touched].any()
    with pytest.raises(ValueError, match="blocks of its own, of 5 positions"):
        model.generate(max_new_tokens=8, block_length=4)


@pytest.mark.parametrize("unmasking", ["random", "first_hitting", "confidence"])
def test_a_cache_changes_no_token_and_looks_at_less(unmasking):
    """In fp64, for prompts of several lengths, with remasking; a static cache as a growing one."""
    model, looks = model_with(SIZE, head="node"), []
    model.model.register_forward_hook(lambda _, arguments, __: looks.append(arguments[0].shape[1]))
    prompts, mask = TOKENS[:, :6].clone(), torch.ones(3, 6, dtype=torch.long)
    mask[1, :3] = mask[2, :1] = 0
    prompts[0, 4] = TREE.root_id  # open within the prompt
    settings = {"max_new_tokens": 10, "num_steps": 9, "unmasking": unmasking, "remasking_steps": 3}
    settings |= {"return_dict_in_generate": True, "attention_mask": mask}
    without = model.generate(prompts, use_cache=False, generator=generator(), **settings)
    seen, looks[:] = sum(looks), []
    cached = model.generate(prompts, generator=generator(), **settings)
    static = StaticCache(config=model.config, max_cache_len=16)
    fixed = model.generate(prompts, generator=generator(), past_key_values=static, **settings)
    assert torch.equal(cached.sequences, without.sequences) and torch.equal(fixed.sequences, without.sequences)
    torch.testing.assert_close(cached.log_probs, without.log_probs, rtol=1e-9, atol=1e-12)
    assert cached.num_forward_passes == without.num_forward_passes and sum(looks) < 2 * 0.8 * seen
    heads = model.config.num_hidden_layers * 2 * model.config.hidden_size * 3 * 8  # bytes of a column
    assert without.cache_bytes is None and fixed.cache_bytes == 16 * heads and 0 < cached.cache_bytes < 16 * heads


@pytest.mark.parametrize("use_cache", [True, False])
def test_blocks_are_sampled_from_their_exact_law(use_cache):
    """Two blocks of two of four tokens, a level in a step: 20,000 texts pass a chi-square test at 99.9 %."""
    tree = VocabularyTree.from_paths([[0, 0], [0, 1], [1, 0], [1, 1]], 2)
    model = model_with(2, tree, schedule="sequential", max_position_embeddings=4, initializer_range=1.0)
    texts = torch.cartesian_prod(*[torch.arange(4)] * 4)
    log_law = torch.zeros(len(texts), dtype=torch.float64)
    for block in (slice(0, 2), slice(2, 4)):
        for level in (0, 1):  # what stands in the block when its level + 1 is drawn, behind the tokens before it
            nodes = texts[:, : block.stop].clone()
            nodes[:, block] = tree.ancestors[texts[:, block], level]
            with torch.no_grad():
                log_probs = model(nodes).logits[:, block].log_softmax(dim=-1)
            slot = tree.child_slot[tree.ancestors[texts[:, block], level + 1]]
            log_law += log_probs.gather(2, slot[..., None]).sum(dim=(1, 2))
    law = log_law.exp()
    assert float(law.sum()) == pytest.approx(1) and float(law.max()) > 3 / len(law)
    settings = {"max_new_tokens": 4, "num_steps": 2, "num_return_sequences": 20_000, "use_cache": use_cache}
    drawn = model.generate(generator=generator(), **settings)
    assert chi_square(drawn, law.view(4, 4, 4, 4)) < chi2.ppf(0.999, len(law) - 1)


def test_a_cache_holds_what_was_computed_for_clean_blocks():
    model, cache = model_with(SIZE), DynamicCache()
    with torch.no_grad():
        whole = model.model(TOKENS).last_hidden_state
        first = model.model(TOKENS[:, :10], past_key_values=cache).last_hidden_state
        second = model.model(TOKENS[:, 10:], past_key_values=cache)
    assert second.past_key_values is cache and cache.get_seq_length() == 16
    torch.testing.assert_close(torch.cat([first, second.last_hidden_state], dim=1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"block_length": 4}, {"block_length": 4, "max_new_tokens": 26}])
def test_the_approximate_cache_of_a_model_without_blocks_is_exact_in_one_layer(layers, settings):
    """Where keys and values are those of tokens alone; in two layers they have seen the block as it was at first."""
    model, looks = model_with(None, num_hidden_layers=layers, initializer_range=0.5), []
    model.model.register_forward_hook(lambda _, arguments, __: looks.append(arguments[0].shape[1]))
    prompts, mask = TOKENS[:, :6].clone(), torch.ones(3, 6, dtype=torch.long)
    mask[1, :3] = 0
    settings = {"max_new_tokens": 10, "num_steps": 9, "attention_mask": mask, **settings}
    settings["return_dict_in_generate"] = True
    exact = model.generate(prompts, generator=generator(), **settings)
    seen, looks[:] = sum(looks), []
    kept = model.generate(prompts, approximate_cache=True, generator=generator(), **settings)
    same = torch.equal(kept.sequences, exact.sequences) and torch.allclose(kept.log_probs, exact.log_probs)
    assert same == (layers == 1) and kept.cache_bytes > 0 and exact.cache_bytes is None
    assert kept.num_forward_passes == exact.num_forward_passes and sum(looks) < 0.85 * seen


def test_an_approximate_cache_sees_gaps_from_both_sides():
    """One pass fills each gap, so that nothing is old: the text is that without a cache."""
    model = model_with(None, VocabularyTree.flat(100))
    gaps = TOKENS.clone()
    gaps[:, 6:9] = model.config.mask_token_id
    texts = [model.generate(gaps, num_steps=1, generator=generator(), approximate_cache=kept) for kept in (False, True)]
    assert torch.equal(*texts) and (texts[0] < 100).all()


@pytest.mark.parametrize("given", [4, 5, 7])
def test_a_sliding_window_writes_as_from_the_last_blocks_alone(given):
    """16 positions of the model, blocks of 5 in a window of 11: from column 16 on two blocks, or three, are seen."""
    model, settings = model_with(SIZE), {"num_steps": 6}
    whole = model.generate(TOKENS[:1, :given], max_new_tokens=40, sliding_window=11, generator=generator(), **settings)
    source, text, start = generator(), TOKENS[:1, :given], 0
    while text.shape[1] < given + 40:
        end = min(text.shape[1] // SIZE * SIZE + SIZE, given + 40)
        if end - start > 16:
            start = end - 11
        first = -(-start // SIZE) * SIZE  # blocks that are seen whole
        new = model.generate(text[:, first:], max_new_tokens=end - text.shape[1], generator=source, **settings)
        text = torch.cat([text, new[:, text.shape[1] - first :]], dim=1)
    assert torch.equal(whole, text)


def test_a_sliding_window_with_a_cache_and_prompts_of_several_lengths():
    model, looks = model_with(SIZE, head="node"), []
    model.model.register_forward_hook(lambda _, arguments, __: looks.append(arguments[0].shape[1]))
    prompts, mask = TOKENS[:, :12].clone(), torch.ones(3, 12, dtype=torch.long)
    mask[1, :7] = mask[2, :1] = 0
    settings = {"max_new_tokens": 30, "num_steps": 9, "sliding_window": 12, "attention_mask": mask}
    without = model.generate(prompts, use_cache=False, generator=generator(), **settings)
    seen, looks[:] = sum(looks), []
    cached = model.generate(prompts, generator=generator(), **settings)
    room = StaticCache(config=model.config, max_cache_len=16)
    fixed = model.generate(prompts, generator=generator(), past_key_values=room, **settings)
    assert torch.equal(cached, without) and torch.equal(fixed, without) and sum(looks) < 2 * 0.8 * seen
    for row, padding in ((0, 0), (1, 7), (2, 1)):
        assert torch.equal(cached[row, :padding], prompts[row, :padding])


def test_a_text_beyond_the_model_is_refused_without_a_window_or_with_one_that_cannot_be():
    model, more = model_with(SIZE), {"max_new_tokens": 20}
    with pytest.raises(ValueError, match=r"20 positions are more than the model's 16.*\(sliding_window\)"):
        model.generate(**more)
    with pytest.raises(ValueError, match="sliding_window=17 is more than the 16"):
        model.generate(sliding_window=17, **more)
    with pytest.raises(ValueError, match="A block of the model, 5 positions, leaves no room in 5 positions"):
        model.generate(sliding_window=5, **more)
    prompts, mask = TOKENS[:2, :14].clone(), torch.ones(2, 14, dtype=torch.long)
    prompts[0, 1] = TREE.root_id
    mask[1, :13] = 0  # its first block comes when the first text's is long out of sight
    with pytest.raises(ValueError, match="over 16 positions before its block's end"):
        model.generate(prompts, attention_mask=mask, sliding_window=10, **more)


def test_a_model_writes_and_measures_in_other_blocks_if_its_config_says_so(tmp_path):
    """As one that was made with that size; a size, or None, can be given in loading."""
    model = model_with(SIZE)
    model.save_pretrained(tmp_path)
    for size in (None, 3, 16):
        made, loaded = model_with(size), type(model).from_pretrained(tmp_path, block_size=size).double()
        made.load_state_dict(model.state_dict())
        model.config.block_size = size
        for other in (loaded, model):
            one, two = (each.nelbo(TOKENS, num_samples=3, generator=generator()) for each in (made, other))
            assert one == two
            one, two = (each.generate(max_new_tokens=8, num_steps=9, generator=generator()) for each in (made, other))
            assert torch.equal(one, two)


def test_a_cache_that_does_not_fit_is_refused():
    model, plain, cache = model_with(SIZE), model_with(None), DynamicCache()
    with pytest.raises(ValueError, match="with approximate_cache for others"):
        plain.generate(past_key_values=cache)
    with torch.no_grad():
        model(TOKENS[:, :5], past_key_values=cache)
    with pytest.raises(ValueError, match=r"\(3, 2, 32, .*not \(2, 2, 32"):
        model(TOKENS[:2, 5:], past_key_values=cache)
    with pytest.raises(ValueError, match="not .*3, 1,"):
        model_with(SIZE, num_hidden_layers=1)(TOKENS[:, 5:], past_key_values=cache)
    with pytest.raises(ValueError, match="must be an empty cache"):
        model.generate(TOKENS[:, :5], past_key_values=cache)
    with pytest.raises(ValueError, match="is exact: leave out approximate_cache"):
        model.generate(max_new_tokens=4, approximate_cache=True)
    with pytest.raises(ValueError, match="leave out past_key_values, or labels"):
        model(TOKENS, labels=TOKENS, timesteps=torch.ones(3, 16), past_key_values=cache)
    with pytest.raises(ValueError, match="17 positions are more than the model's 16"):
        model(torch.cat([TOKENS[:, 5:], TOKENS[:, :1]], dim=1), past_key_values=cache)


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


@pytest.mark.parametrize("sliding", [False, True])
def test_constraints_streams_and_callbacks_are_the_same_with_a_cache(sliding):
    """Bad words of two tokens, weighed in the text as it stands; finished blocks are streamed, none of them open."""
    model, new = model_with(SIZE, head="node"), 24 if sliding else 10
    settings = {"max_new_tokens": new, "num_steps": 9, "unmasking": "confidence", "suppress_tokens": [*range(0, 90, 2)]}
    settings |= {"sliding_window": 12} if sliding else {}
    plain = model.generate(TOKENS[:1, :6], generator=generator(), **settings)[0]
    words = [plain[place : place + 2].tolist() for place in (7, 10, 12)]
    texts, passes = [], []
    for use_cache in (True, False):
        streamed, seen = [], []
        text = model.generate(
            TOKENS[:1, :6],
            constraints=TokenConstraints(bad_words_ids=words, exact=True),
            streamer=SimpleNamespace(put=lambda value, to=streamed: to.append(value), end=lambda: None),
            callback=lambda step, to=seen: to.append(step.node_ids),
            generator=generator(),
            use_cache=use_cache,
            **settings,
        )
        texts.append(text[0])
        passes.append(len(seen))
        assert torch.equal(torch.cat(streamed, dim=1), text) and (text < 100).all()
        assert torch.equal(seen[-1], text) and len(streamed) == 1 + -(-(6 + new) // SIZE) - 1
    assert torch.equal(*texts) and passes[0] == passes[1] and not torch.equal(texts[0], plain)
    pairs = [list(pair) for pair in zip(texts[0][6:-1].tolist(), texts[0][7:].tolist(), strict=True)]
    assert not any(word in pairs for word in words) and not set(texts[0][6:].tolist()) & {*range(0, 90, 2)}


@pytest.mark.gpu
def test_flex_attention_trains_blocks_as_sdpa_does():
    """Loss and gradients on a GPU; on a CPU flex attention has no backward."""
    results = []
    for attention in ("sdpa", "flex_attention"):
        model = tiny_model(TREE, block_size=SIZE, hidden_size=64, num_attention_heads=2).cuda().train()
        model.set_attn_implementation(attention)
        number = number_blocks(TOKENS, None, None, SIZE)
        batch = vars(corrupt(TOKENS, TREE, model.schedule, block_numbers=number, generator=generator()))
        loss = model(**{name: value.cuda() for name, value in batch.items()}).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
