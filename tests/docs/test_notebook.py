"""The notebook runs from top to bottom, as Jupyter runs it: in its own folder, in one Python."""

import json

import pytest
from helpers.processes import REPOSITORY, environment_on_the_cpu, equal_lines, run_python

NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"
MARK = "--- end of a cell"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The cells of code, what each printed, and again what the last two did when they were run a second time."""
    top = tmp_path_factory.mktemp("notebook")
    (folder := top / "examples").mkdir()
    (folder / "classics-7m").symlink_to(REPOSITORY / "examples" / "classics-7m")
    (top / "tree_artifacts").symlink_to(REPOSITORY / "tree_artifacts")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    code = ["".join(cell["source"]) for cell in cells]
    marked = [f"{one}\nprint({MARK!r})" for one in (*code, *code[-2:])]
    process = run_python(code="\n".join(marked), cwd=folder, **environment_on_the_cpu())
    assert process.returncode == 0, process.stderr
    assert (top / "runs" / "notebook" / "model.safetensors").is_file()
    return cells, [part.strip() for part in process.stdout.split(MARK)[:-1]]


def test_all_cells_run_and_those_that_train_a_second_time(ran):
    cells, printed = ran
    assert len(printed) == len(cells) + 2
    assert all("nats per token after" in printed[place] for place in (-2, -4))


def test_what_the_notebook_shows_is_what_its_cells_print(ran):
    """But for the two that train, whose figures hang on the number of threads."""
    cells, printed = ran
    shown = ["".join("".join(output["text"]) for output in cell["outputs"]) for cell in cells]
    assert all(one.strip() for one in shown)
    equal = [equal_lines(one, other) >= 0.5 for one, other in zip(shown[:-2], printed, strict=False)]
    assert equal.count(False) <= 1, equal  # as rounding differs between processors
