"""Drafts as HTML: every one of them, and no markup from tokens."""

import html
import json
import re

from modeling_treediff.text import Piece
from modeling_treediff.text.token_kinds import LINES, printable
from modeling_treediff.viewing.drafts import ShownDraft, draft_html, render_animation
from modeling_treediff.viewing.drafts.page import animation_data


def test_a_page_holds_every_draft(recorded):
    drafts = recorded[0].drafts
    page = render_animation(drafts, "A <title>")
    assert "A &lt;title&gt;" in page and "{{" not in page
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import|url\(", page)  # it loads nothing
    frames = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    pieces = {}
    for draft, frame in zip(drafts, frames, strict=True):
        pieces |= dict(frame["changes"])
        shown = [html.unescape(re.sub(r"<[^>]*>", "", pieces[place])) for place in range(len(draft.pieces))]
        assert shown == [printable(piece.text, keep=LINES) for piece in draft.pieces]
        assert frame["caption"] == draft.caption and frame["counts"] == draft.counts
    last = html.unescape(re.sub(r"<[^>]*>", "", draft_html(drafts[-1])))
    assert last.startswith(printable(drafts[-1].text, keep=LINES))


def test_tokens_cannot_become_markup():
    evil = ShownDraft(0, (Piece('</script><script>alert("1")</script>', "token", 1), Piece("<!--", "token", 1)), 1)
    page = render_animation([evil], "</title><script>")
    assert len(re.findall("<script", page)) == 2 and len(re.findall("</script", page)) == 2 and "<!--" not in page
    [frame] = animation_data([evil])
    assert "<script" not in frame["changes"][0][1] and "&lt;script&gt;" in draft_html(evil)
