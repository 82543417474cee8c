"""Drafts as pieces, in a terminal, as GIF and as HTML: what is shown is what `generate` did."""

import html
import io
import itertools
import json
import re
import sys
import threading
import time

import pytest
import torch
from helpers.models import SEQUENTIAL, tiny_model
from helpers.processes import REPOSITORY, SAMPLE, load_example, run_python
from PIL import Image
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_treediff import VocabularyTree
from modeling_treediff.text import Piece, decode_nodes, node_pieces
from modeling_treediff.viewing.drafts import (
    Draft,
    DraftRecorder,
    TerminalView,
    draft_html,
    iterate_newest,
    render_animation,
    write_animation,
)
from modeling_treediff.viewing.drafts.animation import MOST_FRAMES, choose_evenly
from modeling_treediff.viewing.drafts.colours import depth_colour
from modeling_treediff.viewing.drafts.page import animation_data
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

LETTERS = "naïve façade, “quotes” — 東京 🙂 x"  # several bytes, and with byte-level BPE several tokens, a letter


@pytest.fixture(scope="module")
def sample_tree():
    return VocabularyTree.from_pretrained(SAMPLE)


@pytest.fixture(scope="module")
def writer(sample_tree):
    return tiny_model(sample_tree, max_position_embeddings=64, **SEQUENTIAL)


@pytest.fixture(scope="module")
def recorded(writer, tokenizer):
    """A generation of 40 positions after a prompt."""
    recorder = DraftRecorder(writer.tree, tokenizer)
    prompt = torch.tensor([tokenizer("The state of the Union is")["input_ids"]])
    generator = torch.Generator().manual_seed(0)
    result = writer.generate(prompt, max_new_tokens=40, num_steps=30, generator=generator, callback=recorder)
    return recorder, prompt[0], result[0]


def word_pieces() -> PreTrainedTokenizerFast:
    """A tokenizer that joins pieces by ## and words by spaces, and tidies punctuation."""
    words = ["[UNK]", "the", "state", "##s", "##men", ",", "do", "n't", "."]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_finished_pieces_join_to_the_decoded_text(tokenizer, sample_tree, kind):
    if kind == "words":
        tokenizer, tree = word_pieces(), VocabularyTree.flat(9)
        texts = [torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 1, 3])]
    else:
        tree, generator = sample_tree, torch.Generator().manual_seed(0)
        texts = [torch.tensor(tokenizer(text)["input_ids"]) for text in (LETTERS, " " + LETTERS, "a\n\n b")]
        texts += [torch.randint(0, 400, (30,), generator=generator) for _ in range(20)]  # bytes in any order
    for node_ids in texts:
        pieces = node_pieces(node_ids, tree, tokenizer)
        assert {piece.kind for piece in pieces} == {"token"} and len(pieces) == len(node_ids)
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(node_ids)


def test_a_letter_of_several_tokens_appears_with_the_last(tokenizer, sample_tree):
    node_ids = torch.tensor(tokenizer("🙂")["input_ids"])
    assert len(node_ids) > 1
    *first, last = [piece.text for piece in node_pieces(node_ids, sample_tree, tokenizer)]
    assert last == "🙂" and not any(first)


def decoded(node_ids, tree, tokenizer, level):
    """Neighbouring tokens decoded together, clusters by their most frequent token."""
    if level is not None:
        node_ids = tree.coarsen(node_ids, level)
    shown, tokens = [], []
    for node, representative in zip(node_ids.tolist(), tree.representative[node_ids].tolist(), strict=True):
        if node < tree.vocab_size:
            tokens.append(node)
            continue
        shown.append(tokenizer.decode(tokens))
        tokens = []
        text = tokenizer.decode([representative])
        coarse = f"{' ' if text.startswith(' ') else ''}<{text.strip()}>"
        shown.append(" _" if node == tree.root_id else coarse)
    return "".join([*shown, tokenizer.decode(tokens)]).strip()


