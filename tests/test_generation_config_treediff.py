"""Every other option of `generate` changes what it should and nothing else; a batch changes nothing."""

import itertools
import math
import re

import pytest
import torch
import torch._dynamo.testing
from helpers.models import SEQUENTIAL, TREES, generate, generate_recorded, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TextDiffusionStreamer, TextStreamer

from modeling_treediff import TreeDiffGenerationConfig, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.generation_config_treediff import UNMASKING
from modeling_treediff.sampling_treediff import ChildSampler, draw_slots


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# ---- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("unmasking", UNMASKING)
@pytest.mark.parametrize("fields", [{}, {"schedule": "binomial", "head": "node"}], ids=["sequential", "binomial"])
def test_a_batch_gives_what_each_text_gives_alone(tree, fields, unmasking, side):
    """In double precision but for the rotation tables, which know absolute places; no draw is that close to an edge."""
    model = tiny_model(tree, **fields).double()
    prompts = [[5, 6, 7, 8, 9], [3, 100, 4], [], [int(tree.ancestors[11, 1])]]
    settings = {
        "num_steps": 9,
        "unmasking": unmasking,
        "remasking_steps": 3,
        "remasking_fraction": 0.4,
        "max_new_tokens": 6,
        "return_dict_in_generate": True,
        "num_return_sequences": 2,
    }
    ids = torch.full((4, 5), 77)
    mask = torch.zeros_like(ids)
    for text, prompt in enumerate(prompts):
        columns = slice(5 - len(prompt), 5) if side == "left" else slice(len(prompt))
        ids[text, columns], mask[text, columns] = torch.tensor(prompt, dtype=torch.long), 1
    together = model.generate(ids, attention_mask=mask, generator=seeded(*range(8)), **settings)
    assert torch.equal(together.sequences[:, :5][mask.repeat_interleave(2, 0) == 0], torch.full((22,), 77))
    for text, prompt in enumerate(prompts):
        start = torch.tensor([prompt], dtype=torch.long)
        alone = model.generate(start, generator=seeded(2 * text, 2 * text + 1), **settings)
        both = slice(2 * text, 2 * text + 2)
        kept = torch.cat([mask[text], torch.ones(6, dtype=torch.long)]).bool()
        assert torch.equal(alone.sequences, together.sequences[both][:, kept])
        torch.testing.assert_close(alone.log_probs, together.log_probs[both][:, kept], rtol=0, atol=1e-6)
        assert not together.log_probs[both][:, ~kept].any()


@pytest.mark.parametrize(("dtype", "least"), [("float32", 24), ("float16", 12), ("bfloat16", 12)])
def test_rounding_of_half_precision_can_tell_a_batch_from_a_text_alone(tree, dtype, least):
    """Of 24 texts, all are the same in single precision; docs/how_to/generation.md says so."""
    model = tiny_model(tree, **SEQUENTIAL).to(getattr(torch, dtype))
    settings = {"max_new_tokens": 8, "num_steps": 6}
    together = model.generate(num_return_sequences=24, generator=seeded(*range(24)), **settings)
    alone = torch.cat([model.generate(generator=seeded(seed), **settings) for seed in range(24)])
    assert int((together == alone).all(dim=1).sum()) >= least


def test_holes_in_infilling_keep_their_places_under_padding(model):
    mask_id = model.config.mask_token_id
    start = torch.tensor([[4, mask_id, 6, mask_id, 0, 0], [0, 0, mask_id, 5, mask_id, 9]])
    filled = model.generate(start, attention_mask=torch.tensor([[1] * 4 + [0] * 2, [0] * 2 + [1] * 4]), num_steps=6)
    assert torch.equal(filled[start != mask_id], start[start != mask_id]) and (filled < mask_id).all()


# ---- blocks and ends --------------------------------------------------------------------------------------------


