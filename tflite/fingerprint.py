"""Tells whether two files are the same, also where a file is a folder."""

import hashlib
from pathlib import Path


def sha256(path) -> str:
    """Returns the sha256 of a file, or of a folder's files one after the other."""
    found = hashlib.sha256()
    path = Path(path)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(file.read_bytes())
    return found.hexdigest()