def test_drafts_read_as_decode_nodes_writes_them(tokenizer, sample_tree):
    """The same text as a reference that shares no code, for positions at all depths and at every level."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.tensor(tokenizer("We have the honor to submit the estimates of the Treasury.")["input_ids"])
    for level in (None, *range(sample_tree.tree_depth + 1)):
        depth = torch.randint(0, sample_tree.tree_depth + 1, tokens.shape, generator=generator)
        node_ids = sample_tree.ancestors[tokens, depth]
        pieces = node_pieces(node_ids, sample_tree, tokenizer, level=level)
        assert "".join(piece.text for piece in pieces).strip() == decode_nodes(node_ids, sample_tree, tokenizer, level)
        assert "".join(piece.text for piece in pieces).strip() == decoded(node_ids, sample_tree, tokenizer, level)


def test_kinds_and_depths(tokenizer, sample_tree):
    token = tokenizer(" government")["input_ids"][0]
    cluster = int(sample_tree.ancestors[token, 1])
    name = tokenizer.decode([int(sample_tree.representative[cluster])])
    node_ids = torch.tensor([token, sample_tree.root_id, cluster, token])
    given, moved = torch.tensor([True, False, False, False]), torch.tensor([False, False, True, False])
    assert node_pieces(node_ids, sample_tree, tokenizer, given, moved) == [
        Piece(" government", "given", 2),
        Piece(" _", "open", 0),
        Piece(f" <{name.strip()}>", "node", 1, moved=True),
        Piece(" government", "token", 2),
    ]
    coarse = [(piece.text, piece.kind) for piece in node_pieces(node_ids, sample_tree, tokenizer, given, level=0)]
    assert coarse == [(" government", "given"), *[(" _", "open")] * 3]


def test_a_cluster_of_white_space_has_a_name(tokenizer):
    tree = VocabularyTree.random(300, branching=300, depth=2)
    newline = tokenizer("\n")["input_ids"][0]
    cluster = torch.tensor([int(tree.ancestors[newline, 1])])
    tree.representative[cluster] = newline
    assert node_pieces(cluster, tree, tokenizer)[0].text == "<↵>"


def test_a_recorder_follows_generate(recorded, tokenizer, writer):
    recorder, prompt, result = recorded
    first, *_, last = drafts = recorder.drafts
    assert len(drafts) == len(recorder) and first.num_forward_passes == 0
    passes = [draft.num_forward_passes for draft in drafts]
    assert passes == sorted(set(passes))
    assert [piece.kind for piece in first.pieces] == ["given"] * len(prompt) + ["open"] * 40
    assert first.counts == [40, 0, 0] and last.counts == [0, 0, 40]
    assert first.caption == "pass 0 · open: 40 · level 1: 0 · tokens: 0"
    assert last.text == tokenizer.decode(recorder.steps[-1][1])
    assert recorder.draft(level=1).counts == [0, 40, 0]
    for before, after in zip(drafts[:-2], drafts[1:-1], strict=True):
        moved = [piece.moved for piece in after.pieces]
        assert any(moved) and moved == [
            old.depth != new.depth for old, new in zip(before.pieces, after.pieces, strict=True)
        ]
    assert not any(piece.moved for piece in last.pieces)  # what is finished is to be read


def test_a_recorder_follows_one_text_of_several(writer, tokenizer):
    recorders = [DraftRecorder(writer.tree, tokenizer, row=row) for row in (0, 1)]

    def both(step):
        for recorder in recorders:
            recorder(step)

    writer.generate(max_new_tokens=8, num_steps=4, num_return_sequences=2, callback=both)
    assert recorders[0].draft().text != recorders[1].draft().text


def test_levels_have_colours_of_their_own():
    for tree_depth in (1, 2, 3, 6):
        assert len({depth_colour(depth, tree_depth) for depth in range(tree_depth + 1)}) == tree_depth + 1
    assert [depth_colour(depth, 20) for depth in (1, 19)] == [depth_colour(depth, 6) for depth in (1, 5)]


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
    narrow = Draft(0, (Piece(" i", "token", 2),) * 400, 2)
    for draft, drafts in [(draft, recorded[0].drafts) for draft in recorded[0].drafts] + [(narrow, [narrow])]:
        lines = break_lines(drafts)
        assert [place for line in lines for place in line] == list(range(len(draft.pieces)))
        frame = draw_draft(draft, lines)
        ground = frame.getpixel((0, 0))
        margin = frame.crop((WIDTH - MARGIN + 3, 0, WIDTH, frame.height))
        assert margin.getcolors() == [(margin.width * margin.height, ground)]


def test_a_frame_marks_what_moved():
    def marked(moved):
        draft = Draft(1, (Piece(" word", "token", 2, moved), Piece(" _", "open", 0)), 2)
        frame = draw_draft(draft, break_lines([draft]))
        return tuple(bytes.fromhex(MOVED[1:])) in {colour for _, colour in frame.getcolors(maxcolors=10_000)}

    assert marked(True) and not marked(False)


def test_line_breaks_of_the_text_stay():
    pieces = tuple(Piece(text, "token", 1) for text in ("a", "\n", "b", "c"))
    assert break_lines([Draft(0, pieces, 1)]) == [range(0, 2), range(2, 4)]


def test_a_long_generation_is_thinned_out_evenly(recorded, tmp_path):
    drafts = [Draft(passes, recorded[0].draft().pieces, 2) for passes in range(100)]
    write_animation(tmp_path / "long.gif", drafts, "")
    with Image.open(tmp_path / "long.gif") as picture:
        assert picture.n_frames == MOST_FRAMES
    chosen = [draft.num_forward_passes for draft in choose_evenly(drafts, MOST_FRAMES)]
    assert chosen[0] == 0 and chosen[-1] == 99
    assert {after - before for before, after in itertools.pairwise(chosen)} == {2, 3}


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
        assert shown == [piece.text for piece in draft.pieces]
        assert frame["caption"] == draft.caption and frame["counts"] == draft.counts
    assert html.unescape(re.sub(r"<[^>]*>", "", draft_html(drafts[-1]))).startswith(drafts[-1].text)


def test_tokens_cannot_become_markup():
    evil = Draft(0, (Piece('</script><script>alert("1")</script>', "token", 1), Piece("<!--", "token", 1)), 1)
    page = render_animation([evil], "</title><script>")
    assert len(re.findall("<script", page)) == 2 and len(re.findall("</script", page)) == 2 and "<!--" not in page
    [frame] = animation_data([evil])
    assert "<script" not in frame["changes"][0][1] and "&lt;script&gt;" in draft_html(evil)


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


def test_the_newest_of_waiting_items_is_given():
    taken, go_on = threading.Event(), threading.Event()

    def run(callback):
        callback(0)
        taken.wait(10)
        for item in (1, 2, 3):
            callback(item)
        go_on.set()

    items = iterate_newest(run)
    assert next(items) == 0
    taken.set()
    go_on.wait(10)
    assert list(items) == [3]


@pytest.mark.parametrize("how", ["closed", "stopped"])
def test_a_reader_that_wants_no_more_ends_the_thread(how):
    calls, stop, threads = [], threading.Event(), threading.active_count()

    def run(callback):
        while True:
            calls.append(len(calls))
            callback(calls[-1])
            time.sleep(0.001)

    items = iterate_newest(run, stop)
    next(items)
    if how == "closed":
        items.close()
        assert stop.is_set()
    else:
        stop.set()
        assert list(items)[-1:] in ([], [calls[-1]])
    assert threading.active_count() == threads


def test_an_error_comes_after_the_items_before_it():
    def run(callback):
        callback("first")
        raise ValueError("second")

    items = iterate_newest(run)
    assert next(items) == "first"
    with pytest.raises(ValueError, match="second"):
        next(items)


@pytest.fixture(scope="module")
def checkpoint(writer, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewing") / "model"
    writer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SIZES = ["--max-new-tokens", "6", "--num-steps", "6"]


@pytest.fixture
def script(monkeypatch):
    """The script as a module: `main` with these arguments."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, arguments), *SIZES])
        load_example("generate").main()

    return main