def test_a_block_leaves_room_for_what_stands_before(model):
    for settings in ({"max_new_tokens": 32}, {"input_ids": torch.tensor([[7]]), "max_new_tokens": 16}):
        with pytest.raises(ValueError, match="block_length=16 leaves no room in 16 positions"):
            model.generate(block_length=16, num_steps=3, **settings)


@pytest.mark.parametrize("unmasking", UNMASKING)
def test_blocks_write_texts_longer_than_the_window(model, unmasking):
    """16 positions fit the model; 40 tokens in blocks of 6, the last of 4, after a prompt of 3 with a hole."""
    start = torch.tensor([[1, 2, model.config.mask_token_id]])
    settings = {"max_new_tokens": 40, "block_length": 6, "num_steps": 6, "unmasking": unmasking}
    result = generate_recorded(model, input_ids=start, **settings)
    assert result.sequences.shape == (1, 43) and torch.equal(result.sequences[:, :2], start[:, :2])
    assert (result.depths[-1] == 3).all()
    if unmasking == "confidence":
        assert result.num_forward_passes == 7 * 6
    for before, after in itertools.pairwise(result.history):
        changed = (before != after)[0].nonzero()[:, 0]
        done = int((before >= 100)[0].nonzero()[0])  # everything before is finished
        assert len(changed) == 0 or (changed.min() >= done and changed.max() < 3 + 6 * -(-max(done - 2, 1) // 6))


def test_a_block_sees_the_last_positions_before_it(model):
    seen = []
    hook = model.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    text = model.generate(max_new_tokens=30, block_length=10, num_steps=3)
    hook.remove()
    assert [ids.shape[1] for ids in seen] == [10] * 3 + [16] * 6
    assert torch.equal(seen[-1][:, :6], text[:, 14:20])


def test_one_block_is_no_block(model):
    texts = [generate_recorded(model, max_new_tokens=12, block_length=length).sequences for length in (None, 12, 16)]
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])


def test_the_first_end_of_text_ends_it(model):
    free = generate_recorded(model, max_new_tokens=16, num_return_sequences=8)
    eos = int(free.sequences.flatten().mode().values)
    ended = generate_recorded(model, max_new_tokens=16, num_return_sequences=8, eos_token_id=eos, pad_token_id=99)
    assert ended.num_forward_passes == free.num_forward_passes
    for text, cut in zip(free.sequences.tolist(), ended.sequences.tolist(), strict=True):
        place = text.index(eos) if eos in text else 15
        assert cut == text[: place + 1] + [99] * (15 - place)
    assert any(text.count(99) for text in ended.sequences.tolist())
    assert torch.equal(ended.history[-1], ended.sequences)
    without = {"eos_token_id": eos, "pad_token_id": 99, "eos_early_stop": False}
    assert torch.equal(
        generate_recorded(model, max_new_tokens=16, num_return_sequences=8, **without).sequences, free.sequences
    )
    several = generate_recorded(model, max_new_tokens=16, num_return_sequences=8, eos_token_id=[eos, eos]).sequences
    assert torch.equal(several == eos, (ended.sequences == eos) | (ended.sequences == 99))
    prompt = torch.tensor([[eos, 5, eos]])
    assert torch.equal(
        generate_recorded(model, input_ids=prompt, max_new_tokens=5, eos_token_id=eos).sequences[:, :3], prompt
    )


def test_what_is_cut_off_has_no_log_probs_and_is_told(model):
    eos, seen = int(generate_recorded(model, max_new_tokens=16).sequences[0, 4]), []
    result = generate_recorded(model, max_new_tokens=16, eos_token_id=eos, pad_token_id=99, callback=seen.append)
    cut = result.sequences == 99
    assert cut.any() and not result.log_probs[cut].any() and result.log_probs[~cut].all()
    assert torch.equal(seen[-1].node_ids, result.sequences) and torch.equal(seen[-1].moved, cut)


