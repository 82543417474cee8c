"""What is measured of which texts, refused before it is measured."""

from helpers.options import parse, refusal


def test_several_texts_of_one_model(tmp_path):
    measured, text, _, how = parse("evaluate", "m", "a.txt", "b.txt", "--limit", "1", "--json", f"{tmp_path}/a.json")
    assert (measured.model, measured.texts, text.limit) == ("m", ["a.txt", "b.txt"], 1) and how.sequence_length is None


def test_what_would_fail_only_in_the_end_is_refused(tmp_path):
    assert "--limit must be at least 1" in refusal("evaluate", "m", "a.txt", "--limit", "0")
    for place in (tmp_path, tmp_path / "no" / "file.json"):
        assert "must name a file in an existing folder" in refusal("evaluate", "m", "a.txt", "--json", str(place))
    assert "required: TEXT" in refusal("evaluate", "m")
