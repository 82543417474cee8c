"""Options from a file are the options of the command line, and its errors are one line."""

import json
from dataclasses import dataclass

import pytest

from modeling_treediff.cli.options.fields import operand, option
from modeling_treediff.cli.options.parser import OptionParser


@dataclass
class Options:
    steps: int = option(10, "steps")
    learning_rate: float = option(0.1, "rate")
    resume: bool = option(False, "go on")
    source: str | None = option(None, "checkpoint", flag="from")
    log_with: list[str] | None = option(None, "trackers", choices=("tensorboard", "wandb"))
    lengths: list[float] | None = option(None, "lengths")


def parse(tmp_path, text, *line):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return OptionParser([Options], "train", "", "").parse([*line, "--config", str(file)])[0]


def test_a_file_says_what_the_command_line_would(tmp_path):
    text = (
        "steps: 20\nlearning_rate: 1e-3\nresume: true\nfrom: -a b\nlog-with: [wandb, tensorboard]\nlengths: [1, -2.5]\n"
    )
    assert parse(tmp_path, text) == Options(20, 1e-3, True, "-a b", ["wandb", "tensorboard"], [1.0, -2.5])
    values = {"steps": 20, "learning-rate": 0.001, "resume": False, "lengths": None, "log-with": []}
    assert parse(tmp_path, json.dumps(values)) == Options(20, 1e-3)


@pytest.mark.parametrize("word", ["no", "off", "false", "1_000", "12:30", "1e3"])
def test_a_value_stays_as_it_is_written(tmp_path, word):
    """YAML 1.1 would read `no` as false and 12:30 as a number."""
    assert parse(tmp_path, f"from: {word}") == Options(source=word)


@pytest.mark.parametrize("key", ["steps", "learning-rate"])
def test_a_number_is_not_left_out_for_being_false(tmp_path, key, capsys):
    with pytest.raises(SystemExit):
        parse(tmp_path, f"{key}: false")
    assert f"argument --{key}: invalid" in capsys.readouterr().err


def test_a_list_in_a_file_does_not_take_the_operands(tmp_path):
    @dataclass
    class Command:
        model: str = operand("a model")
        words: list[str] | None = option(None, "words")

    file = tmp_path / "config.yaml"
    file.write_text("words: [war, peace]")
    for line in (["mine", "--config", str(file)], ["--config", str(file), "mine"]):
        assert OptionParser([Command], "generate", "", "").parse(line) == (Command("mine", ["war", "peace"]),)


def test_the_command_line_wins(tmp_path):
    assert parse(tmp_path, "steps: 20\nlearning-rate: 0.5\n", "--steps", "30") == Options(30, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 3", "config.yaml: unknown option --step; the nearest is --steps"),
        ("learningrate: 3", "config.yaml: unknown option --learningrate; the nearest is --learning-rate"),
        ("source: a", "config.yaml: unknown option --source"),
        ("steps: many", "argument --steps: invalid int value: 'many'"),
        ("log-with: [mlflow]", "argument --log-with: invalid choice: 'mlflow'"),
        ("resume: 3", "argument --resume: ignored explicit argument '3'"),
        ("- steps", "must hold options and their values"),
        ("", "must hold options and their values"),
        ("steps: [", "is neither YAML nor JSON"),
        ("config: other.yaml", "cannot name a further file"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as ended:
        parse(tmp_path, text)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and said.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line_too(capsys):
    with pytest.raises(SystemExit):
        OptionParser([Options], "train", "", "").parse(["--config", "nowhere.yaml"])
    said = capsys.readouterr().err
    assert "nowhere.yaml cannot be read" in said and said.count("\n") == 1
