"""Animations: thinned out evenly, written whole or not at all."""

import io
import itertools

import pytest
from PIL import Image

from modeling_treediff.viewing.drafts import ShownDraft, render_animation, write_animation
from modeling_treediff.viewing.drafts.animation import MOST_FRAMES, choose_evenly
from modeling_treediff.viewing.drafts.picture import write_gif


def test_a_long_generation_is_thinned_out_evenly(recorded, tmp_path):
    drafts = [ShownDraft(passes, recorded[0].draft().pieces, 2) for passes in range(100)]
    write_animation(tmp_path / "long.gif", drafts, "")
    with Image.open(tmp_path / "long.gif") as picture:
        assert picture.n_frames == MOST_FRAMES
    chosen = [draft.num_forward_passes for draft in choose_evenly(drafts, MOST_FRAMES)]
    assert chosen[0] == 0 and chosen[-1] == 99
    assert {after - before for before, after in itertools.pairwise(chosen)} == {2, 3}


def test_nothing_to_show_is_said():
    for show in (lambda: render_animation([], ""), lambda: write_gif(io.BytesIO(), [])):
        with pytest.raises(ValueError, match="no draft"):
            show()


def test_an_animation_is_written_whole_or_not_at_all(recorded, tmp_path, monkeypatch):
    file = tmp_path / "text.gif"
    file.write_bytes(b"before")

    def fails(path, drafts):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("modeling_treediff.viewing.drafts.animation.write_gif", fails)
    with pytest.raises(OSError, match="disk full"):
        write_animation(file, recorded[0].drafts, "")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("text.gif", b"before")]
    with pytest.raises(ValueError, match=r"\.gif or an \.html file, not .*text\.mp4"):
        write_animation(tmp_path / "text.mp4", recorded[0].drafts, "")
