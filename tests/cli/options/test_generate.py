"""Settings of a text: what is given goes to `generate`, what is not stays the model's own."""

from dataclasses import fields

import pytest
from helpers.options import parse, refusal

from modeling_treediff import TreeDiffGenerationConfig
from modeling_treediff.cli.options.generate import Sampling


def settings(*line):
    return parse("generate", "m", *line)[1].settings()


def test_only_what_is_given_is_set():
    assert settings() == {}
    given = settings("--num-steps", "9", "--top-p", "0.5", "--unmasking", "margin", "--temperature", "0.7")
    assert given == {"num_steps": 9, "top_p": 0.5, "unmasking": "margin", "temperature": 0.7}
    assert settings("--temperature", "1.1", "0.8", "--steps-per-level", "48", "16") == {
        "temperature": [1.1, 0.8],
        "steps_per_level": [48, 16],
    }
    assert settings("--steps-per-level", "auto") == {"steps_per_level": "auto"}


def test_all_are_settings_of_generate():
    assert {one.name for one in fields(Sampling)} <= vars(TreeDiffGenerationConfig()).keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--prompt", "a", "--infill", "b_"], "--prompt and --infill exclude each other"),
        (["--steps-per-level", "2,3"], "--steps-per-level takes numbers or auto"),
        (["--unmasking", "guess"], "invalid choice: 'guess'"),
        (["--temperature", "warm"], "invalid float value: 'warm'"),
    ],
)
def test_what_cannot_be_is_refused(line, message):
    assert message in refusal("generate", "m", *line)
