"""What a hostile server and a damaged cache of the Hub may not do."""

import dataclasses
import hashlib
import os
import socket
import stat
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_mobilevit.weights import hub, hub_cache, hub_repository
from tests.fakes import hub_server

VARIANT = "mobilevit_xxs"
NAME = f"{hub.IMAGENET_FILES[VARIANT].repository}/{hub.FILENAME}"
CONTENT = b"weights" * 1000


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_server.serve() as server:
        hub_server.replace_hub(monkeypatch, server.endpoint, tmp_path / "a/cache")
        server.files[NAME] = CONTENT
        yield server


def fetch():
    return hub.weights_file("imagenet", VARIANT)


def written(folder) -> list[str]:
    """Lists every file below a folder."""
    return sorted(str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file())


@pytest.mark.parametrize(
    "etag",
    [
        "../../../../outside",
        "/tmp/outside",
        "..",
        "a" * 63,
        "A" * 64,
        "x/../" + 64 * "0",
    ],
)
def test_an_etag_that_is_not_a_hash_is_refused(etag: str, server, tmp_path):
    """It becomes the name of a file."""
    server.etags[NAME] = etag
    with pytest.raises(ValueError, match="states no hash of .*Nothing was written"):
        fetch()
    assert written(tmp_path) == []


@pytest.mark.parametrize("commit", ["../../../../outside", "main", "f" * 40])
@pytest.mark.parametrize("is_there", [True, False])
def test_another_commit_than_the_wanted_one_is_refused(
    commit: str, is_there: bool, server, tmp_path
):
    """It becomes the name of a folder, also that of a file which is not there."""
    server.commit = commit
    if not is_there:
        server.files = {}
    with pytest.raises((ValueError, OSError), match="another commit|cannot be down"):
        fetch()
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    ("size", "message"),
    [(100, "more than the stated 100"), (2**31, "Expected at most")],
)
def test_no_more_is_written_than_what_was_stated(size, message, server, tmp_path):
    server.sizes[NAME] = size
    with pytest.raises(ValueError, match=message):
        fetch()
    assert written(tmp_path) == []


def test_threads_fetch_the_same_file_at_once(server):
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(lambda _: fetch(), range(4)))
    assert [path.read_bytes() for path in paths] == 4 * [CONTENT]


@pytest.mark.parametrize("address", ["imagenet", "hf://somebody/model"])
def test_a_server_that_does_not_end_its_answer_is_given_up(
    address, server, monkeypatch
):
    """It sends a byte now and then, so that no read takes long."""
    for name in ("get_hf_file_metadata", "HfApi.model_info"):
        monkeypatch.setattr(f"huggingface_hub.{name}", lambda *_, **__: time.sleep(1))
    for module in (hub_cache, hub_repository):
        monkeypatch.setattr(module, "ANSWER_SECONDS", 0.05)
    with pytest.raises(OSError, match="Cause: The server does not end its answer"):
        hub.weights_file(address, VARIANT)


def replace_by_file(path, content: bytes) -> None:
    """Makes a plain file of a link, as a copy of the cache has it."""
    blob = path.resolve()
    path.unlink()
    blob.unlink()
    path.write_bytes(content)


def test_a_damaged_plain_file_of_the_cache_is_refused(server):
    path = fetch()
    replace_by_file(path, CONTENT[:100])
    with pytest.raises(ValueError, match="Expected: .*removed. Try again"):
        fetch()
    assert fetch().read_bytes() == CONTENT


def test_a_plain_file_is_compared_with_the_hub_once(server, monkeypatch):
    replace_by_file(fetch(), CONTENT)
    monkeypatch.setattr(hub_server.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="If you trust the file, pass its path.*OFFLINE"):
        fetch()
    monkeypatch.setattr(hub_server.constants, "HF_HUB_OFFLINE", False)
    assert fetch().read_bytes() == CONTENT
    requests = len(server.requests)
    assert fetch().read_bytes() == CONTENT
    assert len(server.requests) == requests


