"""Generation block by block: caches, windows, streams and constraints."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.attentions import ATTENTIONS, uncompiled
from helpers.bayes_optimal import chi_square
from helpers.models import tiny_model
from scipy.stats import chi2
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.constraints import TokenConstraints
from modeling_treediff.diffusion_process import number_blocks
from modeling_treediff.generation_config_treediff import UNMASKING

TREE = random_tree(100, branching=5, depth=3, seed=1)
TOKENS = torch.randint(0, 100, (3, 16), generator=torch.Generator().manual_seed(0))
SIZE = 5  # which does not divide 16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_with(block_size, tree=TREE, **fields):
    return tiny_model(tree, block_size=block_size, **fields).double().eval()


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


@pytest.mark.parametrize(
    "settings",
    [*({"unmasking": unmasking} for unmasking in UNMASKING), {"remasking_rate": 1.0}, {"guidance_scale": 2.0}],
    ids=str,
)
def test_a_cache_changes_no_token_and_looks_at_less(settings):
    """In fp64, for prompts of several lengths, with remasking; a static cache as a growing one."""
    model, looks = model_with(SIZE, head="node"), []
    model.model.register_forward_hook(lambda _, arguments, __: looks.append(arguments[0].shape[1]))
    prompts, mask = TOKENS[:, :6].clone(), torch.ones(3, 6, dtype=torch.long)
    mask[1, :3] = mask[2, :1] = 0
    prompts[0, 4] = TREE.root_id  # open within the prompt
    settings = settings | {"max_new_tokens": 10, "num_steps": 9, "remasking_steps": 3}
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


@pytest.mark.parametrize("layers", [1, 2])
def test_an_approximate_cache_sees_gaps_from_both_sides(layers):
    """Exact in one layer, though what is behind the gaps has to be seen in each of nine passes."""
    model, gaps = model_with(None, num_hidden_layers=layers, initializer_range=0.5), TOKENS.clone()
    gaps[:, [6, 7, 11]] = model.config.mask_token_id
    settings = {"num_steps": 9, "return_dict_in_generate": True}
    exact, kept = (
        model.generate(gaps, generator=generator(), approximate_cache=kept, **settings) for kept in (False, True)
    )
    same = torch.equal(exact.sequences, kept.sequences) and torch.allclose(exact.log_probs, kept.log_probs)
    assert same == (layers == 1) and kept.num_forward_passes == exact.num_forward_passes > 3


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


def test_open_positions_out_of_a_windows_sight_are_refused():
    """Prompts of unequal lengths end their blocks at different places."""
    mask = torch.ones(2, 14, dtype=torch.long)
    mask[1, :2] = 0
    with pytest.raises(ValueError, match="over 6 positions before .*out of sight: .*widen sliding_window"):
        model_with(SIZE).generate(TOKENS[:2, :14], mask, max_new_tokens=10, num_steps=6, sliding_window=6)


def test_a_mask_of_truth_values_serves_behind_a_cache():
    model, cache, mask = model_with(SIZE), DynamicCache(), torch.ones(3, 10, dtype=torch.bool)
    with torch.no_grad():
        model(TOKENS[:, :5], mask[:, :5], past_key_values=cache)
        behind = model(TOKENS[:, 5:10], mask, past_key_values=cache).logits
        torch.testing.assert_close(behind, model(TOKENS[:, :10]).logits[:, 5:])


def test_a_text_beyond_the_model_is_refused_without_a_window_or_with_one_that_cannot_be():
    model, more = model_with(SIZE), {"max_new_tokens": 20}
    with pytest.raises(ValueError, match=r"20 positions are more than the model's 16.*\(sliding_window\)"):
        model.generate(**more)
    with pytest.raises(ValueError, match="sliding_window=17 is more than the 16"):
        model.generate(sliding_window=17, **more)
    with pytest.raises(ValueError, match="A block of the model, 5 positions, leaves no room in 5 positions"):
        model.generate(sliding_window=5, **more)
    short = {"max_new_tokens": 10, "generator": generator()}  # which needs no window
    assert torch.equal(model.generate(sliding_window=4, **short), model.generate(**short | {"generator": generator()}))
    prompts, mask = TOKENS[:2, :14].clone(), torch.ones(2, 14, dtype=torch.long)
    prompts[0, 1] = TREE.root_id
    mask[1, :13] = 0  # its first block comes when the first text's is long out of sight
    with pytest.raises(ValueError, match="over 10 positions before its block's end"):
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


@uncompiled
@pytest.mark.parametrize("attention", [name for name in ATTENTIONS if name != "sdpa"])
def test_every_attention_writes_the_same_texts_with_every_cache(attention):
    """Of prompts of two lengths, as sdpa does without a cache, also where a block is seen again by a static cache."""
    model, mask = model_with(SIZE), torch.ones(3, 6, dtype=torch.long)
    mask[1, :2] = 0

    def write(**how):
        settings = {"attention_mask": mask, "max_new_tokens": 10, "num_steps": 9, "remasking_steps": 3}
        return model.generate(TOKENS[:, :6], generator=generator(), **settings, **how)

    expected = write(use_cache=False)
    model.set_attn_implementation(attention)
    static = StaticCache(config=model.config, max_cache_len=16)
    assert all(torch.equal(write(**how), expected) for how in ({"use_cache": False}, {}, {"past_key_values": static}))


def test_a_cache_that_does_not_fit_is_refused():
    model, plain, cache = model_with(SIZE), model_with(None), DynamicCache()
    with pytest.raises(ValueError, match="with approximate_cache for others"):
        plain.generate(past_key_values=cache)
    with pytest.raises(ValueError, match="past_key_values must be an empty cache"):
        model.generate(past_key_values=())
    with torch.no_grad():
        model(TOKENS[:, :5], past_key_values=cache)
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 8, .*not \(2, 2, 4, 8"):
        model(TOKENS[:2, 5:], past_key_values=cache)
    with pytest.raises(ValueError, match="not .*3, 1,"):
        model_with(SIZE, num_hidden_layers=1)(TOKENS[:, 5:], past_key_values=cache)
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 8, .*not \(3, 2, 2, 16"):
        model_with(SIZE, num_attention_heads=2)(TOKENS[:, 5:], past_key_values=cache)
    with pytest.raises(ValueError, match="Masks cover 5 positions, cache and input_ids 10"):
        model(TOKENS[:, 5:10], attention_mask=torch.ones(3, 5).long(), past_key_values=cache)
    with pytest.raises(ValueError, match="Masks cover 12 positions, cache and input_ids 10"):
        model(TOKENS[:, 5:10], attention_mask=torch.ones(3, 12).long(), past_key_values=cache)
    for other in ((), EncoderDecoderCache(DynamicCache(), DynamicCache())):
        with pytest.raises(ValueError, match=f"a decoder's cache of transformers, got {type(other).__name__}"):
            model(TOKENS, past_key_values=other)
    windowed = DynamicCache()
    windowed.layers = [DynamicSlidingWindowLayer(sliding_window=4) for _ in range(2)]
    lazy = Cache(layer_class_to_replicate=partial(DynamicSlidingWindowLayer, sliding_window=4))
    for other in (windowed, lazy):
        with pytest.raises(ValueError, match="has layers of .*DynamicSlidingWindowLayer.*: take a DynamicCache"):
            model(TOKENS, past_key_values=other)
    small = StaticCache(config=model.config, max_cache_len=8)
    with pytest.raises(ValueError, match="has room for 8 positions, not for 10"):
        model.generate(TOKENS[:, :5], past_key_values=small, max_new_tokens=6)
    used = StaticCache(config=model.config, max_cache_len=16)
    model.generate(TOKENS[:, :5], past_key_values=used)
    used.reset()
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 8, .*not \(1, 2, 4, 8"):
        model.generate(TOKENS[:1, :5], past_key_values=used)
    few = StaticCache(config=model_with(SIZE, num_hidden_layers=1).config, max_cache_len=16)
    with pytest.raises(ValueError, match="make a new one for these texts"):
        model.generate(TOKENS[:, :5], past_key_values=few)
    with pytest.raises(ValueError, match="must be an empty cache"):
        model.generate(TOKENS[:, :5], past_key_values=cache)
    with pytest.raises(ValueError, match="is exact: leave out approximate_cache"):
        model.generate(max_new_tokens=4, approximate_cache=True)
    with pytest.raises(ValueError, match="leave out past_key_values, or labels"):
        model(TOKENS, labels=TOKENS, timesteps=torch.ones(3, 16), past_key_values=cache)
    with pytest.raises(ValueError, match="17 positions are more than the model's 16"):
        model(torch.cat([TOKENS[:, 5:], TOKENS[:, :1]], dim=1), past_key_values=cache)


def test_guidance_hides_what_is_given_in_blocks_as_training_has_them():
    """The second pass sees no finished block that is given whole, and the root in the current one alone."""
    model, seen = model_with(SIZE), []
    model.model.register_forward_hook(
        lambda _, arguments, __: seen.append((arguments[0][0], None if arguments[1] is None else arguments[1][0]))
    )
    model.generate(
        TOKENS[:1, :12], max_new_tokens=4, num_steps=6, guidance_scale=2.0, use_cache=False, generator=generator()
    )
    guided, alone = seen[0], seen[1]  # the third block: two tokens are given in it
    assert guided[1] is None and torch.equal(guided[0][:12], TOKENS[0, :12])
    assert alone[1].tolist() == [0] * 10 + [1] * 5 and (alone[0][10:12] == TREE.root_id).all()
    last = seen[-1]  # the fourth block sees the third, which is not all given, as it stands
    assert last[1].tolist() == [0] * 10 + [1] * 6 and (last[0][10:15] < 100).all()
    torch.testing.assert_close(last[0][10:12], TOKENS[0, 10:12])


def test_guidance_hides_a_given_block_beside_one_that_the_window_has_cut():
    """Columns of a block that begins before the window are seen by nobody, whatever was written there."""
    model, seen, prompt = model_with(SIZE), [], TOKENS[:1, :15].clone()
    prompt[0, 9] = TREE.root_id
    model.model.register_forward_hook(lambda _, arguments, __: seen.append(arguments[1]))
    settings = {"max_new_tokens": 5, "sliding_window": 11, "guidance_scale": 2.0, "use_cache": False}
    model.generate(prompt, num_steps=6, generator=generator(), **settings)
    guided, alone = (mask[0].tolist() for mask in seen[-2:])  # of columns 9 to 19; 10 to 14 are given whole
    assert guided == [0] + [1] * 10 and alone == [0] * 6 + [1] * 5


@pytest.mark.parametrize("padding", [slice(0, 3), slice(9, 12)], ids=["left", "right"])
def test_a_guided_text_is_the_same_alone_and_beside_a_longer_one(padding):
    model, mask = model_with(SIZE), torch.ones(2, 12, dtype=torch.long)
    mask[1, padding] = 0
    settings = {"max_new_tokens": 4, "num_steps": 8, "guidance_scale": 3.0}
    together = model.generate(TOKENS[:2, :12], attention_mask=mask, generator=[generator(1), generator(2)], **settings)
    kept = torch.cat([mask[1] != 0, torch.ones(4, dtype=torch.bool)])
    alone = model.generate(TOKENS[1:2, :12][:, mask[1] != 0], generator=generator(2), **settings)
    assert torch.equal(alone[0], together[1, kept])


def test_guidance_with_a_scale_of_one_changes_nothing_with_a_cache_or_without():
    model, texts = model_with(SIZE, head="node"), []
    for scale, use_cache in ((None, True), (1.0, True), (1.0, False), (3.0, True), (3.0, False)):
        settings = {"max_new_tokens": 9, "num_steps": 8, "guidance_scale": scale, "use_cache": use_cache}
        texts.append(model.generate(TOKENS[:, :7], generator=generator(), **settings))
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])
    assert torch.equal(texts[3], texts[4]) and not torch.equal(texts[0], texts[3])


def test_streamers_get_all_of_an_infilled_text_once_and_only_tokens():
    model, gaps = model_with(SIZE), TOKENS[:2].clone()
    gaps[0, 12] = TREE.root_id
    gaps[1, [1, 6, 12]] = TREE.root_id
    for texts in (gaps, gaps[:1]):
        put = []
        text = model.generate(texts, streamer=SimpleNamespace(put=put.append, end=lambda: None), generator=generator())
        assert torch.equal(torch.cat(put, dim=1), text) and all((part < 100).all() for part in put)


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
