"""Files and folders are replaced completely or not at all."""

import builtins
import errno
import os
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keras_mobilevit.files import (
    atomic_write,
    atomic_write_folder,
    read_json,
    read_lines,
    read_text,
    temporary_path,
)


def test_threads_may_write_the_same_file(tmp_path):
    path, both_write = tmp_path / "a.txt", threading.Barrier(2, timeout=10)

    def write(text: str) -> None:
        with atomic_write(path) as temporary:
            both_write.wait()
            temporary.write_text(text)
            both_write.wait()
            assert temporary.read_text() == text

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, "ab"))
    assert [x.name for x in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows asks for a right to make links")
def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "other.txt").write_text("kept")
    temporary_path(tmp_path / "a.txt").symlink_to(tmp_path / "other.txt")
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "other.txt").read_text() == "kept"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_folder_replaces_a_folder(tmp_path):
    for text in ("old", "new"):
        with atomic_write_folder(tmp_path / "a.mlpackage") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert [p.name for p in tmp_path.rglob("*")] == ["a.mlpackage", "new"]


def test_a_failure_keeps_the_earlier_folder(tmp_path):
    folder = tmp_path / "a.mlpackage"
    folder.mkdir()
    with pytest.raises(OSError, match="full"):
        with atomic_write_folder(folder) as temporary:
            temporary.mkdir()
            (temporary / "half").write_text("")
            raise OSError("the disk is full")
    assert [p.name for p in tmp_path.rglob("*")] == ["a.mlpackage"]


def test_an_earlier_folder_survives_a_failed_exchange(tmp_path, monkeypatch):
    folder = tmp_path / "a.mlpackage"
    folder.mkdir()
    (folder / "earlier").write_text("")
    replace = os.replace

    def fail_to_put_in_place(source, target):
        if Path(target) == folder and Path(source).name == folder.name:
            raise OSError("the disk is full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_to_put_in_place)
    with pytest.raises(OSError, match="full"):
        with atomic_write_folder(folder) as temporary:
            temporary.mkdir()
    assert [p.name for p in tmp_path.rglob("*")] == ["a.mlpackage", "earlier"]


def test_a_folder_replaces_a_file(tmp_path):
    (tmp_path / "a.mlpackage").write_text("")
    with atomic_write_folder(tmp_path / "a.mlpackage") as temporary:
        temporary.mkdir()
    assert [p.name for p in tmp_path.rglob("*")] == ["a.mlpackage"]
    assert (tmp_path / "a.mlpackage").is_dir()


@pytest.fixture
def windows(monkeypatch):
    """Simulates two errors of Windows that Linux does not have.

    Windows flushes a file only through a handle that may write, and it does not replace
    a file or folder in which a file is open.
    """
    fcntl = pytest.importorskip("fcntl", reason="this simulates Windows elsewhere")
    open_files, really_open = {}, builtins.open

    def remembering_open(file, *arguments, **options):
        opened = really_open(file, *arguments, **options)
        open_files[opened] = os.path.realpath(file)
        return opened

    def fsync(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    def replace(source, target, really=os.replace):
        taken = [path for file, path in open_files.items() if not file.closed]
        for name in map(os.path.realpath, (source, target)):
            if any(path == name or path.startswith(name + os.sep) for path in taken):
                raise PermissionError(errno.EACCES, "It is used by another process")
        if os.path.isdir(target):
            raise PermissionError(errno.EACCES, "Access is denied")
        really(source, target)

    monkeypatch.setattr(builtins, "open", remembering_open)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)


def test_the_simulation_of_windows(windows, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    with open(one, "rb") as file:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fsync(file.fileno())
        with pytest.raises(PermissionError, match="another process"):
            os.replace(other, one)
    os.replace(other, one)
    with pytest.raises(PermissionError, match="denied"):
        os.replace(one, tmp_path)


def test_a_file_is_replaced_on_windows(windows, tmp_path):
    path = tmp_path / "labels.txt"
    for text in ("old", "new"):
        with atomic_write(path) as temporary:
            temporary.write_text(text, "utf-8")
        assert path.read_text("utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["labels.txt"]


def test_a_folder_is_replaced_on_windows(windows, tmp_path):
    folder = tmp_path / "a.mlpackage"
    for text in ("old", "new"):
        with atomic_write_folder(folder) as temporary:
            (temporary / "Data").mkdir(parents=True)
            (temporary / "Data" / text).write_text(text, "utf-8")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["Data", "a.mlpackage", "new"]


def test_a_file_in_use_on_windows_stays(windows, tmp_path):
    path = tmp_path / "best.keras"
    path.write_bytes(b"old")
    with open(path, "rb"):
        with pytest.raises(PermissionError, match="another process"):
            with atomic_write(path) as temporary:
                temporary.write_bytes(b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["best.keras"]
    assert path.read_bytes() == b"old"


def test_weights_are_saved_on_windows(windows, tmp_path):
    """Keras writes the file; it must not stay open."""
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    for _ in range(2):
        with atomic_write(tmp_path / "model.keras") as temporary:
            model.save(temporary)
    keras.models.load_model(tmp_path / "model.keras")


def make_unusual(path: Path, kind: str) -> None:
    """Makes something at a path that is no file."""
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["named pipe", "device", "folder", "socket"])
def test_what_is_no_file_is_not_opened(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 100 characters
    path = Path("labels.txt")
    make_unusual(path, kind)
    for read in (read_text, read_lines, read_json):
        with pytest.raises(ValueError, match=f"labels.txt is a {kind}. Expected a fil"):
            read(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "labels.txt"
    with open(path, "wb") as file:
        file.truncate(30 * 2**30)  # a sparse file, which takes no space
    with pytest.raises(ValueError, match="labels.txt has 32,212,254,720 bytes. Expec"):
        read_lines(path)


@pytest.mark.parametrize("text", ["{", "[" * 200_000, '{"a":' * 100_000, "9" * 5000])
def test_json_that_python_cannot_parse_is_named(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match="config.json is not valid JSON: .+[.]$"):
        read_json(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_permissions_of_new_files(mask, mode, tmp_path):
    """safetensors.save_file makes a file that only its owner may read."""
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "a.safetensors") as temporary:
            temporary.write_text("", "utf-8")
            temporary.chmod(0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FULL, r"\[Errno \d+\] No space left on device: '.*/best.keras'"),
        (OSError("Unable to write"), "Cannot write .*/best.keras: Unable to write"),
        (FileNotFoundError(errno.ENOENT, "No such file", "other"), ": 'other'"),
    ],
)
def test_an_error_names_the_file_that_was_written(error, message, tmp_path):
    (tmp_path / "best.keras").write_bytes(b"old")
    with pytest.raises(type(error), match=message):
        with atomic_write(tmp_path / "best.keras") as temporary:
            temporary.write_bytes(b"half")
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ["best.keras"]
    assert (tmp_path / "best.keras").read_bytes() == b"old"


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="a/best.keras"):
        with atomic_write(tmp_path / "a" / "best.keras"):
            pass
