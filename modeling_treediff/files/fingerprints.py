"""The sha256 of a file: what `sha256sum` prints and the Hub shows."""

import hashlib
from pathlib import Path


def file_sha256(file: Path) -> str:
    """Return the sha256 of a file's bytes, as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
