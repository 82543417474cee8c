"""Drafts in a terminal."""

import io
import re

from rich.console import Console

from modeling_treediff.viewing.drafts import TerminalView


def test_a_terminal_shows_drafts_in_place(recorded, monkeypatch):
    monkeypatch.setattr("modeling_treediff.viewing.drafts.terminal.SECONDS_PER_DRAFT", 0)
    drafts = recorded[0].drafts
    screen = io.StringIO()
    with TerminalView(Console(file=screen, force_terminal=True, width=2000, color_system="truecolor")) as view:
        for draft in drafts:
            view.show(draft)
    written = screen.getvalue()
    assert "\x1b[2K" in written  # lines are erased, to be written again
    assert "\x1b[1mThe" in written and "\x1b[35m<" in written  # a given token bold, a cluster in its level's colour
    plain = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", written)
    assert all(draft.caption in plain for draft in drafts)
