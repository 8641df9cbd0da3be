"""Models from anybody's repository on the Hub, from a fake of it."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_mobilevit
from keras_mobilevit import MobileViT_XXS, load_backbone, load_weights, save_safetensors
from keras_mobilevit.__main__ import main
from keras_mobilevit.weights import hub_repository
from keras_mobilevit.weights.hub_repository import Address, fetch_model, parse_address
from tests.fakes import hub_server
from train.config import make_config

ROOT = Path(__file__).parents[2]
REPOSITORY = "somebody/mobilevit"
ADDRESS = f"hf://{REPOSITORY}"
COMMIT = hub_server.COMMIT
OTHER_COMMIT = "f" * 40


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_server.serve() as server:
        hub_server.replace_hub(monkeypatch, server.endpoint, tmp_path / "a/cache")
        yield server


@pytest.fixture(scope="module")
def small() -> keras_mobilevit.MobileViT_XXS:
    return MobileViT_XXS(weights=None, classes=3, input_shape=(32, 32, 3))


def publish(server, **files: bytes) -> None:
    """Serves files whose names have `__` for a dot and `_in_` for a slash."""
    for name, content in files.items():
        name = name.replace("__", ".").replace("_in_", "/")
        server.files[f"{REPOSITORY}/{name}"] = content


def cached(tmp_path) -> list[str]:
    return sorted(x.name for x in tmp_path.rglob("*") if x.is_file())


def saved(model, name: str, tmp_path) -> bytes:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_safetensors(model, path)
    elif name.endswith(".weights.h5"):
        model.save_weights(path)
    elif name.endswith(".pt"):
        torch = pytest.importorskip("torch")
        from safetensors.torch import load_file

        save_safetensors(model, tmp_path / "timm.safetensors")
        torch.save(load_file(tmp_path / "timm.safetensors"), path)
    else:
        model.save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        *("a.keras", "a.safetensors", "a.pt"),
        pytest.param("a.weights.h5", marks=pytest.mark.slow),
    ],
)
def test_every_format_that_is_read(name: str, server, small, tmp_path):
    server.files[f"{REPOSITORY}/{name}"] = saved(small, name, tmp_path)
    model = MobileViT_XXS(weights=ADDRESS, classes=3, input_shape=(32, 32, 3))
    other = MobileViT_XXS(weights=None, classes=3, input_shape=(32, 32, 3))
    load_weights(other, f"{ADDRESS}/{name}@{COMMIT}")
    for loaded in (model, other):
        for wanted, found in zip(small.get_weights(), loaded.get_weights()):
            np.testing.assert_array_equal(wanted, found)


@pytest.mark.slow
def test_heads_and_the_backbone_alone(server, small, tmp_path):
    publish(server, a__safetensors=saved(small, "a.safetensors", tmp_path))
    detector = keras_mobilevit.SSDLite("mobilevit_xxs", classes=2, weights=None)
    load_backbone(detector, ADDRESS)
    kernel = small.get_layer("stem_conv").kernel
    np.testing.assert_array_equal(detector.get_layer("stem_conv").kernel, kernel)
    publish(server, b__keras=saved(detector, "b.keras", tmp_path))
    again = keras_mobilevit.SSDLite(
        "mobilevit_xxs", classes=2, weights=f"{ADDRESS}/b.keras"
    )
    np.testing.assert_array_equal(again.get_layer("stem_conv").kernel, kernel)
    with pytest.raises(ValueError, match="ssd"):  # a classifier's file
        keras_mobilevit.SSDLite(
            "mobilevit_xxs", classes=2, weights=f"{ADDRESS}/a.safetensors"
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://a/b", Address("a/b", None, "main")),
        ("hf://a/b@refs/pr/2", Address("a/b", None, "refs/pr/2")),
        ("hf://a.c/b_1/x/y.keras", Address("a.c/b_1", "x/y.keras", "main")),
        ("hf://a/b/y.weights.h5@v1.0", Address("a/b", "y.weights.h5", "v1.0")),
    ],
)
def test_addresses(text: str, expected: Address):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://", "Expected .*hf://owner/name"),
        ("hf://name", "Expected .*hf://owner/name"),
        ("hf://a/b@", "Expected .*hf://owner/name"),
        ("hf://a/..", "stay in their folder"),
        ("hf://a/b--c", "stay in their folder"),
        ("hf://a/b/../../x.keras", "stay in their folder"),
        ("hf://a/b//etc/x.keras", "stay in their folder"),
        ("hf://a/b/x\\y.keras", "stay in their folder"),
        ("hf://a/b/\x1b[2Jx.keras", "stay in their folder"),
        ("hf://a/b@../../x", "stay in their folder"),
        ("hf://a/b@/x", "stay in their folder"),
        ("hf://a/b/model.bin", "ends in one of .keras, .safetensors"),
        ("hf://a/b@main/model.keras", "revision stands after the file"),
    ],
)
def test_wrong_addresses_make_no_request(text: str, message: str, server, tmp_path):
    with pytest.raises(ValueError, match=message):
        MobileViT_XXS(weights=text)
    assert server.requests == [] and cached(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("a.safetensors pytorch_model.bin config.json", "a.safetensors"),
        ("best.keras best_256_int8.tflite labels.txt", "best.keras"),
        ("model.safetensors model.fp16.safetensors", "model.safetensors"),
        ("config.json metadata.json model.weights.h5", "model.weights.h5"),
        ("a.tflite x/b.keras", "a.tflite"),
        ("a.pt a.tflite", "a.pt"),
    ],
)
def test_which_file_is_chosen(names: str, chosen: str, server):
    server.files = {f"{REPOSITORY}/{x}": x.encode() for x in names.split()}
    path = fetch_model(ADDRESS)
    assert path.name == chosen and path.read_bytes() == chosen.encode()
    assert hub_repository.address_of(path) == f"{ADDRESS}/{chosen}@{COMMIT}"
    companions = {"config.json", "labels.txt"} & set(names.split())
    assert {x.name for x in path.parent.iterdir()} == {chosen} | companions


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a.keras b.keras", "not name one file. It has: a.keras, b.keras. Name it"),
        ("README.md", "has no file that ends in one of .keras"),
        ("x/a.keras", "It has: x/a.keras. Name it"),
        ("model.weights.h5 task.json", "is a model of KerasHub"),
        ("a.keras ../../../../b.keras", "would leave its folder.*Nothing was written"),
        ("a.keras /etc/b.keras", "would leave its folder.*Nothing was written"),
        ("a.keras ..\\b.keras", "would leave its folder.*Nothing was written"),
        ("a.keras \x1b[2J.keras", r"would leave its folder: '\\x1b\[2J.keras'"),
    ],
)
def test_repositories_without_a_clear_choice(names, message, server, tmp_path):
    server.files = {f"{REPOSITORY}/{x}": x.encode() for x in names.split(" ")}
    with pytest.raises(ValueError, match=message):
        fetch_model(ADDRESS)
    assert cached(tmp_path) == []


def test_a_file_that_is_not_there_is_named(server, tmp_path):
    publish(server, a__keras=b"a")
    with pytest.raises(ValueError, match="no file b.keras in .* main. It has: a.keras"):
        fetch_model(f"{ADDRESS}/b.keras")
    with pytest.raises(OSError, match="no repository other/name .*hf auth login"):
        fetch_model("hf://other/name")
    assert cached(tmp_path) == []


@pytest.mark.parametrize("commit", ["../../../../outside", "main", "a" * 39])
def test_a_hostile_commit_is_refused(commit: str, server, tmp_path):
    publish(server, a__keras=b"a")
    server.commit = commit
    with pytest.raises(ValueError, match="another commit.*Nothing was written"):
        fetch_model(ADDRESS)
    assert cached(tmp_path) == []


def test_a_model_is_not_cached_without_its_labels(server):
    publish(server, a__keras=b"a", labels__txt=b"cat")
    server.etags[f"{REPOSITORY}/labels.txt"] = "0" * 64
    with pytest.raises(ValueError, match="labels.txt of .* Expected: 0000"):
        fetch_model(f"{ADDRESS}/a.keras@{COMMIT}")
    server.etags.clear()
    path = fetch_model(f"{ADDRESS}/a.keras@{COMMIT}")
    assert path.with_name("labels.txt").read_bytes() == b"cat"


def test_another_content_than_the_stated_is_refused(server, tmp_path):
    publish(server, a__keras=b"forged")
    server.etags[f"{REPOSITORY}/a.keras"] = "0" * 64
    with pytest.raises(ValueError, match="Expected: 0000"):
        fetch_model(ADDRESS)
    assert cached(tmp_path) == []


def test_a_pickle_with_code_does_not_run_it(server, tmp_path):
    torch = pytest.importorskip("torch")

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    torch.save({"stem.conv.weight": Hostile()}, tmp_path / "a.pt")
    publish(server, a__pt=(tmp_path / "a.pt").read_bytes())
    with pytest.raises(ValueError, match="not a file of weights only"):
        MobileViT_XXS(weights=ADDRESS)
    assert not (tmp_path / "run").exists()


def test_a_branch_is_pinned_and_followed(server):
    publish(server, a__keras=b"first")
    first = fetch_model(ADDRESS)
    downloads = [x for x in server.requests if "resolve" in x[1]]
    assert downloads and all(f"/resolve/{COMMIT}/" in path for _, path, _ in downloads)
    server.commit = OTHER_COMMIT
    publish(server, a__keras=b"second")
    assert fetch_model(ADDRESS).read_bytes() == b"second"
    assert first.read_bytes() == b"first"
    server.commit = None
    # Without a name, the files of the commit are asked for: the cache may lack some.
    assert fetch_model(f"{ADDRESS}@{COMMIT}").read_bytes() == b"first"
    requests = len(server.requests)
    assert fetch_model(f"{ADDRESS}/a.keras@{COMMIT}").read_bytes() == b"first"
    assert len(server.requests) == requests  # a cached file of a commit needs none


def test_the_cache_does_not_decide_which_file_is_meant(server):
    publish(server, model__keras=b"model", old__safetensors=b"old")
    assert fetch_model(f"{ADDRESS}/old.safetensors@{COMMIT}").read_bytes() == b"old"
    assert fetch_model(f"{ADDRESS}@{COMMIT}").read_bytes() == b"model"


def test_without_a_network(server, monkeypatch):
    publish(server, a__keras=b"a")
    fetch_model(f"{ADDRESS}@v1")
    monkeypatch.setattr(hub_server.constants, "HF_HUB_OFFLINE", True)
    requests = len(server.requests)
    assert fetch_model(f"{ADDRESS}@v1").read_bytes() == b"a"
    assert fetch_model(f"{ADDRESS}/a.keras@v1").read_bytes() == b"a"
    for text in (f"{ADDRESS}@v2", f"{ADDRESS}/b.keras@v1", f"{ADDRESS}@{OTHER_COMMIT}"):
        with pytest.raises(OSError, match="Without a network, fetch .*as `weights`"):
            fetch_model(text)
    assert len(server.requests) == requests


def test_predict_reads_the_labels_beside_the_model(
    server, small, tmp_path, monkeypatch, capsys
):
    labels, config = b"ant\nbee\ncat\n", json.dumps({"eval_size": 32}).encode()
    publish(server, best__keras=saved(small, "best.keras", tmp_path))
    publish(server, labels__txt=labels, config__json=config)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 40), "red").save(photo)
    command = ["keras_mobilevit", "predict", str(photo), f"--weights={ADDRESS}"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("ant", "bee", "cat"))


@pytest.mark.slow
def test_a_process_of_its_own(server, tmp_path):
    """Nothing but the library has imported parts of the Hub's."""
    publish(server, a__keras=b"a")
    code = (
        "from keras_mobilevit.weights.hub_repository import address_of, fetch_model;"
        f"print(address_of(fetch_model({ADDRESS!r})))"
    )
    variables = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == f"{ADDRESS}/a.keras@{COMMIT}", result.stderr


def test_training_and_conversion(server, small, tmp_path):
    from tflite.options import weights_from_flags

    publish(server, a__safetensors=saved(small, "a.safetensors", tmp_path))
    assert make_config(weights=ADDRESS).weights == ADDRESS
    args = types.SimpleNamespace(model="mobilevit_xxs", weights=ADDRESS)
    path = weights_from_flags(args)
    assert hub_repository.address_of(path) == f"{ADDRESS}/a.safetensors@{COMMIT}"
    assert hub_repository.address_of("runs/best.keras") == "runs/best.keras"