def test_special_tokens_are_the_models_own_unless_named(tree):
    model = tiny_model(tree, eos_token_id=0, pad_token_id=42)
    settings = {"max_new_tokens": 8, "num_steps": 3, "suppress_tokens": list(range(1, 100))}
    own = model.generate(generation_config=TreeDiffGenerationConfig(**settings))
    assert own.tolist() == [[0] + [42] * 7]
    other = model.generate(generation_config=TreeDiffGenerationConfig(pad_token_id=7, **settings))
    assert other.tolist() == [[0] + [7] * 7]


def test_blocks_after_the_end_are_not_written(model):
    settings = {"max_new_tokens": 64, "block_length": 8, "num_steps": 3, "suppress_tokens": list(range(1, 100))}
    result = generate_recorded(model, eos_token_id=0, pad_token_id=42, **settings)
    assert result.sequences.tolist() == [[0] + [42] * 63] and result.num_forward_passes == 3 + 1


# ---- draws ------------------------------------------------------------------------------------------------------


def test_temperature_of_one_level_leaves_the_others_alone():
    """Almost greedy at the second level, as before at the first; shares of 8,000 draws within 5 standard deviations."""
    tree = random_tree(9, 3, 2, seed=0)
    model = tiny_model(tree)
    texts = model.generate(
        max_new_tokens=1, num_steps=2, temperature=[1.0, 1e-4], num_return_sequences=8000,
        generator=torch.Generator().manual_seed(0),
    )[:, 0]  # fmt: skip
    p = model(torch.tensor([[9]])).logits[0, 0].double().softmax(-1).detach()
    for slot, node in enumerate(tree.children[0].tolist()):
        likeliest = tree.children[node - 9, model(torch.tensor([[node]])).logits[0, 0].argmax()]
        below = tree.ancestors[texts, 1] == node
        assert (texts[below] == likeliest).all()
        assert abs(float(below.double().mean() - p[slot])) <= 5 * float(p[slot] * (1 - p[slot]) / 8000) ** 0.5
    same = [generate_recorded(model, temperature=one).sequences for one in (0.7, [0.7, 0.7])]
    assert torch.equal(*same)
    with pytest.raises(ValueError, match="temperature has 3 numbers, the tree 2 levels"):
        model.generate(temperature=[1.0, 1.0, 1.0])


def test_low_precision_cannot_draw_the_rare():
    """A slot of probability 2^-27 is drawn by a number close enough to 1, which single precision does not have."""
    rare = torch.tensor([[1 - 2.0**-27, 2.0**-27]], dtype=torch.float64)
    number = torch.tensor([1 - 2.0**-30], dtype=torch.float64)
    assert draw_slots(rare, number).item() == 1 and draw_slots(rare.float(), number).item() == 0
    tree = VocabularyTree.flat(4)
    for name in ("float32", "float64"):
        chooser = ChildSampler(TreeDiffGenerationConfig(sampling_dtype=name), tree)
        choice = chooser(torch.tensor([4]), torch.zeros(1, 4, dtype=torch.bfloat16), torch.tensor([0.3]), None)
        assert choice.log_prob.dtype == getattr(torch, name) and choice.child.item() == 1


@pytest.mark.parametrize("unmasking", UNMASKING)
def test_numbers_to_draw_with_are_those_asked_for(model, unmasking):
    settings = {"unmasking": unmasking, "max_new_tokens": 8, "num_steps": 9, "remasking_steps": 2}
    for name in ("float32", "float64"):
        for more in ({}, {"suppress_tokens": [3]}, {"do_sample": False}):
            result = generate_recorded(model, sampling_dtype=name, **settings, **more)
            assert result.log_probs.dtype == getattr(torch, name) and (result.log_probs < 0).all()


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_vanishing_temperature_is_greedy(model, name):
    greedy = generate_recorded(model, do_sample=False, unmasking="margin", num_steps=6).sequences
    for temperature in (1e-6, 1e-40, 5e-324):
        cold = generate_recorded(
            model, temperature=temperature, unmasking="margin", num_steps=6, sampling_dtype=name
        ).sequences
        assert torch.equal(cold, greedy)


