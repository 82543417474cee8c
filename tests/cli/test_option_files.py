"""Options from a file are the options of the command line, and its errors are one line."""

import json

import pytest

from modeling_treediff.cli.option_files import OptionParser


def parser():
    made = OptionParser(prog="train.py")
    made.add_argument("--steps", type=int, default=10)
    made.add_argument("--learning-rate", type=float, default=0.1)
    made.add_argument("--resume", action="store_true")
    made.add_argument("--from", dest="source")
    made.add_argument("--log-with", nargs="+", choices=("tensorboard", "wandb"), default=[])
    made.add_argument("--lengths", type=float, nargs="+")
    return made


def parse(tmp_path, text, *line):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return parser().parse_args([*line, "--config", str(file)])


def test_a_file_says_what_the_command_line_would(tmp_path):
    text = (
        "steps: 20\nlearning_rate: 1e-3\nresume: true\nfrom: -a b\nlog-with: [wandb, tensorboard]\nlengths: [1, -2.5]\n"
    )
    options = parse(tmp_path, text)
    assert (options.steps, options.learning_rate, options.resume, options.source) == (20, 1e-3, True, "-a b")
    assert options.log_with == ["wandb", "tensorboard"] and options.lengths == [1.0, -2.5]
    values = {"steps": 20, "learning-rate": 0.001, "resume": False, "lengths": None}
    options = parse(tmp_path, json.dumps(values))
    assert (options.steps, options.learning_rate, options.resume, options.lengths) == (20, 1e-3, False, None)


def test_the_command_line_wins(tmp_path):
    options = parse(tmp_path, "steps: 20\nlearning-rate: 0.5\n", "--steps", "30")
    assert (options.steps, options.learning_rate) == (30, 0.5)


def test_what_is_not_given_is_known(tmp_path):
    made = parser()
    options = made.parse_args(["--steps", "11", "--learning-rate", "0.1"])
    assert made.given(options, ("steps", "learning_rate", "source")) == ["steps"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 3", "config.yaml has an unknown option 'step'; the nearest is 'steps'"),
        ("learningrate: 3", "unknown option 'learningrate'; the nearest is 'learning-rate'"),
        ("steps: many", "argument --steps: invalid int value: 'many'"),
        ("log-with: [mlflow]", "argument --log-with: invalid choice: 'mlflow'"),
        ("resume: 3", "resume is either true or false, got 3"),
        ("- steps", "must hold options and their values"),
        ("", "must hold options and their values"),
        ("steps: [", "is neither YAML nor JSON"),
        ("config: other.yaml", "unknown option 'config'"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as ended:
        parse(tmp_path, text)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and said.count("\n") == 1


def test_a_file_that_is_not_there_and_an_unknown_option_are_one_line_too(tmp_path, capsys):
    for line, message in ((["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"), (["--stepz", "3"], "--stepz")):
        with pytest.raises(SystemExit):
            parser().parse_args(line)
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
