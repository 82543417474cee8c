"""The documents are true: every command and every block of Python in them runs, small and offline, in its page's order.

A page starts in a folder that holds corpus.txt and held_out.txt; how-to pages find the tutorial's my_tree and my_model
there as well. Scripts run in this process with options appended that make them small, `accelerate launch` becomes one
process on the CPU, and the Hub is the tests' double, with a small GPT-2. What cannot run here is listed, and its
options are checked.
"""

import importlib.util
import io
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from helpers.hub_double import hub_in_this_process
from helpers.processes import REPOSITORY, SAMPLE, environment_on_the_cpu, equal_lines, run_python
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from modeling_treediff.text import read_documents
from modeling_treediff.training.run import preflight

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
NAMES = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]
TUTORIAL = "docs/tutorial.md"
FROM_THE_BEGINNING = ("README.md", TUTORIAL)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Beginning of a command -> why it does not run here.
NOT_RUN = {
    "pip install": "would download and change the environment",
    "hf auth login": "asks for a token",
    "make quickstart": "trains for minutes",
    "make test": "runs this very test",
    "make setup": "would download and change the environment",
    "make docs": "builds the site (test_site.py)",
    ".venv/bin/pre-commit install": "would change the repository",
    "treediff app": "serves until it is stopped, and needs gradio (test_app.py)",
    "python -m modeling_treediff.evaluation.harness": "needs lm-evaluation-harness (test_harness.py)",
    "python -m benchmarks.generation.judge": "needs the weights of a judge",
    "python -m benchmarks.generation.quality": "needs the weights of a judge",
    "python -m benchmarks.memory.peaks --measure cuda": "needs a GPU",
    "accelerate launch --config_file examples/accelerate_configs/fsdp2.yaml": "needs several GPUs",
    "accelerate launch --config_file examples/accelerate_configs/ddp.yaml --num_processes 16": "needs two machines",
}
# Package that is not always there -> why; without it, blocks of Python that import it are compiled alone.
OPTIONAL = {"torchao": "not among the development packages (test_quantised.py)"}
# Script, an option without which (or, after "no", with which) this does not apply, what is appended.
SMALL = (
    ("build_tree.py", "--train-tokenizer", "--train-tokenizer 400"),
    ("train.py", "", "--max-steps 4 --batch-size 4 --warmup-steps 2 --validate-every 2 --save-every 2"),
    ("plan_memory.py", "no --from", "--layers 1"),
    ("train.py", "--global-batch-size", "--global-batch-size 8"),
    ("train.py", "no --from", "--hidden-size 16 --heads 2 --layers 1 --sequence-length 64"),
    ("train.py", "no --validation-text", "--hold-out-every 5"),
    ("train_with_trainer.py", "", "--max_steps 2 --per_device_train_batch_size 2 --hold_out_every 5 --use_cpu"),
    ("evaluate.py", "", "--limit 2"),
    ("generate.py", "", "--num-steps 8"),
    ("generate.py", "no --block-length", "--max-new-tokens 8"),
)


def blocks(page):
    """Return language and content of each fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    assert text.count("```") == 2 * len(found), f"{page.name} has a block that is not read"
    return found


def commands(block):
    """Return the words of each command in a block, its variables first."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def listed(words):
    return [start for start in NOT_RUN if f"{' '.join(words)} ".startswith(f"{start} ")]