def test_a_plain_file_of_a_known_hash_needs_no_network(server, monkeypatch):
    path = fetch()
    replace_by_file(path, CONTENT)
    monkeypatch.setattr(hub_server.constants, "HF_HUB_OFFLINE", True)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    file = dataclasses.replace(hub.IMAGENET_FILES[VARIANT], sha256=sha256)
    assert hub.fetch(file) == path
    with pytest.raises(OSError, match="does not know the hash"):
        hub.fetch(dataclasses.replace(file, sha256=sha256[::-1]))


@pytest.mark.parametrize("missing", [("symlink",), ("symlink", "link")])
def test_disks_without_links(missing, server, monkeypatch):
    def refuse(*args):
        raise OSError("This disk has no links.")

    for name in missing:
        monkeypatch.setattr(os, name, refuse)
    path = fetch()
    requests = len(server.requests)
    assert fetch() == path and not path.is_symlink()
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == requests


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize("missing", [(), ("symlink",)])
def test_another_users_blob_is_linked_and_not_changed(missing, server, monkeypatch):
    """Only its owner may change the permissions or write."""

    def refuse(*args):
        raise PermissionError("Operation not permitted")

    path = fetch()
    blob = path.resolve()
    path.unlink()
    blob.chmod(0o440)
    for name in (*missing, "chmod", "fsync"):
        monkeypatch.setattr(os, name, refuse)
    assert fetch().read_bytes() == CONTENT
    assert path.samefile(blob) and stat.S_IMODE(blob.stat().st_mode) == 0o440
    hub_cache._point_to_blob(path, blob)  # of the same commit by another name
    assert [x.name for x in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("is_store", [False, True])
def test_no_file_outside_of_the_cache_is_removed(is_store, server, tmp_path):
    """Its name may be hexadecimal, as in the store that repositories share."""
    path = fetch()
    outside = tmp_path / ("0" * 64)
    outside.write_bytes(CONTENT if is_store else b"of another program")
    link = path.resolve() if is_store else path
    link.unlink()
    link.symlink_to(outside)
    if not is_store:
        with pytest.raises(ValueError, match="Expected: "):
            fetch()
    assert fetch().read_bytes() == CONTENT
    assert outside.exists()


@pytest.mark.parametrize("accepts", [True, False])
def test_a_network_without_answers_is_given_up(accepts, tmp_path, monkeypatch):
    """The client of the Hub waits for 45 s and more."""
    assert hub_cache.CONNECT_SECONDS + hub_cache.ANSWER_SECONDS < 10
    monkeypatch.setattr(hub_cache, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(hub_cache, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        address = silent.getsockname()
        endpoint = "http://{}:{}".format(*address)
        hub_server.replace_hub(monkeypatch, endpoint, tmp_path)
        waiting = []
        if not accepts:  # further connections wait for a place
            for _ in range(3):
                waiting.append(socket.socket())
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(address)
        start = time.monotonic()
        with pytest.raises(OSError, match="Without a network, fetch .*as `weights`"):
            fetch()
        assert time.monotonic() - start < 5
        for connection in waiting:
            connection.close()


def test_a_lookup_without_an_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_cache, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: time.sleep(3))
    hub_server.replace_hub(monkeypatch, "http://hub.invalid", tmp_path)
    start = time.monotonic()
    with pytest.raises(OSError, match="hub.invalid does not answer"):
        fetch()
    assert time.monotonic() - start < 2


def test_one_address_without_an_answer_is_not_waited_for(monkeypatch):
    """As a machine has it whose network does not carry IPv6."""
    silent, alive = ("192.0.2.1", 80), ("192.0.2.2", 80)
    connection = socket.socket()

    def connect(address, timeout):
        if address == silent:
            time.sleep(3)
            raise TimeoutError("timed out")
        return connection

    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", x) for x in (silent, alive)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: rows)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    start = time.monotonic()
    hub_cache.require_network("https://hub.test/file")
    assert time.monotonic() - start < 2
