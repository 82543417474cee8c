"""The page: what its fields mean, that texts come step by step and can be stopped. The page itself needs gradio."""

import importlib
import threading
from types import SimpleNamespace

import pytest
import torch
from helpers.models import tiny_model
from helpers.processes import SAMPLE, last_line, run_python

from modeling_treediff import TreeDiffGenerationConfig, VocabularyTree

VISITOR = SimpleNamespace(session_hash="a visitor")
FIELDS = [6, 1.0, "random", 0, 0, 1.0, 1.0]  # passes, top-p, order, corrections, seed, temperatures


@pytest.fixture(scope="module")
def model():
    return tiny_model(VocabularyTree.from_pretrained(SAMPLE))


@pytest.fixture
def app(monkeypatch):
    pytest.importorskip("gradio")
    app = importlib.import_module("modeling_treediff.cli.app")
    monkeypatch.setattr(app, "SECONDS_PER_TEXT", 0)
    return app


@pytest.fixture
def page(app, model, tokenizer):
    return app.Page(model, tokenizer)


def last_of(answers):
    """Return the last shown HTML, and the last answer."""
    answers = list(answers)
    shown = [answer[0] for answer in answers if isinstance(answer[0], str)]
    return shown[-1], answers[-1]


def test_without_gradio_the_extra_is_named():
    code = "import sys; sys.modules['gradio'] = None; from modeling_treediff.cli.main import main; main()"
    ran = run_python("app", "model", code=code)
    assert ran.returncode == 1
    assert last_line(ran) == "treediff app: error: The page needs gradio: pip install 'modeling-treediff[demo]'."


def test_texts_come_step_by_step(page, model):
    answers = list(page.continue_text(VISITOR, "The state", 6, *FIELDS))
    shown, (_, _, recorder) = last_of(iter(answers))
    start = recorder.steps[0][1]  # what the page shows first, if it is quick enough
    assert int((start == model.config.mask_token_id).sum()) == 6 and "tokens: 6" in shown
    assert recorder.draft().counts == [0, 0, 6] and recorder.draft().text.startswith("The state")
    assert not page.stops


def test_the_fields_reach_generate(page):
    settings = page.settings(None, 5, 7, 0.5, "margin", 2, 3, 0.9, 1.1)
    generator = settings.pop("generator")
    assert settings == {
        "input_ids": None,
        "max_new_tokens": 5,
        "num_steps": 7,
        "temperature": [0.9, 1.1],
        "top_p": 0.5,
        "unmasking": "margin",
        "remasking_steps": 2,
        "remasking_rate": 0.0,
    }
    assert generator.initial_seed() == 3


def test_gaps_are_filled_and_the_rest_stays(page, tokenizer):
    shown, (_, _, recorder) = last_of(page.fill_in(VISITOR, "We _ the _.", 6, *FIELDS))
    start, end = recorder.steps[0][1], recorder.steps[-1][1]
    is_given = start < page.model.config.vocab_size
    assert torch.equal(start[is_given], end[is_given]) and int((~is_given).sum()) == 2
    assert "tokens: 2" in shown


@pytest.mark.parametrize(
    ("text", "new_tokens", "fields", "message"),
    [
        ("We " * 12, 12, FIELDS, "positions are more than the model"),
        ("We", 6, [1, *FIELDS[1:]], "num_steps"),
        ("We", 6, [*FIELDS[:2], "<b>", *FIELDS[3:]], "&lt;b&gt;"),
    ],
)
def test_impossible_requests_are_shown(page, text, new_tokens, fields, message):
    shown, (_, _, recorder) = last_of(page.continue_text(VISITOR, text, new_tokens, *fields))
    assert 'role="alert"' in shown and message in shown and recorder is None


def test_a_text_too_long_to_be_read_is_refused_in_the_box_and_on_the_server(app, page, model, tokenizer, monkeypatch):
    monkeypatch.setattr(page, "tokenizer", None)  # which is not asked
    most = app.CHARACTERS_PER_POSITION * model.config.max_position_embeddings
    for respond, text in ((page.continue_text, "a" * (most + 1)), (page.fill_in, "_" * 10**7)):
        shown, _ = last_of(respond(VISITOR, text, 6, *FIELDS))
        assert f"{len(text):,} characters; this page takes {most:,} at most" in shown
    boxes = [one["props"] for one in app.build_page(model, tokenizer).config["components"] if one["type"] == "textbox"]
    assert boxes and all(box["max_length"] == most for box in boxes)


def test_texts_of_several_visitors_are_written_side_by_side(app, page, monkeypatch):
    """While one is being looked at the others go on: each holds the model for a pass, not until it is finished."""
    monkeypatch.setattr(app, "SECONDS_PER_TEXT", 60)  # ten between two passes
    visitors = [SimpleNamespace(session_hash=str(number)) for number in range(4)]
    answers = [page.continue_text(visitor, "We", 6, *FIELDS) for visitor in visitors]
    assert all("pass 0" in next(answer)[0] for answer in answers)  # none has come further, and all have begun
    for visitor in visitors:
        page.stop(visitor)
    for answer in answers:
        list(answer)
    assert page.passes.acquire(blocking=False)  # and nobody holds the model


def test_all_texts_have_room_in_the_queue(app, model, tokenizer):
    limits = [one.concurrency_limit for one in app.build_page(model, tokenizer).fns.values() if one.fn and one.queue]
    assert limits.count(app.VISITORS) == 2


def test_a_missing_gap_is_shown(page):
    assert "at least one _" in last_of(page.fill_in(VISITOR, "We must", 6, *FIELDS))[0]


def test_a_text_is_stopped_by_its_visitor_alone(app, page, monkeypatch):
    monkeypatch.setattr(app, "SECONDS_PER_TEXT", 60)  # ten between two passes
    answers = page.continue_text(VISITOR, "We", 6, *FIELDS)
    next(answers)
    page.stop(SimpleNamespace(session_hash="another"))
    assert not page.stops[VISITOR.session_hash].is_set()
    page.stop(VISITOR)
    *_, (_, _, recorder) = answers
    assert len(recorder) == 1 and not page.stops  # what there is stays to be looked at
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(work)")]


def test_a_finished_text_is_shown_at_every_level(app, page):
    *_, (_, _, recorder) = page.continue_text(VISITOR, "We", 6, *FIELDS)
    assert "open: 0 · level 1: 6" in app.show_level(recorder, 1)
    assert "open: 6" in app.show_level(recorder, 0)
    assert app.show_level(None, 1) == app.PLACEHOLDER


def test_the_fields_start_as_the_models_own_settings(app, model, tokenizer, monkeypatch):
    own = TreeDiffGenerationConfig(num_steps=99, temperature=[1.2, 0.7], top_p=0.9, unmasking="margin")
    monkeypatch.setattr(model, "generation_config", own)
    components = [component["props"] for component in app.build_page(model, tokenizer).config["components"]]
    values = {component["label"]: component.get("value") for component in components if component.get("label")}
    assert values["Temperature, level 1"] == 1.2 and values["Temperature, tokens"] == 0.7
    assert (values["Steps"], values["Top-p"], values["Order of positions"]) == (99, 0.9, "margin")
    assert ".depth-2" in app.looks(model)["css"]
