"""The command: quick, the same from everywhere, and all its options documented."""

import json
import re
import sys
from dataclasses import fields

import pytest
from helpers.options import options_module, parse
from helpers.processes import REPOSITORY, last_line, run_here, run_python, run_treediff

from modeling_treediff.cli.main import SUBCOMMANDS
from modeling_treediff.cli.options.fields import flag_of
from modeling_treediff.training import TrainingConfig
from modeling_treediff.training.data.options import DataOptions

MODULES = {name: name.replace("-", "_") for name in SUBCOMMANDS}
EXAMPLES = {name: f"{module}.py" for name, module in MODULES.items()} | {"push": "push_to_hub.py"}
HELP = """
import sys
sys.argv[0] = "treediff"  # as the installed command is called
from modeling_treediff.cli.main import main
try:
    main()
finally:
    print(*sys.modules)
"""
LINES = """
import json, sys
lines, *lacking = sys.argv[1:]
sys.argv[0] = "treediff"
sys.modules.update(dict.fromkeys(lacking))  # as if these were not installed
from modeling_treediff.cli.main import main
for line in json.loads(lines):
    try:
        main(line)
    except SystemExit as stop:
        print(*([stop] if isinstance(stop.code, str) else []), file=sys.stderr, end="\\n" if stop.code else "")
print(*sys.modules)
"""
OPTIONS = {name: options_module(name) for name in SUBCOMMANDS}


def test_help_lists_all_subcommands_at_once():
    """In a fraction of a second, since nothing large is imported."""
    ran = run_python("--help", code=HELP)
    listed, imported = ran.stdout.strip().rsplit("\n", 1)
    assert ran.returncode == 0 and re.findall(r"^  ([a-z-]+) {2,}\w", listed, re.MULTILINE) == list(SUBCOMMANDS)
    assert not {"torch", "transformers", "numpy"} & set(imported.split())


def test_options_are_read_without_torch():
    lines = [[name, "--help"] for name in ("evaluate", "inspect-tree", "push")]
    ran = run_python(json.dumps(lines), code=LINES)
    assert ran.stdout.count("usage: treediff") == 3 and "torch" not in ran.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    ("line", "message"),
    [([], "name a subcommand"), (["trian"], "unknown subcommand 'trian'; the nearest is train")],
)
def test_a_wrong_subcommand_is_one_line(line, message):
    ran = run_here(*line)
    assert ran.returncode == 2 and message in last_line(ran) and ran.stderr.count("\n") == 1


def test_a_failure_is_one_line_with_the_subcommands_name():
    ran = run_treediff("inspect-tree", "no/such/folder")
    assert ran.returncode == 1 and last_line(ran).startswith("treediff inspect-tree: error: ")


def test_a_missing_package_is_one_line_with_its_remedy():
    extras = {"evaluate": "eval", "inspect-tree": "build", "build-tree": "build", "train": "train"}
    more = {"evaluate": ["model", "text.txt"], "inspect-tree": ["sotu-8k"], "train": ["--help"]}
    lines = [[name, *more.get(name, ["--train-tokenizer", "300", "--text", "t", "--output", "o"])] for name in extras]
    ran = run_python(json.dumps(lines), "accelerate", "rich", "scipy", code=LINES)
    for said, (name, extra) in zip(ran.stderr.splitlines(), extras.items(), strict=True):
        assert said.startswith(f"treediff {name}: error: ") and f"pip install 'modeling-treediff[{extra}]'" in said


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_an_example_is_the_same_command(name, monkeypatch, capsys):
    shown = run_here(name, "--help")
    assert shown.returncode == 0 and f"usage: treediff {name}" in shown.stdout and "examples:\n" in shown.stdout
    example = REPOSITORY / "examples" / EXAMPLES[name]
    code = compile(example.read_text(), str(example), "exec")
    monkeypatch.setattr(sys, "argv", [str(example), "--help"])
    with pytest.raises(SystemExit, match="0"):
        exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out == shown.stdout


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_option_has_help_and_no_two_the_same_name(name):
    options = [one for kind in OPTIONS[name].OPTIONS for one in fields(kind)]
    assert all(one.metadata.get("help", "").strip() for one in options)
    names = [flag_of(one) for one in options]
    assert len(set(names)) == len(names)
    used = set(re.findall(r"(?<!\w)--[a-z-]+", OPTIONS[name].EXAMPLES))
    assert used <= {*names, *(flag for other in OPTIONS for kind in OPTIONS[other].OPTIONS
                              for flag in map(flag_of, fields(kind)))}  # fmt: skip


def test_the_defaults_shown_are_the_defaults_used(tmp_path):
    """Those that `train --help` prints, parsed; and those of a config made in Python."""
    options = parse("train")
    shown = " ".join(run_here("train", "--help").stdout.split())
    printed = dict(re.findall(r"(--[a-z-]+) (?!--)(?:(?! --[a-z]).)*?\(default: ([^()]+)\)", shown))
    config = next(one for one in options if isinstance(one, TrainingConfig))
    assert config == TrainingConfig()
    data = next(one for one in options if hasattr(one, "data_options")).data_options(64)
    assert data == DataOptions(64)
    checked = 0
    for instance in options:
        for one in fields(instance):
            value = getattr(instance, one.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert float(printed[flag_of(one)]) == value
                checked += 1
    assert checked >= 18


def test_every_training_setting_is_an_option():
    excluded = {"gradient_accumulation_steps", "warmup_steps", "decay_steps"}  # by others
    words = {"--trackers": "wandb", "--learning-rate-schedule": "wsd", "--mixed-precision": "bf16"}
    words |= {"--attn-implementation": "sdpa"}
    line = []
    for one in fields(TrainingConfig):
        number = "0.5" if "float" in str(one.type) else "77"
        if one.name not in excluded:
            line += [flag_of(one)] + ([] if isinstance(one.default, bool) else [words.get(flag_of(one), number)])
    config = next(one for one in parse("train", *line) if isinstance(one, TrainingConfig))
    unchanged = {one.name for one in fields(config) if getattr(config, one.name) == getattr(TrainingConfig(), one.name)}
    assert unchanged == excluded
