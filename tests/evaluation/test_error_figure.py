"""The figure of an error analysis: a picture of one model, a wider one of two."""

from helpers.compared_models import compared_errors
from PIL import Image

from modeling_treediff.evaluation.error_figure import draw_errors


def test_two_models_have_a_second_panel(tokenizer, tmp_path):
    record = compared_errors(tokenizer) | {"models": {name: {"title": name} for name in ("model", "reference")}}
    alone = record | {"rows": [row | {"reference": None, "difference": None} for row in record["rows"]]}
    for name, facts in (("two", record), ("one", alone)):
        draw_errors(facts, tmp_path / f"{name}.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.format == one.format == "PNG" and two.height == one.height
        assert two.width / one.width == 15 / 9