def test_scores_that_are_no_numbers_are_refused(tree):
    model = tiny_model(tree, **SEQUENTIAL)
    torch.nn.init.constant_(next(model.head.parameters()), torch.nan)
    for do_sample in (True, False):
        with pytest.raises(ValueError, match="scores that are not numbers at 4 positions"):
            model.generate(max_new_tokens=4, num_steps=3, do_sample=do_sample)


def test_nothing_of_probability_zero_is_drawn():
    p = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]] * 3, dtype=torch.float64)
    assert draw_slots(p, torch.tensor([0.0, 0.5, 1.0])).tolist() == [1, 3, 3]


def test_log_probs_are_those_of_the_draws(model):
    result = generate_recorded(model, max_new_tokens=6, num_steps=18, temperature=0.5, unmasking="first_hitting")
    expected = torch.zeros(1, 6, 3, dtype=torch.float64)
    for before, after in itertools.pairwise(result.history):
        place = int((before != after)[0].nonzero())
        log_p = model(before).logits[0, place].detach().double().log_softmax(-1)
        expected[0, place, model.tree.depth[before[0, place]]] = log_p[model.tree.child_slot[after[0, place]]]
    torch.testing.assert_close(result.log_probs, expected, rtol=0, atol=1e-6)


# ---- watching ---------------------------------------------------------------------------------------------------


class Listener:
    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append(("put", value))

    def put_draft(self, value):
        self.calls.append(("draft", value))

    def end(self):
        self.calls.append(("end", None))


def test_streamers_get_prompt_drafts_and_blocks(model):
    streamer = Listener()
    text = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, block_length=4, num_steps=3, streamer=streamer)
    kinds = [kind for kind, _ in streamer.calls]
    assert kinds == ["put", "draft"] + ["draft"] * 3 + ["put"] + ["draft"] * 3 + ["put", "end"]
    put = torch.cat([value for kind, value in streamer.calls if kind == "put"], dim=1)
    assert torch.equal(put, text)
    drafts = [value for kind, value in streamer.calls if kind == "draft"]
    assert (drafts[0] == model.config.mask_token_id).all()
    assert all((draft <= model.config.mask_token_id).all() for draft in drafts)
    infill = Listener()
    model.generate(torch.tensor([[1, 100, 3]]), num_steps=3, streamer=infill)
    assert infill.calls[0][1].tolist() == [[1]] and infill.calls[-2][1].shape == (1, 2)


def test_transformers_own_streamers_print_the_text(tokenizer, capsys):
    model = tiny_model(random_tree(len(tokenizer), 91, 2, seed=0))
    prompt = torch.tensor([tokenizer("The state of the Union is").input_ids])
    for streamer in (TextDiffusionStreamer(tokenizer), TextStreamer(tokenizer)):
        text = model.generate(prompt, max_new_tokens=6, num_steps=4, streamer=streamer)
        assert tokenizer.decode(text[0]).split()[-1] in capsys.readouterr().out


def test_callbacks_see_every_pass_in_the_layout_of_the_result(model):
    seen: list = []
    start = torch.tensor([[1, 2, 3], [4, 0, 0]])
    result = generate_recorded(
        model, input_ids=start, attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]]), max_new_tokens=4, num_steps=5,
        callback=seen.append, unmasking="margin",
    )  # fmt: skip
    assert [step.num_forward_passes for step in seen] == list(range(6))
    assert torch.equal(seen[0].node_ids[:, :3], start) and not seen[0].moved.any()
    for before, after in itertools.pairwise(seen):
        assert torch.equal(after.moved, before.node_ids != after.node_ids) and after.moved.any()
    assert torch.equal(seen[-1].node_ids, result.sequences)


def test_what_a_callback_is_given_is_its_own(model):
    def moved(callback):
        counts = []
        model.generate(num_steps=6, generator=seeded(0)[0], callback=lambda step: counts.append(callback(step)))
        return counts

    assert moved(lambda step: (int(step.moved.sum()), step.node_ids.zero_())[0]) == moved(
        lambda step: int(step.moved.sum())
    )


