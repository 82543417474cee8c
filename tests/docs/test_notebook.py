"""The notebook runs from top to bottom, as Jupyter runs it: in its own folder, in one Python."""

import json

from helpers.processes import REPOSITORY, environment_on_the_cpu, run_python

NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"


def test_all_cells_of_the_notebook_run(tmp_path):
    (folder := tmp_path / "examples").mkdir()
    (folder / "classics-7m").symlink_to(REPOSITORY / "examples" / "classics-7m")
    (tmp_path / "tree_artifacts").symlink_to(REPOSITORY / "tree_artifacts")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    ran = run_python(code="\n".join(code), cwd=folder, **environment_on_the_cpu())
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs" / "notebook" / "model.safetensors").is_file()
    assert "nats per token after" in ran.stdout
