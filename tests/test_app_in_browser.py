"""The page in a real browser, where gradio, playwright and chromium are installed."""

import shutil
import threading

import pytest
from conftest import SAMPLE, load_example, tiny_model

from modeling_treediff import VocabularyTree

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
SECONDS = 20_000  # to wait, in milliseconds


@pytest.fixture(scope="module")
def site(tokenizer):
    """The address of the page, written by a tiny model."""
    load_example("generate")
    app = load_example("app")
    model = tiny_model(VocabularyTree.from_pretrained(SAMPLE), max_position_embeddings=64)
    page = app.build_page(model, tokenizer)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **app.looks(model))
    yield app, address
    page.close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(site, browser):
    """The page as a visitor of this machine sees it; whatever goes wrong or goes elsewhere fails the test."""
    page, wrong = browser.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    local = (site[1], "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(local) else wrong.append(request.url))
    page.goto(site[1])
    page.get_by_label("Prompt").wait_for()
    yield page
    page.close()
    assert not wrong


def press(page, name):
    page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def wait_for_caption(page, part):
    page.locator(".draft-caption", has_text=part).wait_for(timeout=SECONDS)
    return page.locator(".draft-text").inner_text()


def test_a_prompt_is_continued_and_shown_at_a_level(page):
    page.get_by_label("Prompt").fill("The state of the Union is")
    press(page, "Generate")
    draft = wait_for_caption(page, "tokens: 0")
    text = wait_for_caption(page, "tokens: 48")
    assert text.startswith("The state of the Union is") and "_ _" in draft and text != draft
    level = page.get_by_label("number input for Show no finer than level")
    level.wait_for(timeout=SECONDS)
    level.fill("1")
    level.press("Tab")
    assert "<" in wait_for_caption(page, "level 1: 48")


def test_gaps_are_filled_and_mistakes_explained(page):
    page.get_by_role("tab", name="Fill in").click()
    box = page.get_by_label("Text with gaps")
    box.fill("We must")
    press(page, "Fill")
    page.get_by_role("alert").filter(has_text="at least one _").wait_for(timeout=SECONDS)
    box.fill("We must __ our _.")
    press(page, "Fill")
    assert wait_for_caption(page, "tokens: 3").startswith("We must")


@pytest.mark.parametrize("how", ["Stop", "closing"])
def test_writing_ends_with_its_reader(page, site, monkeypatch, how):
    monkeypatch.setattr(site[0], "SECONDS_PER_TEXT", 600)
    press(page, "Generate")
    wait_for_caption(page, "pass 0")
    [thread] = [one for one in threading.enumerate() if one.name.endswith("(work)")]
    press(page, "Stop") if how == "Stop" else page.close()
    thread.join(SECONDS / 1000)
    assert not thread.is_alive()
