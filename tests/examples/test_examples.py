"""The samples find in a photo what LiteRT finds."""

import contextlib
import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from keras_mobilevit.litert import LiteRTModel
from keras_mobilevit.predict import load_image
from keras_mobilevit.preprocessing import CROP_FRACTION, resize_and_center_crop
from tests.helpers import chromium, mediapipe_tasks
from tests.helpers.chromium import Chromium
from tests.helpers.page import SIZE, converted
from tflite.metadata.describe import add_metadata
from tflite.tasks.classification.task import SINGLE_LABEL
from tflite.tasks.detection.postprocess import suppress
from tflite.tasks.detection.task import SUPPRESSED
from tflite.tasks.segmentation.task import LOGITS

EXAMPLES = Path(__file__).parents[2] / "examples"
WEB = EXAMPLES / "web"
COLORS = ["red", "green", "blue"]
PHOTO_SIZE = (120, 72)  # the center crop is as large as the image that the files take


def _browser_is_missing() -> str:
    if not (WEB / "node_modules/@mediapipe/tasks-vision").is_dir():
        return "the page takes npm ci --prefix examples/web --ignore-scripts"
    return "" if chromium.PROGRAM else "there is no Chromium (apt install chromium)"


@pytest.fixture(scope="module")
def mediapipe_python() -> str:
    if mediapipe_tasks.MISSING:
        pytest.skip(mediapipe_tasks.MISSING)
    return str(mediapipe_tasks.PYTHON)


def classify(images) -> dict:
    """Compares the colors of the upper half, where a photo on its side has others."""
    colors = tf.reduce_mean(images[:, : SIZE // 2], axis=(1, 2)) / 255
    return {"probabilities": tf.nn.softmax(4 * colors)}


def detect(images) -> dict:
    """Scores how red, green and blue the left and the right half are."""
    halves = tf.reshape(images / 255, (1, SIZE, 2, SIZE // 2, 3))
    boxes = tf.constant([[[0.0, 0, 0.5, 1], [0.5, 0, 1, 1]]])
    return suppress(boxes, tf.reduce_mean(halves, axis=(1, 3)))


def segment(images) -> dict:
    """Gives each square of 2x2 pixels its brightest color."""
    return {"logits": tf.nn.avg_pool2d(images / 255, 2, 2, "VALID")}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Files of small networks, with metadata, by the name of their sample."""
    folder, paths = tmp_path_factory.mktemp("models"), {}
    rows = ((classify, SINGLE_LABEL), (detect, SUPPRESSED), (segment, LOGITS))
    for serve, task in rows:
        card = {"labels": COLORS, "crop": 256 / 288}
        content = add_metadata(converted(serve), card, task, 255)
        paths[serve.__name__] = folder / f"{serve.__name__}.tflite"
        paths[serve.__name__].write_bytes(content)
    return paths


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """A photo of a camera on its side, to be classified: its crop is mostly red.

    The upper half of the center is red; green is around it and blue below it.
    """
    width, height = PHOTO_SIZE
    pixels = np.random.default_rng(0).integers(0, 100, (height, width, 3), np.uint8)
    center = slice((width - SIZE) // 2, (width + SIZE) // 2)
    pixels[:, :, 1] += 150
    pixels[:, center, 1] -= 150
    pixels[: height // 2, center, 0] += 130
    pixels[height // 2 :, center, 2] += 150
    image = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    image.save(path, exif=exif, quality=95, subsampling=0)
    return path


@pytest.fixture(scope="module")
def two_colors(tmp_path_factory) -> Path:
    """A picture that is red on the left and blue on the right."""
    width, height = PHOTO_SIZE
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0], pixels[:, width // 2 :, 2] = 204, 153
    path = tmp_path_factory.mktemp("colors") / "colors.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def expected(models, photo) -> list[tuple[float, str]]:
    """What LiteRT finds in the photo, prepared as in an evaluation."""
    image = resize_and_center_crop(load_image(photo), (SIZE, SIZE), CROP_FRACTION)
    outputs = LiteRTModel(models["classify"]).predict(np.asarray(image)[None])
    (probabilities,) = outputs["probabilities"]
    return sorted(zip(map(float, probabilities), COLORS), reverse=True)


def run(python: str, script: str, *files: Path) -> str:
    command = [python, EXAMPLES / "python" / script, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_classes(text: str, expected) -> None:
    found = [line.split() for line in text.splitlines()]
    assert [label for _, label in found] == [label for _, label in expected]
    assert expected[0][1] == "red" and expected[0][0] > 0.5
    probabilities = [probability for probability, _ in expected]
    assert [float(x) for x, _ in found] == pytest.approx(probabilities, abs=0.01)


def check_objects(text: str) -> None:
    rows = [line.split() for line in text.splitlines()]
    assert [label for _, label, *_ in rows] == ["red", "blue"]
    # Resizing mixes the two colors where they meet.
    assert [float(score) for score, *_ in rows] == pytest.approx([0.8, 0.6], abs=0.02)
    corners = [list(map(float, row[2:])) for row in rows]
    assert corners == [[0, 0, 60, 72], [60, 0, 120, 72]]


def check_shares(text: str) -> None:
    rows = [line.split() for line in text.splitlines()]
    assert {label for _, label in rows} == {"red", "blue"}
    assert [float(share) for share, _ in rows] == pytest.approx([0.5, 0.5], abs=0.02)


def test_litert(models, photo, expected):
    check_classes(run(sys.executable, "litert.py", models["classify"], photo), expected)


def test_mediapipe_classifies(models, photo, expected, mediapipe_python):
    found = run(mediapipe_python, "classify.py", models["classify"], photo)
    check_classes(found, expected)


def test_mediapipe_detects_and_segments(models, two_colors, mediapipe_python):
    check_objects(run(mediapipe_python, "detect.py", models["detect"], two_colors))
    check_shares(run(mediapipe_python, "segment.py", models["segment"], two_colors))


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@contextlib.contextmanager
def serve(folder: Path):
    """Serves a folder. Gives its address."""
    handler = functools.partial(_Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def show(page: Chromium, address: str, task: str, model: Path, photo: Path) -> str:
    """Opens the page and chooses. Returns the result."""
    page.call("Page.navigate", url=address)
    page.wait_for("document.readyState === 'complete'")
    page.evaluate(f"document.getElementById('task').value = '{task}'")
    page.choose_file("#model", model)
    page.choose_file("#photo", photo)
    text = "document.getElementById('result').innerText"
    return page.wait_for(f"!/^(Choose|Running)/.test({text}) && {text}")


@pytest.mark.skipif(bool(_browser_is_missing()), reason=_browser_is_missing())
def test_page(models, photo, two_colors, expected, tmp_path):
    with serve(WEB) as address, Chromium(tmp_path / "profile") as page:
        open_page = functools.partial(show, page, address)
        check_classes(open_page("classify", models["classify"], photo), expected)
        check_objects(open_page("detect", models["detect"], two_colors))
        check_shares(open_page("segment", models["segment"], two_colors))
        refused = open_page("classify", photo, photo)
        requests = page.requests
    assert refused.startswith("Failed: ")
    assert len(requests) > 8 and all(url.startswith(address) for url in requests)