def test_the_script_watches_and_writes_an_animation(checkpoint, tmp_path):
    """Without a terminal every draft is one plain line."""
    ran = run_python(
        REPOSITORY / "examples" / "generate.py",
        *[checkpoint, *SIZES, "--prompt", "We", "--watch", "--animation", tmp_path / "text.gif"],
    )
    assert ran.returncode == 0, ran.stderr
    first, *_, note = ran.stdout.splitlines()
    assert first == "pass 0 · open: 6 · level 1: 0 · tokens: 0: We _ _ _ _ _ _"
    assert "tokens: 6: We" in ran.stdout and "\x1b" not in ran.stdout
    with Image.open(tmp_path / "text.gif") as picture:
        assert note.endswith(f"{picture.n_frames} drafts")


def test_the_script_writes_a_page(script, checkpoint, tmp_path, capsys):
    script(checkpoint, "--infill", "We _ the _.", "--animation", tmp_path / "text.html")
    assert re.match(r"(?s)We.* the.*\.\n", capsys.readouterr().out)
    assert "<title>A text by model</title>" in (tmp_path / "text.html").read_text(encoding="utf-8")


def test_the_script_needs_the_package_only_for_watching(checkpoint, script, monkeypatch):
    """As where it is not installed: the checkpoint brings its own code."""
    code = f"""if True:
        import runpy, sys
        sys.modules["modeling_treediff"] = None
        sys.argv[0] = {str(REPOSITORY / "examples" / "generate.py")!r}
        runpy.run_path(sys.argv[0], run_name="__main__")"""
    more = ["--prompt", "We", "--temperature", "0.9,0.5", "--unmasking", "confidence", "--remasking-steps", "1"]
    ran = run_python(checkpoint, *SIZES, *more, code=code)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"step   0/\d: We _ _ _ _ _ _\n", ran.stdout)
    monkeypatch.setitem(sys.modules, "modeling_treediff", None)
    with pytest.raises(ImportError, match=r"--watch and --animation need the package .*modeling-treediff\[demo\]"):
        script(checkpoint, "--watch")


def test_the_script_writes_without_bad_words(script, checkpoint, capsys):
    script(checkpoint, "--steps-per-level", "2,3")
    drafts, text = capsys.readouterr().out.split("\n\n")
    assert "step   0/5: " in drafts
    word = text.split()[0]
    script(checkpoint, "--steps-per-level", "2,3", "--bad-words", word)
    assert word not in capsys.readouterr().out.split("\n\n")[1]


def test_the_script_refuses_other_files_before_it_loads_a_model(script):
    with pytest.raises(ValueError, match=r"a \.gif or an \.html file, not text\.mp4"):
        script("no/such/model", "--animation", "text.mp4")
