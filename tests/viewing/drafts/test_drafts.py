"""Recorded drafts: what is shown is what `generate` did."""

from modeling_treediff.viewing.drafts import DraftRecorder


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
