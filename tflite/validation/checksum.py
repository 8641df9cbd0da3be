"""Tells whether two files are the same, also where a file is a folder."""

import hashlib
from pathlib import Path


def sha256(path) -> str:
    """Returns the sha256 of a file, or of the names and sha256 of a folder's files."""
    found = hashlib.sha256()
    path = Path(path)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            found.update(f"{file.relative_to(path).as_posix()} {content}\n".encode())
    return found.hexdigest()
