"""Dataclasses become options: one spelling, groups, defaults that are shown, errors of one line."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from modeling_treediff.cli.options.fields import REQUIRED, check_exclusive, operand, option
from modeling_treediff.cli.options.parser import OptionParser


@dataclass
class Operands:
    model: str = operand("a model")
    files: list[Path] = operand("files", nargs="*")


@dataclass(kw_only=True)
class Settings:
    _argument_group_name = "settings"

    output: Path = option(REQUIRED, "folder")
    source: str | None = option(None, "a checkpoint", flag="from")
    some_steps: int = option(3, "steps, 5 %% of them warm-up")
    zero: float = option(0.0, "a number")
    names: list[str] | None = option(None, "names")
    watch: bool = option(False, "look on")

    def __post_init__(self):
        check_exclusive(self, "source", "names")
        if self.some_steps < 1:
            raise ValueError("some_steps must be at least 1.")


def make():
    return OptionParser([Operands, Settings], "tool", "What it does.", "  tool a b")


def parse(*line):
    return make().parse(line)


def test_operands_flags_and_renamed_options_are_read():
    operands, settings = parse("--watch", "my_model", "--from", "a", "--some-steps", "5", "--output", "x")
    assert operands.model == "my_model" and settings == Settings(output=Path("x"), source="a", some_steps=5, watch=True)
    assert parse("m", "--output", "x", "--names", "a", "b")[1].names == ["a", "b"]


def test_help_has_groups_defaults_types_and_examples():
    shown = " ".join(make().format_help().split())
    for part in (
        "usage: tool MODEL", "--output OUTPUT [options]", "What it does.", "settings:", "--from str a checkpoint",
        "--some-steps int steps, 5 % of them warm-up (default: 3)", "--zero float a number (default: 0.0)",
        "--watch look on examples: tool a b",
    ):  # fmt: skip
        assert part in f"{shown} --", part
    assert "None" not in shown and "False" not in shown and "_" not in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["m"], "the following arguments are required: --output"),
        (["m", "--output", "x", "--some-step", "4"], "unknown option --some-step; the nearest is --some-steps"),
        (["m", "--output", "x", "--some-steps", "0"], "some_steps must be at least 1."),
        (["m", "--output", "x", "--some-steps", "many"], "argument --some-steps: invalid int value: 'many'"),
        (["m", "--output", "x", "--from", "a", "--names", "b"], "--from and --names exclude each other"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(capsys, line, message):
    with pytest.raises(SystemExit) as ended:
        parse(*line)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("tool: error: ") and message in said and said.count("\n") == 1


def test_what_dataclasses_contradict_each_other_in_is_checked(capsys):
    def check(operands, settings):
        if operands.model == str(settings.output):
            raise ValueError("the model would be overwritten")

    assert make().parse(["m", "--output", "x"], check)
    with pytest.raises(SystemExit, match="2"):
        make().parse(["x", "--output", "x"], check)
    assert "tool: error: the model would be overwritten" in capsys.readouterr().err
