"""Files from plain addresses: Apple's detectors and ImageNet's class names."""

import json
import socket
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_mobilevit import decode_predictions, preprocessing
from keras_mobilevit.weights import hub, hub_cache
from keras_mobilevit.weights.download import download, md5_of
from tests.fakes import hub_server

IMAGENET_UTILS = sys.modules[
    keras.applications.imagenet_utils.decode_predictions.__module__
]
NAMES_FILE = "imagenet_class_index.json"
NAMES = json.dumps({str(i): [f"n{i}", f"name {i}"] for i in range(1000)}).encode()
SCORES = -np.arange(1000.0)[None]


@pytest.fixture
def server():
    with hub_server.serve() as server:
        yield server


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder of Keras, which has not read any names yet."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(home))
    files = IMAGENET_UTILS.file_utils
    monkeypatch.setattr(files.config, "keras_home", lambda: str(home))
    monkeypatch.setattr(IMAGENET_UTILS, "CLASS_INDEX", None)
    # The true file needs a network; this one has other names.
    monkeypatch.setattr(preprocessing, "_NAMES_MD5", md5_of(NAMES))
    monkeypatch.setattr(
        files, "validate_file", lambda path, *_, **__: Path(path).read_bytes() == NAMES
    )
    preprocessing._cache_imagenet_names.cache_clear()
    yield home
    preprocessing._cache_imagenet_names.cache_clear()


def serve_names(server, monkeypatch, content: bytes = NAMES) -> None:
    server.files[NAMES_FILE] = content
    address = f"{server.endpoint}/cdn/{NAMES_FILE}"
    monkeypatch.setattr(preprocessing, "IMAGENET_NAMES", address)


@pytest.mark.parametrize(
    ("fetch", "message"),
    [
        (lambda: hub.weights_file("coco", "mobilevit_s"), "fetch http.*as `weights`"),
        (lambda: decode_predictions(SCORES), "fetch http.*index.json.*KERAS_HOME"),
    ],
    ids=["detector", "names"],
)
def test_a_server_that_does_not_answer_is_given_up(fetch, message, home, monkeypatch):
    monkeypatch.setattr(hub_cache, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(hub, "_check_has_torch", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "http://{}:{}".format(*silent.getsockname())
        monkeypatch.setattr(hub, "COCO_URL", address)
        monkeypatch.setattr(preprocessing, "IMAGENET_NAMES", f"{address}/{NAMES_FILE}")
        start = time.monotonic()
        with pytest.raises(OSError, match=f"{message}.*does not answer as expected"):
            fetch()
    assert time.monotonic() - start < 5
    assert not [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "cut_after", "options", "message"),
    [
        ("names.json", None, {"max_bytes": 100}, "more than 100 bytes. a.json is sm"),
        ("names.json", 10_000, {}, f"after 10,000 of {len(NAMES):,} bytes"),
        ("names.json", None, {"md5": "0" * 32}, f"the MD5 {md5_of(NAMES)}, not 000"),
        ("other.json", None, {}, "HTTP Error 404"),
    ],
)
def test_other_content_is_not_written(
    name, cut_after, options, message, server, tmp_path
):
    server.files["names.json"], server.cut_after = NAMES, cut_after
    url = f"{server.endpoint}/cdn/{name}"
    with pytest.raises(OSError, match=message):
        download(url, tmp_path / "a.json", **{"max_bytes": 2**20, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_names_are_downloaded_once_to_the_folder_of_keras(
    damaged, home, server, monkeypatch
):
    file = home / "models" / NAMES_FILE
    if damaged:
        file.parent.mkdir()
        file.write_bytes(NAMES[:100])
    serve_names(server, monkeypatch)
    for _ in range(2):
        assert decode_predictions(SCORES, top=1) == [[("n0", "name 0", 0.0)]]
    assert file.read_bytes() == NAMES
    assert len(server.requests) == 1


def test_cached_names_need_no_network(home, server, monkeypatch):
    (home / "models").mkdir()
    (home / "models" / NAMES_FILE).write_bytes(NAMES)
    serve_names(server, monkeypatch)
    assert decode_predictions(SCORES, top=2)[0][1][1] == "name 1"
    assert server.requests == []


def test_predictions_of_another_shape_need_no_network(home, server, monkeypatch):
    serve_names(server, monkeypatch)
    with pytest.raises(ValueError, match="shape"):
        decode_predictions(SCORES[:, :3])
    assert server.requests == []


@pytest.mark.parametrize("is_writable", [True, False])
def test_names_are_where_keras_looks_for_them(is_writable, home, monkeypatch):
    looked = []
    monkeypatch.setattr(
        IMAGENET_UTILS.file_utils, "urlretrieve", lambda _, to, *__: looked.append(to)
    )
    monkeypatch.setattr("os.makedirs", lambda *_, **__: None)
    monkeypatch.setattr("os.access", lambda *_: is_writable)
    keras.utils.get_file("a.json", "http://names.invalid", cache_subdir="models")
    assert looked == [str(preprocessing._keras_home() / "models" / "a.json")]
    assert looked[0].startswith(str(home)) == is_writable
