"""The SHA-256 of a file, or of a folder's files."""

import hashlib
from pathlib import Path


def sha256(path) -> str:
    """Returns the SHA-256 of a file.

    That of a folder is made of the names and SHA-256 of its files.
    """
    path = Path(path)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            found.update(f"{file.relative_to(path).as_posix()} {content}\n".encode())
    return found.hexdigest()