def test_watching_changes_nothing(model):
    plain = model.generate(num_steps=6, generator=torch.Generator().manual_seed(0))
    watched = generate_recorded(model, num_steps=6, callback=lambda step: step.node_ids.zero_(), streamer=Listener())
    assert torch.equal(plain, watched.sequences)
    assert all(
        torch.equal(model.tree.depth[nodes], depth)
        for nodes, depth in zip(watched.history, watched.depths, strict=True)
    )


# ---- cost -------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("head", ["child", "node"])
def test_no_tensor_is_as_large_as_logits_over_the_vocabulary(head):
    tree = random_tree(3000, 55, 2, seed=0)
    model = tiny_model(tree, head=head, head_rank=4)
    settings = {"num_steps": 8, "remasking_steps": 2, "suppress_tokens": [5]}
    sizes = []
    for count in (8, 16):
        with LargestTensor() as largest:
            generate(model, num_return_sequences=count, unmasking="confidence", bad_words_ids=[[1, 2]], **settings)
        sizes.append(largest.numel)
    assert max(sizes) < 8 * 16 * 3000 / 2
    # What grows with the batch is far smaller still: the largest are tables of the tree and of its nodes.
    assert sizes[1] - sizes[0] < 8 * 16 * 3000 / 8


@pytest.mark.parametrize("fields", [{}, {"head": "node"}, {"schedule": "binomial"}], ids=["child", "node", "binomial"])
def test_the_denoising_step_compiles_whole_and_once(tree, fields):
    model = tiny_model(tree, **fields)
    settings = {"num_steps": 9, "remasking_steps": 3, "num_return_sequences": 2, "unmasking": "confidence"}
    plain = generate_recorded(model, **settings).sequences
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model.model.forward = torch.compile(model.model.forward, backend=counter, fullgraph=True)
    assert torch.equal(generate_recorded(model, **settings).sequences, plain)
    assert counter.frame_count == 1
    torch._dynamo.reset()


ENTROPY = {"unmasking": "entropy", "entropy_bound": 0.5, "threshold": 0.4}
FLOATS = "top_p threshold entropy_bound guidance_scale confidence_threshold"
BOOLS = "do_sample output_history eos_early_stop return_dict_in_generate use_cache approximate_cache"
INTS = "max_new_tokens block_length sliding_window stability_threshold top_k bos_token_id pad_token_id"
WRONG_TYPES = {
    "bool": (["yes", 1, None], BOOLS),
    "int": ([True, 2.0, "3", None], "num_steps num_return_sequences remasking_steps remasking_levels"),
    "int | None": ([True, 2.0, "3", [1], b"1"], INTS),
    "int | list[int] | None": ([True, "<eos>", [1.0], range(3), {1}], "eos_token_id"),
    "list[int] | None": ([3, "12", range(3), [True], torch.tensor([1]), b"12"], "allowed_tokens suppress_tokens"),
    "float": ([True, "0.1", None, math.nan], "remasking_fraction remasking_rate"),
    "float | list[float]": ([b"1", "1", None, True, range(1, 3), math.inf, torch.ones(2)], "temperature"),
    "float | None": (["0.9", b"1", [0.9], math.nan], FLOATS),
    "str": ([None, ["random"], 64], "unmasking sampling_dtype"),
    "str | list[int] | None": ([b"12", 3, [1.5], range(1, 3)], "steps_per_level"),
}


@pytest.mark.parametrize("kind", WRONG_TYPES)
def test_a_setting_of_another_type_is_refused_in_a_sentence(kind):
    """By the annotations, of every setting; so a word is not taken for True, nor bytes for a list of numbers."""
    values, names = WRONG_TYPES[kind]
    for name, value in itertools.product(names.split(), values):
        with pytest.raises(ValueError, match=rf"^{name} must be {re.escape(kind)}, got "):
            TreeDiffGenerationConfig(**{name: value})
    with pytest.raises(ValueError, match=f"^{names.split()[0]} must be "):
        tiny_model(TREES[1]).generate(**{names.split()[0]: values[0]})


