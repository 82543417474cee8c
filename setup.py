"""Adds to the package what lies at the top of the repository: the card's template, the sample; else: pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SAMPLE = Path("tree_artifacts/sotu-8k")
# File of the repository -> its place in the package.
CARRIED = {"model_card.md": "hub/model_card.md"} | {path.as_posix(): path.as_posix() for path in SAMPLE.iterdir()}


class BuildWithCarried(build_py):
    """Builds the package and copies these files into it."""

    def run(self) -> None:
        """Build, then copy; an editable install finds the files where they are."""
        super().run()
        if self.editable_mode:
            return
        for source, place in CARRIED.items():
            target = Path(self.build_lib) / "modeling_treediff" / place
            self.mkpath(str(target.parent))
            self.copy_file(source, str(target))

    def get_source_files(self) -> list[str]:
        """Name what a source distribution needs."""
        return [*super().get_source_files(), *CARRIED]


setup(cmdclass={"build_py": BuildWithCarried})
