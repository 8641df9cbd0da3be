"""Downloads files of the Hugging Face Hub into the cache of its library, verified.

The library would trust the server: it writes where the ETag and the name of the commit
lead, and does not compare the content with them. Here they are checked before anything
is written, and the content before it gets its name. The cache has the library's layout
(`blobs`, `snapshots` and `refs`), so that other programs find the files.
"""

import hashlib
import os
import queue
import re
import shutil
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from keras_mobilevit.files import atomic_write, temporary_path

# Without a network both together are the longest wait.
CONNECT_SECONDS = 4
ANSWER_SECONDS = 5
MAX_SIZE = 2**30  # bytes; the largest published file has 74 MB
_COMMIT = re.compile("[0-9a-f]{40}")
_HASH = re.compile("[0-9a-f]{64}|[0-9a-f]{40}")


class _Stated(NamedTuple):
    """What the Hub states about a file: the commit, the content's hash and its size.

    The hash is the SHA-256 of a large file, and Git's SHA-1 of a small one.
    """

    commit: str
    content_hash: str
    size: int


class _Limited:
    """A file that refuses more bytes than the server has stated."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size

    def write(self, data: bytes) -> int:
        if self.file.tell() + len(data) > self.size:
            raise ValueError(
                f"The server sends more than the stated {self.size} bytes."
            )
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def is_commit(revision: str) -> bool:
    """Tells whether a revision is a whole commit, whose content never changes."""
    return bool(_COMMIT.fullmatch(revision))


def is_inside(name: str) -> bool:
    """Tells whether a file's name is a path that stays in the folder it is put into."""
    parts = name.split("/")
    is_plain = name.isprintable() and not re.search(r"[\\:]", name)
    return is_plain and all(part not in ("", ".", "..") for part in parts)


def not_downloaded(name: str, url: str, error: Exception) -> OSError:
    """Returns an error that says what to do without a network."""
    return OSError(
        f"{name} is not cached and cannot be downloaded. Without a network, fetch "
        f"{url} on another machine and pass the file's path as `weights` or --weights. "
        f"Cause: {error}"
    )


def require_network(url: str) -> None:
    """Raises an OSError if a server does not accept a connection within seconds.

    The Hub's client would wait for each address of the server in turn, and for their
    look-up without a limit. Here all addresses are tried at once, since one of them may
    be out of reach. Behind a proxy nothing is checked, because the proxy looks them up.
    """
    address = urllib.parse.urlsplit(url)
    if address.scheme not in ("http", "https") or urllib.request.getproxies():
        return
    host, port = address.hostname, address.port or address.scheme
    end = time.monotonic() + CONNECT_SECONDS
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask(function: Callable, *arguments: Any) -> None:
        def run() -> None:
            try:
                answers.put(function(*arguments))
            except Exception as error:
                answers.put(error)

        threading.Thread(target=run, daemon=True).start()

    def wait() -> Any:
        try:
            return answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"{host} does not answer.") from None

    ask(socket.getaddrinfo, host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)
    answer = wait()
    if isinstance(answer, Exception):
        raise answer
    addresses = {row[4][:2] for row in answer}
    for one in addresses:
        ask(lambda to: socket.create_connection(to, CONNECT_SECONDS).close(), one)
    for _ in addresses:
        answer = wait()
        if not isinstance(answer, Exception):
            return
    raise answer