class Page:
    """Runs the blocks of a page one after the other, as a reader would."""

    def __init__(self, name, monkeypatch, hub):
        self.name, self.monkeypatch, self.hub, self.variables = name, monkeypatch, hub, {"__name__": "__main__"}
        self.printed = ""  # by the last block of Python

    def run(self):
        for language, block in blocks(REPOSITORY / self.name):
            if language == "python":
                self.run_in_python(block)
            elif language in ("", "bash"):
                for words in commands(block):
                    self.run_command(words)
            else:
                assert language == "text", f"{self.name} has a block of {language!r} that nothing runs"
                assert equal_lines(block, self.printed) >= 0.5, f"{self.name} shows other output than its code prints"

    def run_in_python(self, block):
        if self.name == TUTORIAL:  # which promises a fresh Python
            ran = run_python(
                code=block, cwd=Path.cwd(), **environment_on_the_cpu(**self.hub.environment(Path("fresh")))
            )
            assert ran.returncode == 0, ran.stderr
        else:
            code = compile(block, self.name, "exec")
            if all(f"from {package}" not in block or importlib.util.find_spec(package) for package in OPTIONAL):
                with redirect_stdout(io.StringIO()) as printed:
                    exec(code, self.variables)
                self.printed = printed.getvalue()

    def run_command(self, words):
        if listed(words):
            return check_command(words)
        while "=" in words[0] or words[0] == "export":
            if "=" in words[0]:
                self.monkeypatch.setenv(*words[0].split("=", 1))
            if not (words := words[1:]):
                return None
        if words[:2] == ["accelerate", "launch"]:
            launched = launch_command_parser().parse_args(words[2:])
            assert launched.config_file is None or Path(launched.config_file).is_file()
            words = ["python", launched.training_script, *launched.training_script_args]
        words = as_script(words)
        assert words[0] == "python" and words[1].endswith(".py"), f"{self.name}: nothing runs or lists {words}"
        return self.run_script(words[1], words[2:])

    def run_script(self, script, options):
        for name, condition, more in SMALL:
            wanted = condition.removeprefix("no ") in ("", *options)
            if Path(script).name == name and wanted != condition.startswith("no "):
                options = [*options, *more.split()]
        self.monkeypatch.setattr(sys, "argv", [script, *options])
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, f"{self.name}: {script} {options}: {stop.code}"


def as_script(words):
    """Return a command as it runs in this process; the examples are the same command (test_main.py)."""
    if words[0] != "treediff":
        return words
    name = {"push": "push_to_hub"}.get(words[1], words[1].replace("-", "_"))
    return ["python", f"examples/{name}.py", *words[2:]]


def check_command(words):
    """Check what does not run: scripts, extras, targets and the options of scripts exist."""
    words = as_script(words)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        extras = ",".join(re.findall(r"\[(.+?)\]", " ".join(words)))
        assert {*filter(None, extras.split(","))} <= known.keys()
    elif words[:2] == ["python", "-m"]:
        assert (spec := importlib.util.find_spec(words[2]))
        if words[2].startswith("benchmarks."):  # what else stands there needs packages that are not always installed
            check_command(["python", str(Path(spec.origin).relative_to(REPOSITORY)), *words[3:]])
    elif words[0] in ("python", "accelerate"):
        if words[0] == "accelerate":
            launched = launch_command_parser().parse_args(words[2:])
            assert (REPOSITORY / launched.config_file).is_file()
            words = ["python", launched.training_script, *launched.training_script_args]
        options = {word for word in words[2:] if word.startswith("--")}
        assert (REPOSITORY / words[1]).is_file() and (not options or options <= options_of(words[1])), words


def options_of(script):
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(io.StringIO()) as printed:
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        monkeypatch.syspath_prepend(REPOSITORY / Path(script).parent)
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    return set(re.findall(r"--[\w-]+", printed.getvalue()))


@contextmanager
def reader(name, folder):
    """Someone who reads a page in a folder, with a clone of the repository around it."""
    for part in ("examples", "tree_artifacts", "benchmarks"):
        (folder / part).symlink_to(REPOSITORY / part)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        monkeypatch.setattr(preflight, "COMPILER", "eager")  # the usual one takes a minute
        with hub_in_this_process(monkeypatch, folder / "home") as hub:
            if (folder / "my_tree").is_dir():
                hub.put("openai-community/gpt2", small_gpt2(folder))
            yield Page(name, monkeypatch, hub)


