"""The package's version; `pyproject.toml` reads it without importing torch."""

__version__ = "0.1.0"
