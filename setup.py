"""Adds the model card's template, which lies at the top of the repository, to the package; all else: pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TEMPLATE = "model_card.md"


class BuildWithTemplate(build_py):
    """Builds the package and copies the template into it."""

    def run(self) -> None:
        """Build, then copy; an editable install finds the template where it is."""
        super().run()
        if not self.editable_mode:
            self.copy_file(TEMPLATE, str(Path(self.build_lib) / "modeling_treediff" / "hub" / TEMPLATE))

    def get_source_files(self) -> list[str]:
        """Name what a source distribution needs."""
        return [*super().get_source_files(), TEMPLATE]


setup(cmdclass={"build_py": BuildWithTemplate})
