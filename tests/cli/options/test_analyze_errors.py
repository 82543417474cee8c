"""Whose errors on which text."""

from helpers.options import parse, refusal


def test_the_reference_is_optional_and_the_text_is_not():
    models, text, _, _ = parse("analyze-errors", "m", "--text", "a.txt")
    assert (models.model, models.reference, text.text) == ("m", None, "a.txt")
    assert parse("analyze-errors", "m", "flat", "--text", "a.txt")[0].reference == "flat"
    assert "required: --text" in refusal("analyze-errors", "m")
    assert "--limit must be at least 1" in refusal("analyze-errors", "m", "--text", "a.txt", "--limit", "0")
