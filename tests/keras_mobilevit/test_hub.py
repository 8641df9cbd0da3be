"""The published weights, from a fake of the Hub.

The fake serves the seeded random weights of the golden files, because the published
weights need a network.
"""

import contextlib
import hashlib
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image
from safetensors.numpy import load_file

import keras_mobilevit
from keras_mobilevit.weights import hub
from tests.fakes import hub_server
from tests.helpers.references import (
    MODELS,
    SEGMENTER,
    build_segmenter,
    check_classifier,
    check_segmenter,
    write_weights,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_server.serve() as server:
        hub_server.replace_hub(monkeypatch, server.endpoint, tmp_path / "cache")
        yield server


def publish(server, variant: str, content: bytes, files=hub.IMAGENET_FILES) -> str:
    """Serves a file as the weights of a variant and returns its name."""
    name = f"{files[variant].repository}/{hub.FILENAME}"
    server.files[name] = content
    return name


def pin(monkeypatch, variant: str, content: bytes) -> None:
    """Makes this content the expected one of a variant."""
    file = hub.IMAGENET_FILES[variant]
    if file.sha256:
        sha256 = hashlib.sha256(content).hexdigest()
        pinned = hub.HubFile(file.repository, file.revision, sha256)
        monkeypatch.setitem(hub.IMAGENET_FILES, variant, pinned)


def leftovers(tmp_path) -> list[str]:
    """Lists files of the cache that could be taken for weights."""
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    return [p.name for p in files if p.suffix not in (".lock", ".TAG")]


# The published weights of each variant. Those in brackets are not pinned: neither the
# commit nor the hash is known.
PUBLISHED = {
    "mobilevit_xxs": ("imagenet", "(voc)", "coco"),
    "mobilevit_xs": ("imagenet", "voc", "coco"),
    "mobilevit_s": ("imagenet", "voc", "coco"),
    "mobilevitv2_050": ("imagenet", "coco"),
    "mobilevitv2_075": ("imagenet", "coco"),
    "mobilevitv2_100": ("imagenet", "voc", "coco"),
    "mobilevitv2_125": ("imagenet", "coco"),
    "mobilevitv2_150": ("imagenet", "coco"),
    "mobilevitv2_175": ("imagenet", "imagenet22k", "coco"),
    "mobilevitv2_200": ("(imagenet)", "coco"),
}


def published(*kinds: str, pinned: bool) -> list[tuple[str, str]]:
    """Returns kinds of weights and variants that have them."""
    return [
        (name.strip("()"), variant)
        for variant, names in PUBLISHED.items()
        for name in names
        if name.strip("()") in kinds and not (pinned and name.startswith("("))
    ]


def test_every_published_file_is_in_the_table():
    tables = hub.HUB_FILES | {"coco": hub.COCO_FILES}
    found = {(name, variant) for name, files in tables.items() for variant in files}
    assert found == set(published(*tables, pinned=False))
    for name, variant in published("imagenet", pinned=False):
        repository = hub.HUB_FILES[name][variant].repository
        assert repository == f"timm/{variant}.cvnets_in1k"
    for variant in PUBLISHED:
        names = [name for name in hub.CLASSIFIER_WEIGHTS if (name, variant) in found]
        assert hub.published_weights(variant) == names
        assert ('`"imagenet22k"`' in MODELS[variant].__doc__) == (len(names) > 1)


@pytest.mark.parametrize(
    ("weights", "variant"), published("imagenet", "imagenet22k", "voc", pinned=True)
)
def test_content_is_pinned(weights: str, variant: str, server):
    """A commit is asked for, which never changes, or another hash is refused."""
    publish(server, variant, b"another content", hub.HUB_FILES[weights])
    try:
        hub.weights_file(weights, variant)
        is_refused = False
    except ValueError as error:
        assert "Expected: " in str(error)
        is_refused = True
    asked = {path.split("/")[4] for _, path, _ in server.requests if "resolve" in path}
    assert asked and (is_refused or all(len(commit) == 40 for commit in asked))


@pytest.mark.parametrize(
    "variant",
    [
        "mobilevit_xxs",
        "mobilevit_xs",
        "mobilevit_s",
        "mobilevitv2_050",
        pytest.param("mobilevitv2_100", marks=pytest.mark.slow),
    ],
)
def test_imagenet_weights_give_the_logits_of_timm(
    variant, server, tmp_path, monkeypatch
):
    content = write_weights(f"timm_{variant}", tmp_path).read_bytes()
    publish(server, variant, content)
    pin(monkeypatch, variant, content)
    model = MODELS[variant](
        weights="imagenet",
        input_shape=(None, None, 3),
        classifier_activation=None,
        include_preprocessing=False,
    )
    check_classifier(model, f"timm_{variant}", [(192, 192)])
    first = len(server.requests)
    assert first > 0
    again = hub.weights_file("imagenet", variant)
    assert again.read_bytes() == content
    assert len(server.requests) == first  # the second load makes no request


def test_voc_weights_give_the_logits_of_transformers(server, tmp_path):
    content = write_weights(SEGMENTER, tmp_path).read_bytes()
    publish(server, "mobilevit_xxs", content, hub.VOC_FILES)
    check_segmenter(build_segmenter("voc", 16), 16, [(240, 200)])
    requests = len(server.requests)
    again = hub.weights_file("voc", "mobilevit_xxs")
    assert again.read_bytes() == content
    assert len(server.requests) == requests  # the second time makes none
    assert any("/refs%2Fpr%2F2/" in path for _, path, _ in server.requests)


def test_an_unknown_segmenter_is_refused(server):
    publish(server, "mobilevit_s", CONTENT, hub.VOC_FILES)
    with pytest.raises(ValueError, match="Expected: 5b12c75c.*has changed since"):
        hub.weights_file("voc", "mobilevit_s")


@pytest.mark.parametrize(
    ("weights", "variant", "expected"),
    [
        ("voc", "mobilevit_m", "mobilevit_xxs, mobilevit_xs, mobilevit_s, mobilevitv2"),
        ("voc", "mobilevitv2_050", "mobilevit_xxs, .*mobilevitv2_100"),
        ("imagenet22k", "mobilevit_xxs", "mobilevitv2_175"),
        ("imagenet22k", "mobilevitv2_200", "mobilevitv2_175"),
    ],
)
def test_a_variant_without_published_weights_is_an_error(weights, variant, expected):
    message = f'no weights "{weights}" of .{variant}., only of: {expected}'
    with pytest.raises(ValueError, match=message):
        hub.weights_file(weights, variant)


@pytest.mark.slow
def test_weights_of_imagenet_22k(server, tmp_path):
    """They have 1,000 classes, and the colors and names of timm."""
    variant = "mobilevitv2_175"
    content = write_weights(f"timm_{variant}", tmp_path).read_bytes()
    publish(server, variant, content, hub.IMAGENET22K_FILES)
    build = keras_mobilevit.MobileViTV2_175
    with pytest.raises(ValueError, match='"imagenet22k".*1000 classes.*classes=7'):
        build(weights="imagenet22k", classes=7)
    model = build(weights="imagenet22k", input_shape=(64, 64, 3))
    bias = load_file(tmp_path / f"timm_{variant}.safetensors")["head.fc.bias"]
    np.testing.assert_array_equal(model.get_layer("predictions").bias, bias)


def test_without_the_top_any_number_of_classes_is_accepted(server, tmp_path):
    path = write_weights("timm_mobilevit_xxs", tmp_path)
    publish(server, "mobilevit_xxs", path.read_bytes())
    model = keras_mobilevit.MobileViT_XXS(
        weights="imagenet", include_top=False, classes=7, input_shape=(96, 64, 3)
    )
    stem = model.get_layer("stem_conv").kernel.numpy()
    wanted = load_file(path)["stem.conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(stem, wanted)


CONTENT = np.random.default_rng(0).bytes(3_000_000)


def test_a_broken_connection_resumes(server, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # 10 MB otherwise
    publish(server, "mobilevit_xxs", CONTENT)
    server.cut_after = 1_000_000
    path = hub.weights_file("imagenet", "mobilevit_xxs")
    assert path.read_bytes() == CONTENT
    ranges = [given for method, _, given in server.requests if method == "GET"]
    assert ranges[-1] == "bytes=1000000-"


def test_a_file_of_another_hash_than_the_servers_is_refused(server, tmp_path):
    name = publish(server, "mobilevit_xxs", CONTENT)
    server.etags[name] = "0" * 64
    with pytest.raises(ValueError, match="Expected: 0000.*removed. Try again"):
        hub.weights_file("imagenet", "mobilevit_xxs")
    assert CONTENT not in [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    del server.etags[name]
    assert hub.weights_file("imagenet", "mobilevit_xxs").read_bytes() == CONTENT


def test_an_unknown_file_is_refused(server):
    publish(server, "mobilevit_s", CONTENT)
    for _ in range(2):  # the cached file stays, because others may use it
        with pytest.raises(
            ValueError, match="Expected: 87f5585c.*has changed since"
        ) as e:
            hub.weights_file("imagenet", "mobilevit_s")
        kept = str(e.value).rpartition("`weights`: ")[2]
        assert Path(kept).read_bytes() == CONTENT


def test_a_truncated_cached_file_is_refused(server):
    publish(server, "mobilevit_xxs", CONTENT)
    path = hub.weights_file("imagenet", "mobilevit_xxs")
    path.resolve().write_bytes(CONTENT[:1000])
    with pytest.raises(ValueError, match="removed. Try again"):
        hub.weights_file("imagenet", "mobilevit_xxs")
    assert hub.weights_file("imagenet", "mobilevit_xxs").read_bytes() == CONTENT


def test_offline_and_not_cached_says_what_to_do(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="fetch http.*/timm/mobilevit_xs.*as `weights`"):
        hub.weights_file("imagenet", "mobilevit_xs")
    assert server.requests == []


def test_offline_and_cached_works(server, monkeypatch):
    publish(server, "mobilevit_xxs", CONTENT)
    hub.weights_file("imagenet", "mobilevit_xxs")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.weights_file("imagenet", "mobilevit_xxs").read_bytes() == CONTENT


def test_a_file_that_is_not_on_the_server_is_an_error(server, tmp_path):
    with pytest.raises(OSError, match="timm/mobilevit_xxs.*cannot be downloaded"):
        hub.weights_file("imagenet", "mobilevit_xxs")
    assert leftovers(tmp_path) == []


def fetch_in_a_process(server, cache, stderr=subprocess.PIPE, **environment):
    code = (
        "from keras_mobilevit.weights import hub; import sys;"
        "sys.stdout.write(str(hub.weights_file('imagenet', 'mobilevit_xxs')))"
    )
    variables = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(cache)} | environment
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_at_once_and_the_environments_variables(server, tmp_path):
    publish(server, "mobilevit_xxs", CONTENT)
    cache = tmp_path / "home"
    processes = [fetch_in_a_process(server, cache) for _ in range(2)]
    for process in processes:
        path, errors = process.communicate()
        assert process.returncode == 0, errors
        assert Path(path).read_bytes() == CONTENT
        assert Path(path).is_relative_to(cache)
    offline = fetch_in_a_process(server, tmp_path / "other", HF_HUB_OFFLINE="1")
    assert "as `weights`" in offline.communicate()[1]


@pytest.mark.slow
def test_a_terminal_gets_a_progress_bar(server, tmp_path):
    fcntl = pytest.importorskip("fcntl", reason="Windows has other terminals")
    termios = pytest.importorskip("termios", reason="Windows has other terminals")
    publish(server, "mobilevit_xxs", CONTENT)
    terminal, stderr = os.openpty()
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = fetch_in_a_process(server, tmp_path / "home", stderr)
    process.communicate()
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while chunk := os.read(terminal, 65536):
            shown += chunk
    os.close(terminal)
    assert b"model.safetensors: 100%" in shown


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # as the Hub says
def test_a_full_disk_is_an_error_and_leaves_nothing(server, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("a small disk takes the right to mount one")
    try:
        publish(server, "mobilevit_xxs", CONTENT)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk))
        with pytest.raises(OSError, match="(?s)cannot be downloaded.*No space left"):
            hub.weights_file("imagenet", "mobilevit_xxs")
        assert not [p for p in disk.rglob("*.safetensors*") if p.is_file()]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# The first logits of Apple's weights on COCO's 000000039769.jpg (two cats), from
# transformers' conversion script.
ORACLE = {
    "mobilevit_xxs": (-1.9364, -1.2327, -0.4653),
    "mobilevit_xs": (-2.4761, -0.9399, -1.9587),
    "mobilevit_s": (-0.9866, 0.2392, -1.1241),
}


# The segmenters' first logits of the background in the upper row, at 512x512.
SEGMENTER_ORACLE = {
    "mobilevit_xxs": (6.9811, 6.9743, 7.3123),
    "mobilevit_xs": (5.4449, 5.5733, 5.6314),
    "mobilevit_s": (6.2065, 6.1292, 6.2070),
}


def photo_of_two_cats(folder: Path, side: int) -> np.ndarray:
    """Returns the photo as the script prepares it: `[1, side, side, 3]` in [0, 255]."""
    path = keras.utils.get_file(
        "000000039769.jpg",
        "http://images.cocodataset.org/val2017/000000039769.jpg",
        cache_dir=folder,
    )
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = (side + 32) / min(image.size)
    size = [round(length * scale) for length in image.size]
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = ((length - side) // 2 for length in size)
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image, np.float32)[None]


def skip_without_network() -> None:
    for host in ("huggingface.co", "images.cocodataset.org"):
        try:
            socket.create_connection((host, 80), timeout=3).close()
        except OSError as error:
            pytest.skip(f"{host} cannot be reached: {error}")


@pytest.mark.network
@pytest.mark.parametrize("variant", ORACLE)
def test_published_weights_give_the_published_logits(variant, tmp_path):
    skip_without_network()
    model = MODELS[variant](weights="imagenet", classifier_activation=None)
    logits = model.predict(photo_of_two_cats(tmp_path, 256), verbose=0)[0, :3]
    np.testing.assert_allclose(logits, ORACLE[variant], atol=2e-3)


@pytest.mark.network
@pytest.mark.parametrize("variant", SEGMENTER_ORACLE)
def test_published_segmenters_give_the_published_logits(variant, tmp_path):
    skip_without_network()
    model = keras_mobilevit.DeepLabV3(variant, weights="voc", upsample=False)
    logits = model.predict(photo_of_two_cats(tmp_path, 512), verbose=0)
    wanted = SEGMENTER_ORACLE[variant]
    np.testing.assert_allclose(logits[0, 0, :3, 0], wanted, atol=5e-3)
