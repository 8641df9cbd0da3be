"""Image files for tests, made in memory and written in folders."""

import io
from pathlib import Path

from PIL import Image

from train.sources import SPLITS


def pil_file(mode, color, kind, size=(90, 60), **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, kind, **options)
    return file.getvalue()


def make_folder(path: Path, classes: dict) -> Path:
    """Writes `{class: {name: bytes}}` as both splits of a folder."""
    for split in SPLITS:
        for name, files in classes.items():
            folder = path / split / name
            folder.mkdir(parents=True)
            for file, content in files.items():
                (folder / file).write_bytes(content)
    return path