def test_every_setting_has_a_type_that_is_tested():
    tested = {name: kind for kind, (_, names) in WRONG_TYPES.items() for name in names.split()}
    kinds = {
        name: getattr(kind, "__name__", str(kind)) for name, kind in TreeDiffGenerationConfig.__annotations__.items()
    }
    assert tested == {name: kind for name, kind in kinds.items() if name != "transformers_version"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allowed_tokens": [3, -1]}, "allowed_tokens must not be negative"),
        ({"eos_token_id": [-1]}, "eos_token_id must not be negative"),
        ({"eos_token_id": []}, "eos_token_id is an empty list"),
        ({"temperature": [1.0, 0.0]}, "temperature must be positive"),
        ({"steps_per_level": "even"}, "Unknown steps_per_level 'even'; known: auto"),
        ({"guidance_scale": 0.0}, "guidance_scale must be positive"),
        ({"stability_threshold": 0}, "stability_threshold must be a positive whole number"),
        ({"entropy_bound": -0.1, "unmasking": "entropy"}, "entropy_bound must not be negative"),
        ({"entropy_bound": 1.0, "unmasking": "margin"}, "entropy_bound needs unmasking by entropy, not 'margin'"),
        ({"top_p": 1.01}, r"top_p must lie in \(0, 1\]"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_a_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        TreeDiffGenerationConfig(**settings)


@pytest.mark.parametrize("own", [ENTROPY, {"remasking_rate": 0.5}])
def test_every_setting_survives_saving(tmp_path, own):
    settings = own | {
        "max_new_tokens": 7, "block_length": 3, "num_steps": 9, "steps_per_level": [1, 2], "stability_threshold": 1,
        "guidance_scale": 2.0, "use_cache": False, "confidence_threshold": 0.9, "remasking_steps": 2,
        "remasking_fraction": 0.3, "remasking_levels": 2, "do_sample": False, "temperature": [1.0, 0.5], "top_k": 3,
        "top_p": 0.8, "allowed_tokens": [1, 2], "suppress_tokens": [3], "sampling_dtype": "float32", "pad_token_id": 4,
        "eos_early_stop": False, "num_return_sequences": 2, "output_history": True, "return_dict_in_generate": True,
        "bos_token_id": 1, "eos_token_id": [2, 3], "approximate_cache": True, "sliding_window": 40,
    }  # fmt: skip
    config = type("Derived", (TreeDiffGenerationConfig,), {})(**settings)  # a class derived from it has them all, too
    config.save_pretrained(tmp_path)
    again = vars(TreeDiffGenerationConfig.from_pretrained(tmp_path))
    assert {name: again[name] for name in settings} == settings
    others = {"transformers_version", "remasking_rate", *ENTROPY} - own.keys()
    assert set(settings) == {name for name in vars(config) if not name.startswith("_")} - others


@pytest.mark.parametrize("name", ["cache_implementation", "num_beams", "length_penalty"])
def test_what_transformers_sets_on_it_does_not_reach_the_file(tmp_path, name):
    """Trainers set such fields on any model; a file that held one could not be read."""
    model = tiny_model(TREES[1])
    model.generation_config.num_steps = 7
    setattr(model.generation_config, name, 2)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).generation_config
    assert again.num_steps == 7 and not hasattr(again, name) and model.generate(max_new_tokens=2).shape == (1, 2)


def test_an_attribute_that_nobody_knows_is_refused_before_anything_is_written(tmp_path):
    model = tiny_model(TREES[1])
    model.generation_config.num_stepz = 7
    with pytest.raises(ValueError, match="Unknown generation option num_stepz: it cannot be saved"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "model.safetensors").exists()
