"""The package as it is installed from a wheel, without a clone."""

import shutil
from pathlib import Path

from helpers.processes import REPOSITORY, SAMPLE, run_python

PROJECT_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "model_card.md")


def install_wheel(folder: Path) -> Path:
    """Build a wheel and install it below a folder; return the place that PYTHONPATH must name."""
    source, site = folder / "source", folder / "site"
    no_cache = shutil.ignore_patterns("__pycache__")
    for part in (REPOSITORY / "modeling_treediff", SAMPLE):
        shutil.copytree(part, source / part.relative_to(REPOSITORY), ignore=no_cache)
    for name in PROJECT_FILES:
        shutil.copy(REPOSITORY / name, source / name)
    pip = ["-m", "pip", "--disable-pip-version-check", "-q"]
    built = run_python(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    assert built.returncode == 0, built.stderr
    installed = run_python(*pip, "install", "--no-deps", "--no-index", "--target", site, *folder.glob("*.whl"))
    assert installed.returncode == 0, installed.stderr
    return site
