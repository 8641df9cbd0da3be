"""The limits of the tests of damaged files can fail, whatever a reader catches."""

import os
import time
from pathlib import Path

import pytest

from tests.helpers import one_line as limits

pytestmark = pytest.mark.skipif(os.name == "nt", reason="The limits take Linux")


def hiding(read) -> None:
    """Does as some readers do."""
    try:
        read()
    except Exception as error:
        raise ValueError("damaged.bin cannot be read") from error


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: time.sleep(3),
        lambda folder: (folder.parent / "new").mkdir(),
        lambda folder: (folder.parent / "other" / "a").write_text("a", "utf-8"),
    ],
)
def test_no_reader_hides_what_is_forbidden(read, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 1)
    folder = tmp_path / "own"
    folder.mkdir()
    (tmp_path / "other").mkdir()
    with pytest.raises(limits.Forbidden):
        with limits.one_line(folder, "damaged.bin"):
            hiding(lambda: read(folder))


def test_a_line_that_names_the_file_is_allowed(tmp_path: Path):
    for name, is_allowed in (("damaged.bin", True), ("other.bin", False)):
        try:
            with limits.one_line(tmp_path, name):
                hiding(lambda: 1 / 0)
        except AssertionError:
            assert not is_allowed
        else:
            assert is_allowed