def within(seconds: float, function: Callable, *arguments: Any, **options: Any) -> Any:
    """Returns what a function returns; raises a TimeoutError if that takes too long.

    The Hub's client limits the time of each read. A server that sends a byte now and
    then would hold it forever.
    """
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((function(*arguments, **options), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("The server does not end its answer.") from None
    if error is not None:
        raise error
    return result


def check_online() -> None:
    """Raises an OSError if the user has set `HF_HUB_OFFLINE`."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set.")


def repository_folder(repository: str) -> Path:
    """Returns the folder of a repository in the cache."""
    from huggingface_hub import constants

    folder = f"models--{repository.replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE) / folder


def cached_file(repository: str, revision: str, filename: str) -> Path | None:
    """Returns the path of a file in the cache, if it is there."""
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(
        repository, filename, revision=revision
    )
    return Path(path) if isinstance(path, str) else None


def fetch_file(
    repository: str, revision: str, filename: str, sha256: str | None = None
) -> Path:
    """Returns the cached copy of a file; the first call downloads it.

    A cached copy is used without a request if it has the `sha256`, or if the cache
    knows its hash. Raises an OSError if the download fails, and a ValueError if the
    content does not have the hash that the Hub states.
    """
    path = cached_file(repository, revision, filename)
    if path is None:
        return _download(repository, revision, filename)
    blobs = repository_folder(repository) / "blobs"
    expected = _name_of_blob(path, blobs)
    hashes = _hashes(path)
    if sha256 in hashes:
        return path
    if expected is None and not any((blobs / name).is_file() for name in hashes):
        expected = _ask_about_cached(repository, revision, filename, path)
        if expected in hashes:
            _remember_hash(path, blobs / expected)
    if expected is not None and expected not in hashes:
        if _name_of_blob(path, blobs):
            (blobs / expected).unlink(missing_ok=True)
        path.unlink(missing_ok=True)  # not what it points to, outside of the cache
        raise _damaged(repository, filename, hashes, expected)
    return path


def _ask_about_cached(repository: str, revision: str, filename: str, path: Path) -> str:
    try:
        return _ask(repository, revision, filename).content_hash
    except OSError as error:
        raise OSError(
            f"The cache does not know the hash of {filename} of {repository}, and the "
            "Hub cannot be asked. If you trust the file, pass its path as `weights`: "
            f"{path}. Cause: {error.__cause__}"
        ) from error


def _name_of_blob(path: Path, blobs: Path) -> str | None:
    """Returns the hash that names the blob to which a file in the cache points.

    On a disk without symbolic links, and in a copied cache, it is a file of its own.
    """
    if not path.is_symlink():
        return None
    blob = Path(os.path.normpath(path.parent.resolve() / os.readlink(path)))
    is_blob = blob.parent == blobs.resolve() and _HASH.fullmatch(blob.name)
    return blob.name if is_blob else None


def _hashes(path: Path) -> tuple[str, str]:
    """Returns the SHA-256 of a file, and the SHA-1 that Git gives it."""
    content = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return hashlib.sha256(content).hexdigest(), git.hexdigest()


def _remember_hash(path: Path, blob: Path) -> None:
    """Gives a verified file the name of a blob too, so the Hub is not asked again."""
    try:
        blob.parent.mkdir(exist_ok=True)
        os.link(path.resolve(), blob)
    except OSError:  # not on every disk: then the Hub is asked each time
        pass


def _damaged(
    repository: str, filename: str, hashes: tuple[str, str], expected: str
) -> ValueError:
    kind, found = ("sha256", hashes[0]) if len(expected) == 64 else ("sha1", hashes[1])
    return ValueError(
        f"{filename} of {repository} has the {kind} {found}. Expected: {expected}. "
        "The damaged file was removed. Try again."
    )


def _ask(repository: str, revision: str, filename: str) -> _Stated:
    """Asks the Hub for a file's commit, hash and size, and checks the answer."""
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(repository, filename, revision=revision)
    try:
        check_online()
        require_network(url)
        ask = huggingface_hub.get_hf_file_metadata
        found = within(2 * ANSWER_SECONDS, ask, url, timeout=ANSWER_SECONDS)
    except Exception as error:  # network and Hub raise many types
        raise not_downloaded(f"{filename} of {repository}", url, error) from error
    commit = check_commit(found.commit_hash, repository, revision)
    if not _HASH.fullmatch(found.etag or ""):
        raise ValueError(
            f"The server states no hash of {filename} of {repository}. Expected an "
            f"ETag that is a SHA-256 or Git's SHA-1. Received: {found.etag!r}. Nothing "
            f"was written. Check HF_ENDPOINT, or fetch {url} yourself and pass the "
            "file's path as `weights`."
        )
    if (found.size or 0) > MAX_SIZE:
        raise ValueError(
            f"{filename} of {repository} has {found.size:,} bytes. Expected at most "
            f"{MAX_SIZE:,}. Check the name: no MobileViT is as large."
        )
    return _Stated(commit, str(found.etag), found.size or MAX_SIZE)


def check_commit(commit: Any, repository: str, revision: str) -> str:
    """Returns the commit that a server states for a revision, if it can be true."""
    wanted = revision if is_commit(revision) else "40 hexadecimal digits"
    if not is_commit(str(commit)) or is_commit(revision) and commit != revision:
        raise ValueError(
            f"The server states another commit of {repository}. Expected: {wanted}. "
            f"Received: {commit!r}. Nothing was written. Check HF_ENDPOINT."
        )
    return commit


def _download(repository: str, revision: str, filename: str) -> Path:
    """Downloads a file into the cache, and returns its path there."""
    import huggingface_hub

    stated = _ask(repository, revision, filename)
    folder = repository_folder(repository)
    blob = folder / "blobs" / stated.content_hash
    path = folder / "snapshots" / stated.commit / filename
    url = huggingface_hub.hf_hub_url(repository, filename, revision=stated.commit)
    try:
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.is_file() or stated.content_hash not in _hashes(blob):
            _download_blob(url, repository, filename, stated, blob)
        _point_to_blob(path, blob)
        if revision != stated.commit:
            remember_commit(repository, revision, stated.commit)
    except ValueError:  # the content is not the stated one
        raise
    except Exception as error:  # network, Hub and disk raise many types
        raise not_downloaded(f"{filename} of {repository}", url, error) from error
    return path


def _download_blob(
    url: str, repository: str, filename: str, stated: _Stated, blob: Path
) -> None:
    """Downloads a file's content, which gets its name if its hash is the stated one."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    with atomic_write(blob) as temporary:
        with open(temporary, "wb") as file:
            limited = _Limited(file, stated.size)
            http_get(
                url,
                cast(BinaryIO, limited),
                headers=headers,
                displayed_filename=filename,
            )
        hashes = _hashes(temporary)
        if stated.content_hash not in hashes:
            raise _damaged(repository, filename, hashes, stated.content_hash)


def _point_to_blob(path: Path, blob: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by `atomic_write`: it would change the permissions of the blob, which may be
    # another user's.
    temporary = temporary_path(path)
    temporary.unlink(missing_ok=True)  # of a process that was killed
    try:
        _link(blob, temporary)
        os.replace(temporary, path)
    except OSError:  # the disk has no links
        with atomic_write(path) as copy:
            shutil.copyfile(blob, copy)
    finally:
        # Nothing is renamed if both are already links to the same file.
        temporary.unlink(missing_ok=True)


def _link(blob: Path, path: Path) -> None:
    try:
        os.symlink(os.path.relpath(blob, path.parent), path)
    except OSError:  # Windows asks for a right, some disks have none
        os.link(blob, path)


def remember_commit(repository: str, revision: str, commit: str) -> None:
    """Writes to which commit a branch or tag led, for a time without a network."""
    file = repository_folder(repository) / "refs" / revision
    if file.is_file() and file.read_text("utf-8") == commit:
        return  # the cache may be read-only
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.write_text(commit, encoding="utf-8")
