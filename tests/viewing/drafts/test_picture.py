"""Drafts as a GIF: every one of them, whole, with its duration."""

import io

from PIL import Image

from modeling_treediff.text import Piece
from modeling_treediff.viewing.drafts import ShownDraft
from modeling_treediff.viewing.drafts.picture import (
    LAST_MILLISECONDS,
    MARGIN,
    MILLISECONDS,
    MOVED,
    WIDTH,
    break_lines,
    draw_draft,
    write_gif,
)


def test_a_gif_has_the_drafts_and_their_durations(recorded):
    drafts = recorded[0].drafts
    file = io.BytesIO()
    write_gif(file, drafts)
    with Image.open(file) as picture:
        assert picture.n_frames == len(drafts)
        durations, sizes = [], set()
        for frame in range(picture.n_frames):
            picture.seek(frame)
            durations.append(picture.info["duration"])
            sizes.add(picture.size)
    assert durations == [MILLISECONDS] * (len(drafts) - 1) + [LAST_MILLISECONDS]
    assert len(sizes) == 1 and sizes.pop()[0] == WIDTH


def test_every_draft_fits_on_the_canvas(recorded):
    """Nothing is drawn into the margins, and every position has exactly one line."""
    narrow = ShownDraft(0, (Piece(" i", "token", 2),) * 400, 2)
    for draft, drafts in [(draft, recorded[0].drafts) for draft in recorded[0].drafts] + [(narrow, [narrow])]:
        lines = break_lines(drafts)
        assert [place for line in lines for place in line] == list(range(len(draft.pieces)))
        frame = draw_draft(draft, lines)
        ground = frame.getpixel((0, 0))
        margin = frame.crop((WIDTH - MARGIN + 3, 0, WIDTH, frame.height))
        assert margin.getcolors() == [(margin.width * margin.height, ground)]


def test_a_frame_marks_what_moved():
    def marked(moved):
        draft = ShownDraft(1, (Piece(" word", "token", 2, moved), Piece(" _", "open", 0)), 2)
        frame = draw_draft(draft, break_lines([draft]))
        return tuple(bytes.fromhex(MOVED[1:])) in {colour for _, colour in frame.getcolors(maxcolors=10_000)}

    assert marked(True) and not marked(False)


def test_line_breaks_of_the_text_stay():
    pieces = tuple(Piece(text, "token", 1) for text in ("a", "\n", "b", "c"))
    assert break_lines([ShownDraft(0, pieces, 1)]) == [range(0, 2), range(2, 4)]


def test_lines_begin_with_words_and_hold_what_the_widest_draft_lets_them():
    """The end of a word goes with it; positions that are wide in turn do not narrow a line together."""
    final = ShownDraft(1, (Piece(" word", "token", 2),) * 400, 2)
    split = break_lines([final])[0].stop  # here a line would break
    pieces = tuple(Piece("wordend" if place == split else " word", "token", 2) for place in range(400))
    assert split - 1 in break_lines([ShownDraft(1, pieces, 2)])[1]
    wide = [
        ShownDraft(1, tuple(Piece(" wordword" if place % 2 == odd else "", "token", 2) for place in range(400)), 2)
        for odd in (0, 1)
    ]
    assert len(break_lines([*wide, final])) == len(break_lines([final]))
