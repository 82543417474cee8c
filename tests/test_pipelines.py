"""transformers' pipelines on a saved model: with the package, and where only the folder is there."""

import json
import math

import pytest
import torch
from helpers.models import tiny_model, tokens_by_enumeration
from helpers.processes import REPOSITORY, run_python
from transformers import pipeline

from modeling_treediff import TreeDiffForDiffusionLM, TreeDiffForMaskedLM
from modeling_treediff.building import train_tokenizer
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.hub import save_checkpoint

V, WINDOW = 280, 32
TEXT = "we must pay it, and we must pay it at once; the people must pay for the peace of the people. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = train_tokenizer([TEXT], V)
    tree, end = random_tree(V, 7, 3, seed=0), tokenizer.eos_token_id
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    model = tiny_model(tree, max_position_embeddings=WINDOW, **special)
    model.generation_config.num_steps = 6
    path = tmp_path_factory.mktemp("model")
    save_checkpoint(model, path, tokenizer)
    return path


@pytest.fixture(scope="module")
def fill(folder):
    return pipeline("fill-mask", model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def write(folder):
    return pipeline("text-generation", model=str(folder), device="cpu")


def expected_scores(fill, text):
    """{token: probability} at each mask of a text, by enumeration of paths."""
    ids = fill.tokenizer(text, return_tensors="pt")["input_ids"][0]
    places = (ids == V).nonzero()[:, 0].tolist()
    return [tokens_by_enumeration(fill.model, ids, place).exp().tolist() for place in places]


def assert_answers(answers, scores, top_k):
    best = sorted(scores, reverse=True)[:top_k]
    assert [answer["score"] for answer in answers] == pytest.approx(best, rel=1e-3)
    assert [scores[answer["token"]] for answer in answers] == pytest.approx(best, rel=1e-3)


def test_scores_are_those_of_all_paths(fill):
    assert type(fill.model) is TreeDiffForMaskedLM
    text = "we must <|mask|> it"
    (scores,) = expected_scores(fill, text)
    answers = fill(text, top_k=V)
    assert math.isclose(sum(answer["score"] for answer in answers), 1, rel_tol=1e-4)
    assert_answers(answers, scores, V)
    assert_answers(fill(text), scores, 5)
    for answer in fill(text):
        assert answer["token_str"] == fill.tokenizer.decode([answer["token"]])
        filled = fill.tokenizer.decode(answer["token"], skip_special_tokens=True)
        assert answer["sequence"] == "we must" + filled + " it"


def test_targets_are_scored_among_all_tokens(fill):
    text, targets = "we must <|mask|> it", ["Ġpay", "Ġpeople", "Ġthe"]
    (scores,) = expected_scores(fill, text)
    answers = fill(text, targets=targets)
    ids = fill.tokenizer.convert_tokens_to_ids(targets)
    assert {answer["token"] for answer in answers} == set(ids)
    for answer in answers:
        assert answer["score"] == pytest.approx(scores[answer["token"]], rel=1e-3)


def test_several_masks_are_filled_each_beside_the_open_others(fill):
    text = "<|mask|> must pay <|mask|> at once"
    for answers, scores in zip(fill(text, top_k=3), expected_scores(fill, text), strict=True):
        assert_answers(answers, scores, 3)


def test_a_batch_of_texts_of_other_lengths_gives_what_each_gives(fill):
    texts = ["we must <|mask|> it", "the people must pay for <|mask|> peace of the people.", "<|mask|>"]
    for text, answers in zip(texts, fill(texts, batch_size=3), strict=True):
        assert_answers(answers, expected_scores(fill, text)[0], 5)


def test_pipelines_show_themselves(fill, write):
    assert "TreeDiffForMaskedLM" in repr(fill) and "TreeDiffForDiffusionLM" in repr(write)


def test_a_text_without_a_mask_is_refused(fill):
    with pytest.raises(Exception, match=r"No mask_token \(<\|mask\|>\) found"):
        fill("we must pay it")


def test_a_prompt_is_continued(write):
    """By default to the end of the window, whatever this release of transformers has for its own default."""
    assert type(write.model) is TreeDiffForDiffusionLM
    prompt = "we must pay"
    length = len(write.tokenizer(prompt)["input_ids"])
    (whole,) = write(prompt, return_tensors=True)
    assert len(whole["generated_token_ids"]) == WINDOW
    assert whole["generated_token_ids"][:length] == write.tokenizer(prompt)["input_ids"]
    (some,) = write(prompt, return_tensors=True, max_new_tokens=4)
    assert len(some["generated_token_ids"]) == length + 4
    assert write(prompt, max_new_tokens=4)[0]["generated_text"].startswith(prompt)


@pytest.mark.parametrize("prompt", ["we must <|mask|> it", "<|mask|><|mask|> must pay", "we <|mask|> pay <|mask|>"])
def test_gaps_in_a_prompt_are_filled_in_the_tokens(write, prompt):
    """The pipeline's text is the prompt as it was given and what is new; docs/how_to/infill.md says so."""
    ids = write.tokenizer(prompt)["input_ids"]
    for more in ({}, {"max_new_tokens": 3}):
        (answer,) = write(prompt, return_tensors=True, **more)
        filled = answer["generated_token_ids"]
        assert len(filled) == len(ids) + more.get("max_new_tokens", 0) and V not in filled
        assert all(new == old for new, old in zip(filled, ids, strict=False) if old != V)
    assert write(prompt)[0]["generated_text"] == prompt


def test_the_models_generation_config_holds_and_calls_override_it(write, monkeypatch):
    """Greedy by its own config, two calls agree; drawn as the pipeline's defaults have it, long texts would not."""
    monkeypatch.setattr(write.model.generation_config, "do_sample", False)
    monkeypatch.setattr(write.model.generation_config, "num_steps", 300)  # one position a pass: all ordering is drawn
    monkeypatch.setattr(write.model.generation_config, "max_new_tokens", 1)
    # Older releases of transformers take a copy of the config when the pipeline is made.
    write = pipeline("text-generation", model=write.model, tokenizer=write.tokenizer, device="cpu")
    (greedy, again) = (write("we must", return_tensors=True)[0]["generated_token_ids"] for _ in range(2))
    assert greedy == again and len(greedy) == len(write.tokenizer("we must")["input_ids"]) + 1
    drawn = write("we must", do_sample=True, temperature=100.0, num_return_sequences=20, return_tensors=True)
    assert len({tuple(text["generated_token_ids"]) for text in drawn}) > 10  # of 280 nearly equal tokens
    with pytest.raises(ValueError, match="num_steps=2 is too small"):
        write("we must", num_steps=2)
    with pytest.raises(ValueError, match="Unknown generation option"):
        write("we must", num_beams=2)


def test_prompts_of_other_lengths_are_padded_on_the_left_and_change_nothing(write):
    """One greedy token: nothing is drawn, so batched and alone must agree."""
    prompts = ["we", "the people must pay for the peace of", "we must pay"]
    assert write.tokenizer.padding_side == "left"
    options = {"do_sample": False, "max_new_tokens": 1, "return_full_text": False}
    together = write(prompts, batch_size=3, **options)
    assert together == [write(prompt, **options) for prompt in prompts]
    for prompt, (answer,) in zip(prompts, together, strict=True):
        ids = write.tokenizer(prompt, return_tensors="pt")["input_ids"]
        token = write.model.generate(ids, do_sample=False, max_new_tokens=1)[0, -1:]
        assert answer["generated_text"] == write.tokenizer.decode(token, skip_special_tokens=True)


def test_several_texts_per_prompt(write):
    answers = write(["we", "the people must"], batch_size=2, num_return_sequences=3, max_new_tokens=5)
    assert [len(texts) for texts in answers] == [3, 3]
    for prompt, texts in zip(("we", "the people must"), answers, strict=True):
        assert all(text["generated_text"].startswith(prompt) for text in texts)


ELSEWHERE = """
import json, sys, torch
folder, installed = sys.argv[1], sys.argv[2] == "installed"
if installed:
    import modeling_treediff
else:
    sys.modules["modeling_treediff"] = None  # as if the package were not installed: importing it raises
from transformers import pipeline
options = {"model": folder, "device": "cpu"} | ({} if installed else {"trust_remote_code": True})
fill, write = pipeline("fill-mask", **options), pipeline("text-generation", **options)
torch.manual_seed(0)
texts = write("we must", max_new_tokens=5, return_full_text=False, num_return_sequences=2)
print(json.dumps([type(fill.model).__name__, type(write.model).__name__, fill("we must <|mask|> it"), texts]))
"""


@pytest.mark.parametrize("package", ["installed", "absent"])
def test_pipelines_in_a_fresh_process(folder, fill, write, tmp_path, package):
    environment = {} if package == "absent" else {"PYTHONPATH": str(REPOSITORY)}
    ran = run_python(folder, package, code=ELSEWHERE, HF_HOME=str(tmp_path / "hf"), cwd=str(tmp_path), **environment)
    assert ran.returncode == 0, ran.stderr
    masked, causal, answers, texts = json.loads(ran.stdout.splitlines()[-1])
    assert (masked, causal) == ("TreeDiffForMaskedLM", "TreeDiffForDiffusionLM")
    for answer, expected in zip(answers, fill("we must <|mask|> it"), strict=True):
        assert answer["score"] == pytest.approx(expected.pop("score"), rel=1e-3)
        assert {name: answer[name] for name in expected} == expected
    torch.manual_seed(0)
    assert texts == write("we must", max_new_tokens=5, return_full_text=False, num_return_sequences=2)


def test_a_text_beyond_the_window_is_refused_and_cut_where_that_is_asked_for(fill):
    long = "<|mask|> we must pay it, " * WINDOW
    with pytest.raises(ValueError, match=f"positions are more than the model's {WINDOW}"):
        fill(long)
    answers = fill(long, tokenizer_kwargs={"truncation": True})
    ids = fill.tokenizer(long, truncation=True)["input_ids"]
    assert len(ids) == WINDOW and len(answers) == ids.count(V)
