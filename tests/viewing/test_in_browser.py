"""The pages in a real browser, where playwright and chromium are installed; `treediff app` also needs gradio."""

import contextlib
import importlib
import shutil
import threading

import pytest
from helpers.models import tiny_model
from helpers.processes import SAMPLE

from modeling_treediff import VocabularyTree
from modeling_treediff.viewing.drafts import DraftRecorder, render_animation

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
SECONDS = 20_000  # to wait, in milliseconds


@pytest.fixture(scope="module")
def site(tokenizer):
    """The address of `treediff app`'s page, written by a tiny model."""
    pytest.importorskip("gradio")
    app = importlib.import_module("modeling_treediff.cli.app")
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


@contextlib.contextmanager
def visit(browser, address, **settings):
    """Open a page; whatever goes wrong there, or is asked of other addresses, fails the test."""
    page, wrong = browser.new_page(**settings), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    own = (address, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert not wrong


@pytest.fixture
def page(site, browser):
    with visit(browser, site[1]) as page:
        page.get_by_label("Prompt").wait_for()
        yield page


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


def words(tokenizer):
    """Return tokens of plain letters, whose texts a browser shows as they are."""
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    return [token for token, text in enumerate(texts) if text.isascii() and text.strip().isalpha()]


@pytest.fixture(scope="module")
def animation(tokenizer, tmp_path_factory):
    """Drafts of a text, and the address of the page that plays them."""
    model = tiny_model(VocabularyTree.from_pretrained(SAMPLE), max_position_embeddings=64)
    recorder = DraftRecorder(model.tree, tokenizer)
    model.generate(max_new_tokens=60, num_steps=20, callback=recorder, allowed_tokens=words(tokenizer))
    file = tmp_path_factory.mktemp("animation") / "text.html"
    file.write_text(render_animation(recorder.drafts, "A text"), encoding="utf-8")
    return recorder.drafts, file.as_uri()


def shown(page):
    """Return the text as a reader sees it, without what separates words and lines."""
    return "".join(page.locator(".draft-text").inner_text().split())


def test_the_slider_shows_every_draft(browser, animation):
    drafts, address = animation
    with visit(browser, address, reduced_motion="reduce") as page:
        assert page.locator("#play").inner_text() == "Play"  # nothing moves by itself
        assert shown(page) == "".join(drafts[-1].text.split())
        page.locator("#frame").press("Home")
        for draft in drafts:
            assert shown(page) == "".join(draft.text.split())
            assert page.locator(".draft-caption").inner_text() == draft.caption
            assert page.locator("#frame").get_attribute("aria-valuetext") == draft.caption
            page.locator("#frame").press("ArrowRight")


def test_every_position_keeps_its_line_until_the_end(browser, animation):
    lines = "[...text.querySelectorAll('br')].map((br) => [...text.children].indexOf(br))"
    widest = "text.scrollWidth <= text.clientWidth"
    with visit(browser, animation[1], viewport={"width": 400, "height": 600}) as page:
        page.evaluate("pause()")
        layouts = page.evaluate(f"frames.slice(0, -1).map((_, index) => {{ show(index); return String({lines}); }})")
        assert len(set(layouts)) == 1 and layouts[0].count(",") > 2
        heights = page.evaluate("frames.slice(0, -1).map((_, index) => { show(index); return text.offsetHeight; })")
        assert len(set(heights)) == 1  # no line is broken again
        assert page.evaluate(widest)


def test_playing_ends_at_the_finished_text(browser, animation):
    drafts, address = animation
    with visit(browser, address) as page:
        page.locator("#play", has_text="Pause").wait_for()
        page.locator(".draft-caption", has_text=drafts[-1].caption).wait_for(timeout=SECONDS)
        page.locator("#play", has_text="Play").click()
        page.locator(".draft-caption", has_text=drafts[1].caption).wait_for(timeout=SECONDS)