def small_gpt2(folder):
    """The files of a GPT-2 of a few thousand random parameters over the tokens of my_tree."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "my_tree")
    special = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, **special)
    for part in (GPT2LMHeadModel(config), tokenizer):
        part.save_pretrained(folder / "home" / "gpt2")
    return {file.name: file.read_bytes() for file in (folder / "home" / "gpt2").iterdir()}


@pytest.fixture(scope="module")
def texts():
    documents = read_documents(SAMPLE / "validation.txt.xz")
    return {
        "corpus.txt": "\n\n".join(document[:2000] for document in documents * 2),
        "held_out.txt": "\n\n".join(document[2000:4000] for document in documents),
    }


def write(texts, folder):
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def tutorial(texts, tmp_path_factory):
    """The folder in which the tutorial has been followed, and the repositories it made on the Hub."""
    folder = tmp_path_factory.mktemp("tutorial")
    write(texts, folder)
    with reader(TUTORIAL, folder) as page:
        page.run()
    return folder, page.hub.repositories


def test_the_tutorial_ends_with_its_model_on_the_hub(tutorial):
    folder, repositories = tutorial
    assert set(repositories) == {"your-name/my-model", "your-name/my-tree"}
    repository = repositories["your-name/my-model"]
    assert (
        repository.private
        and repository.files()["model.safetensors"] == (folder / "my_model" / "model.safetensors").read_bytes()
    )
    card = repository.files()["README.md"].decode()
    assert "held_out.txt" in card  # evaluated before the push


@pytest.mark.parametrize("name", [name for name in NAMES if name != TUTORIAL])
def test_all_commands_of_a_page_run(name, request, texts, tmp_path):
    write(texts, tmp_path)
    if name not in FROM_THE_BEGINNING:
        for part in ("my_tree", "my_model"):
            shutil.copytree(request.getfixturevalue("tutorial")[0] / part, tmp_path / part)
    with reader(name, tmp_path) as page:
        page.run()


@pytest.mark.parametrize(
    "command",
    [
        "ls my_model",
        "python examples/no_such_script.py",
        "treediff no-such-subcommand",
        "treediff generate no_such_model",
        "accelerate launch --no_such_option examples/train.py",
        "make no_such_target",
        "pip install -e .[no_such_extra]",
        "python -m benchmarks.memory.peaks --measure cuda --no-such-option",
    ],
)
def test_a_wrong_command_is_found(command, tmp_path):
    with reader(TUTORIAL, tmp_path) as page, pytest.raises((AssertionError, OSError, SystemExit)):
        page.run_command(command.split())


def test_nothing_is_listed_that_no_page_has():
    found = {
        start
        for page in PAGES
        for language, block in blocks(page)
        if language in ("", "bash")
        for words in commands(block)
        for start in listed(words)
    }
    assert found == set(NOT_RUN)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = REPOSITORY / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, section = target.partition("#")
        if not path.startswith("http"):
            file = page.parent / path if path else page
            assert file.exists(), target
            if section:
                titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert section in anchors, target


@pytest.fixture(scope="module")
def drawing():
    return runpy.run_path(str(REPOSITORY / "docs" / "draw_process.py"))


@pytest.mark.parametrize("name", ["sequential", "binomial"])
def test_the_drawn_text_descends_from_the_root_to_its_tokens(drawing, name):
    tree, names = drawing["make_tree"]()
    tokens = torch.tensor([names.index(word) for word in drawing["TEXT"]])
    nodes = drawing["descend"](tree, drawing["make_schedule"](tree, name), tokens, seed=0)
    depth = tree.depth[nodes]
    assert len(names) == tree.num_nodes and (nodes[0] == tree.root_id).all() and torch.equal(nodes[-1], tokens)
    assert (depth.diff(dim=0) >= 0).all()
    assert torch.equal(nodes, tree.ancestors[tokens, depth])  # never off the path
    at_once = {len(row.unique()) for row in depth}
    assert max(at_once) <= 2 if name == "sequential" else max(at_once) > 2
