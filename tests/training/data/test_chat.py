"""Conversations as windows: prompts clean, answers counted, each answer with all before it and nothing after."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.conversations import BY_BLOCK, BY_PREFIX, CONVERSATION, STRICT, WITHOUT_EOS

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.noise_schedules import SequentialSchedule
from modeling_treediff.text import TokenWindows
from modeling_treediff.training import DiffusionCollator, chat_windows
from modeling_treediff.training.data.chat import DROPPED, EXAMPLES, NOT_FOUND, REFUSED, TRUNCATED

LENGTH = 64


@pytest.fixture
def chat_tokenizer(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", BY_PREFIX)
    return tokenizer


def windows_of(row, tokenizer, length=LENGTH, pad_answers=False):
    counts = Counter()
    return list(chat_windows(row, 0, tokenizer, length, pad_answers, counts)), counts


def parts(window, tokenizer):
    """Prompt, and what is counted up to the first EOS."""
    ids, fixed = window["input_ids"], window["fixed_mask"].astype(bool)
    answer = ids[~fixed]
    return tokenizer.decode(ids[fixed]), tokenizer.decode(answer[: answer.tolist().index(tokenizer.eos_token_id)])


@pytest.mark.parametrize("template", [BY_PREFIX, BY_BLOCK, WITHOUT_EOS], ids=["prefix", "block", "no EOS"])
def test_every_answer_has_all_before_it_as_its_prompt(chat_tokenizer, template):
    chat_tokenizer.chat_template = template
    end = "" if template == WITHOUT_EOS else "<|endoftext|>"
    first, second = windows_of(CONVERSATION, chat_tokenizer)[0]
    prompt, answer = parts(first, chat_tokenizer)
    assert prompt == "[system] Be brief.\n[user] Who speaks?\n[assistant]"
    assert answer.rstrip("\n") == " The President of the United States."
    later, answer = parts(second, chat_tokenizer)
    assert later == f"{prompt} The President of the United States.{end}\n[user] To whom?\n[assistant]"
    assert answer.rstrip("\n") == " The Congress."


U, A = ({"role": role, "content": "Peace."} for role in ("user", "assistant"))
BROKEN = "{% for message in messages %}{{ message['content'] }}{% endfo %}"
JOINING = BY_PREFIX.replace("}}{% if", "+ '' }}{% if")
REFUSALS = {
    "system": (STRICT, [{"role": "system", "content": "Be brief."}, U, A], 0, "System role not supported"),
    "two users": (STRICT, [U, U, A], 0, "Roles must alternate"),
    "two users later": (STRICT, [U, A, U, U, A, U, A], 1, "Roles must alternate"),
    "no user": (STRICT, [A], 0, "Roles must alternate"),
    "a list for a text": (JOINING, [{**U, "content": ["a"]}, A], 0, "concatenate"),
    "no content": (
        JOINING,
        [{**U, "content": None}, A],
        0,
        "no attribute 'content'",
    ),
    "a template that is none": (BROKEN, [U, A], 0, "unknown tag 'endfo'"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_template_refuses_is_dropped_and_counted_with_its_reason(chat_tokenizer, name):
    """Answer by answer: those before the message that is refused are kept."""
    chat_tokenizer.chat_template, messages, kept, reason = REFUSALS[name]
    windows, counts = windows_of({"messages": messages}, chat_tokenizer)
    (refused,) = (name for name in counts if name.startswith(REFUSED))
    assert len(windows) == counts[EXAMPLES] == kept and reason in refused and len(refused) < 160
    assert counts[refused] == sum(message["role"] == "assistant" for message in messages) - kept


def test_blocks_find_answers_where_prefixes_do_not(chat_tokenizer):
    """A template that drops the system message once there is an answer; without blocks that is refused, see below."""
    first = "{% if messages[-1]['role'] == 'assistant' %}{% set messages = messages[1:] %}{% endif %}"
    chat_tokenizer.chat_template = first + BY_BLOCK
    window, _ = windows_of(CONVERSATION, chat_tokenizer)[0]
    prompt, answer = parts(window, chat_tokenizer)
    assert prompt == "[user] Who speaks?\n[assistant]" and answer == " The President of the United States."
    unmarked = {"messages": [*CONVERSATION["messages"][:3], {"role": "assistant", "content": "And so on."}]}
    chat_tokenizer.chat_template = BY_BLOCK  # what is not marked one by one is found by prefixes
    prompt, answer = parts(windows_of(unmarked, chat_tokenizer)[0][1], chat_tokenizer)
    assert prompt.endswith("United States.<|endoftext|>\n[assistant]") and answer == " And so on."


def test_eos_fills_the_window_and_is_counted_or_the_rest_is_padding(chat_tokenizer):
    [filled, _], [padded, _] = (windows_of(CONVERSATION, chat_tokenizer, pad_answers=pad)[0] for pad in (False, True))
    assert np.array_equal(filled["input_ids"], padded["input_ids"]) and "attention_mask" not in filled
    used = int(padded["attention_mask"].sum())
    assert (padded["attention_mask"] == (np.arange(LENGTH) < used)).all() and used < LENGTH
    assert (filled["input_ids"][used - 1 :] == chat_tokenizer.eos_token_id).all()
    assert (filled["input_ids"][:used] == chat_tokenizer.eos_token_id).sum() == 1
    tree = random_tree(8192, 91, 2)
    batches = [
        DiffusionCollator(tree, SequentialSchedule(2))([window | {"position": 5}]) for window in (filled, padded)
    ]
    start = int(filled["fixed_mask"].sum())
    for batch, last in zip(batches, (LENGTH, used), strict=True):
        counted = batch["labels"][0] >= 0
        assert counted.nonzero().flatten().tolist() == list(range(start, last))
        assert torch.equal(batch["input_ids"][0, :start], torch.from_numpy(filled["input_ids"][:start]).long())
        assert (tree.depth[batch["input_ids"][0, start:last]] < 2).any()


def test_long_answers_are_cut_off_and_prompts_without_room_dropped(chat_tokenizer):
    [first, second], _ = windows_of(CONVERSATION, chat_tokenizer)
    start, later = int(first["fixed_mask"].sum()), int(second["fixed_mask"].sum())
    for length, expected in [
        (LENGTH, {EXAMPLES: 2, TRUNCATED: 0}),
        (start + 3, {EXAMPLES: 1, TRUNCATED: 1, DROPPED: 1}),
        (later + 1, {EXAMPLES: 2, TRUNCATED: 1}),
        (start, {DROPPED: 2}),
    ]:
        windows, counts = windows_of(CONVERSATION, chat_tokenizer, length)
        assert counts == Counter(expected) and len(windows) == counts[EXAMPLES]
        for short, whole in zip(windows, (first, second), strict=False):
            assert np.array_equal(short["input_ids"], whole["input_ids"][:length])
            assert not short["fixed_mask"].all()


def test_prompt_and_completion_are_a_conversation_too(chat_tokenizer):
    [expected], _ = windows_of({"messages": CONVERSATION["messages"][1:3]}, chat_tokenizer)
    user, assistant = CONVERSATION["messages"][1:3]
    for row in (
        {"prompt": user["content"], "completion": assistant["content"]},
        {"prompt": [user], "completion": [assistant], "other": 1},
        {"messages": None, "prompt": [user | {"tool_calls": None}], "completion": assistant["content"]},
    ):
        [window], _ = windows_of(row, chat_tokenizer)
        assert np.array_equal(window["input_ids"], expected["input_ids"])
        assert np.array_equal(window["fixed_mask"], expected["fixed_mask"])


def test_what_is_no_conversation_is_named(chat_tokenizer):
    for row, message in (
        ({"text": "a"}, "Row 0 has the columns text; a conversation has `messages`"),
        ({"messages": [{"text": "a"}]}, "Row 0 has a message without `role` and `content`"),
        ({"messages": ["a"]}, "Row 0 has a message without `role` and `content`"),
    ):
        with pytest.raises(ValueError, match=message):
            windows_of(row, chat_tokenizer)
    assert windows_of({"messages": CONVERSATION["messages"][:2]}, chat_tokenizer) == ([], Counter())
    chat_tokenizer.chat_template = (
        "{{ messages[-1]['role'] }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    )
    assert windows_of(CONVERSATION, chat_tokenizer) == ([], Counter({NOT_FOUND: 2}))
    chat_tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template: set tokenizer.chat_template"):
        windows_of(CONVERSATION, chat_tokenizer)


def test_a_model_learns_an_answer_and_its_length(chat_tokenizer):
    """One question, one answer: after 250 steps the model fills a canvas with the answer and EOS, given the prompt."""
    tree = random_tree(8192, 91, 2)
    torch.manual_seed(0)
    model = TreeDiffForDiffusionLM.from_tree(
        tree, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=40, rope_theta=100.0
    )
    windows, _ = windows_of({"prompt": "To whom?", "completion": "The Congress."}, chat_tokenizer, 40)
    window = TokenWindows(**{name: column[None] for name, column in windows[0].items()})
    collate, items = DiffusionCollator(tree, model.schedule), window.dataset(0, 250 * 8, 0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(250):
        optimizer.zero_grad()
        model(**collate([items[index] for index in range(8 * step, 8 * step + 8)])).loss.backward()
        optimizer.step()
    canvas = torch.from_numpy(window.input_ids).long()
    canvas[torch.from_numpy(window.fixed_mask) == 0] = model.config.mask_token_id
    generated = model.eval().generate(canvas, num_steps=40, generator=torch.Generator().manual_seed(0))
    assert (generated.numpy() == window.input_ids).mean() > 0.95
