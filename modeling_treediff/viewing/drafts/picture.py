"""A generation as an animated GIF: a fixed canvas on which every position keeps its line."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO

from PIL import Image, ImageDraw, ImageFont

from .colours import TOKEN, depth_colour
from .drafts import Piece, ShownDraft

WIDTH, MARGIN, FONT_SIZE, LINE_HEIGHT = 900, 30, 21, 37  # pixels
BACKGROUND, MOVED, EMPTY = "#14171a", "#564a14", "#2b323a"
MILLISECONDS, LAST_MILLISECONDS = 160, 4000
COLOURS = 24  # of the palette that all frames share
FONTS = {False: "DejaVuSans.ttf", True: "DejaVuSans-Bold.ttf"}  # by weight


def write_gif(file: Path | IO[bytes], drafts: Sequence[ShownDraft]) -> None:
    """Write one frame per draft; the last is held.

    Raises:
        ValueError: there are no drafts.

    """
    if not drafts:
        raise ValueError("There is no draft to show.")
    lines = break_lines(drafts)
    frames = [draw_draft(draft, lines) for draft in drafts]
    palette = _common_palette(frames)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [MILLISECONDS] * (len(frames) - 1) + [LAST_MILLISECONDS]
    frames[0].save(
        file, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False
    )


def break_lines(drafts: Sequence[ShownDraft]) -> list[range]:
    """Return the positions of each line.

    No draft is wider than the canvas; of the last one, line breaks are kept, and lines begin with words if they can.
    """
    widths, final = [[_width(piece) for piece in draft.pieces] for draft in drafts], drafts[-1].pieces
    lines, start = [], 0
    while start < len(final):
        end, totals = start, [0.0] * len(drafts)
        while end < len(final) and (end == start or not final[end - 1].text.endswith("\n")):
            totals = [total + row[end] for total, row in zip(totals, widths, strict=True)]
            if end > start and max(totals) > WIDTH - 2 * MARGIN:
                words = [place for place in range(start + 1, end + 1) if final[place].text.startswith(" ")]
                end = words[-1] if words else end
                break
            end += 1
        lines.append(range(start, end))
        start = end
    return lines


def draw_draft(draft: ShownDraft, lines: Sequence[range]) -> Image.Image:
    """Return one frame: the text, a bar of counts, and the caption."""
    height = MARGIN + LINE_HEIGHT * len(lines) + 84
    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        x, y = float(MARGIN), MARGIN + LINE_HEIGHT * row
        if draft.pieces[line[0]].text.startswith(" "):
            x -= _font(False).getlength(" ")
        for place in line:
            x = _draw_piece(canvas, draft, draft.pieces[place], x, y)
    _draw_counts(canvas, draft, height - 66)
    return image


def _draw_piece(canvas: ImageDraw.ImageDraw, draft: ShownDraft, piece: Piece, x: float, y: float) -> float:
    """Draw a piece with its left edge at x; return its right edge."""
    text, end = _one_line(piece), x + _width(piece)
    blank = _font(False).getlength(" ") if text.startswith(" ") else 0
    if piece.moved:
        canvas.rounded_rectangle((x + blank - 2, y, end + 2, y + LINE_HEIGHT - 8), radius=6, fill=MOVED)
    canvas.text(
        (x, y + 3), text, font=_font(piece.kind == "given"), fill=depth_colour(piece.depth, draft.tree_depth).dark
    )
    return end


def _draw_counts(canvas: ImageDraw.ImageDraw, draft: ShownDraft, y: int) -> None:
    x, width = float(MARGIN), WIDTH - 2 * MARGIN
    canvas.rectangle((x, y, x + width, y + 9), fill=EMPTY)
    total = max(sum(draft.counts), 1)
    for depth, count in reversed(list(enumerate(draft.counts))):
        end = x + width * count / total
        if depth and count:
            canvas.rectangle((x, y, end, y + 9), fill=depth_colour(depth, draft.tree_depth).dark)
        x = end
    first, *counts = draft.caption.split(" · ")
    parts = [(first, TOKEN.dark)]
    parts += [(count, depth_colour(depth, draft.tree_depth).dark) for depth, count in enumerate(counts)]
    for column, (part, colour) in enumerate(parts):
        canvas.text((MARGIN + 150 * column, y + 20), part, font=_font(False), fill=colour)


def _common_palette(frames: Sequence[Image.Image]) -> Image.Image:
    """Return a palette of the first, the middle and the last frame together."""
    chosen = [frames[0], frames[len(frames) // 2], frames[-1]]
    width, height = frames[0].size
    together = Image.new("RGB", (width, height * len(chosen)))
    for index, frame in enumerate(chosen):
        together.paste(frame, (0, height * index))
    return together.quantize(COLOURS)


def _one_line(piece: Piece) -> str:
    return piece.text.replace("\n", " ").replace("\t", " ")


@cache
def _width(piece: Piece) -> float:
    return _font(piece.kind == "given").getlength(_one_line(piece))


@cache
def _font(bold: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font, where the system has it; else the one that Pillow brings, which has no bold."""
    try:
        return ImageFont.truetype(FONTS[bold], FONT_SIZE)
    except OSError:
        return ImageFont.load_default(FONT_SIZE)
