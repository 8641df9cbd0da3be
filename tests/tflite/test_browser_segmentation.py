"""Segmenters on the page: their description, latency and masks."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mobilevit import DeepLabV3
from keras_mobilevit.deeplab import CLASSIFIER
from keras_mobilevit.drawing import OPACITY, class_color
from keras_mobilevit.segmentation import class_map
from tests.helpers import chromium
from tests.helpers.chromium import Chromium
from tests.helpers.graphs import randomized
from tests.helpers.page import (
    SIZE,
    WASM,
    WEBGPU,
    canvas_pixel,
    choose_model,
    converted,
    found_items,
    needs_browser,
    wait_until_done,
    write_file,
    write_png,
)
from tflite.drivers.browser_files import read_file
from tflite.drivers.browser_results import MAX_OUTPUTS, parse_result
from tflite.drivers.browser_server import PageServer
from tflite.formats import conversion
from tflite.tasks.segmentation.task import OUTPUT_VARIANTS

STRIDE = 16  # output stride of the color segmenter
NETWORK_SIZE = 96  # of the real segmenter: more pixels than are compared
NAMES = ["background", "red", "green", "blue"]
LABELS = ["background", "a", "b", "c", "d"]  # of the real segmenter


def color_logits(images):
    """Scores how black, red, green and blue each cell is."""
    colors = tf.nn.avg_pool2d(images / 255, STRIDE, STRIDE, "VALID")
    return tf.concat([tf.fill((*colors.shape[:3], 1), 0.3), colors], axis=-1)


def color_classes(images):
    resized = tf.image.resize(color_logits(images), (SIZE, SIZE))
    return tf.cast(tf.argmax(resized, axis=-1), tf.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """The color segmenter with both kinds of output."""
    folder = tmp_path_factory.mktemp("colors")
    serves = {
        "logits": lambda images: {"logits": color_logits(images)},
        "classes": lambda images: {"classes": color_classes(images)},
    }
    return [
        write_file(folder / f"{name}.tflite", converted(serve), labels=NAMES)
        for name, serve in serves.items()
    ]


def test_segmenters_are_described_to_the_page(files):
    for file, shape, dtype in (
        (read_file(files[0], 0), [1, 4, 4, 4], "float32"),
        (read_file(files[1], 1), [1, SIZE, SIZE], "uint8"),
    ):
        (output,) = file.description["outputs"]
        assert file.description["task"] == "segmentation"
        assert file.description["labels"] == NAMES
        assert (output["shape"], output["dtype"]) == (shape, dtype)
        assert file.is_class_map == (dtype == "uint8")
        assert len(file.outputs) == min(np.prod(shape), MAX_OUTPUTS)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("logits", (2, 4, 4, 5), "float32", "or a segmenter with logits"),
        ("logits", (1, 4, 5), "float32", "or a segmenter with logits"),
        ("logits", (1, 4, 4, 5), "int32", "logits as int32. Expected float32 or"),
        ("masks", (1, 4, 4, 5), "float32", "or a segmenter with logits"),
        ("classes", (1, SIZE, 32), "uint8", r"uint8 classes \(1, height, width\)"),
        ("classes", (1, SIZE, SIZE, 1), "uint8", "or a segmenter with logits"),
        ("classes", (1, SIZE, SIZE), "float32", "classes as float32. Expected uint8"),
        ("classes", (1, SIZE, SIZE), "int32", "classes as int32. Expected uint8"),
    ],
)
def test_what_the_page_cannot_draw_is_refused(name, shape, dtype, message, tmp_path):
    def serve(images):
        return {name: tf.cast(tf.zeros(shape) + tf.reduce_mean(images), dtype)}

    path = write_file(tmp_path / "other.tflite", converted(serve))
    with pytest.raises(ValueError, match=message):
        read_file(path, 0)


@pytest.mark.parametrize("classes", [3, 21])
def test_some_logits_of_every_class_are_compared(classes, tmp_path):
    """A step that shares a factor with the number of classes would skip some."""

    def serve(images):
        labels = tf.range(classes, dtype=tf.float32)
        return {"logits": tf.zeros((1, 64, 64, classes)) + labels + images[0, 0, 0, 0]}

    compared = read_file(write_file(tmp_path / "x.tflite", converted(serve)), 0).outputs
    assert len(compared) == MAX_OUTPUTS
    _, counts = np.unique(compared, return_counts=True)
    assert counts.min() > 0.9 * MAX_OUTPUTS / classes and len(counts) == classes


def result_of(file, outputs) -> bytes:
    times = {"init_ms": 1, "first_ms": 1, "warmup_ms": 1, "times_ms": [1]}
    result = {"file": 0, "accelerator": "wasm", "num_threads": 1, "device": {}}
    outputs = {"fully_accelerated": True, "output": outputs.tolist()}
    return json.dumps(result | times | outputs | {"has_fine_clock": True}).encode()


def test_class_maps_are_compared_pixel_by_pixel(files):
    """Class numbers are not quantities: all wrong classes are equally wrong."""
    file = read_file(files[1], 0)
    number = len(np.unique(file.outputs))
    assert number > 1
    note = "6.25 % of its pixels have another class than LiteRT's"
    for part, notes in ((0, []), (1 / 64, []), (1 / 16, [note])):
        outputs = file.outputs.copy()
        changed = slice(int(part * len(outputs)))
        outputs[changed] = (outputs[changed] + 1) % len(NAMES)
        measured = parse_result(result_of(file, outputs), [file])
        assert measured.max_abs_difference == part
        assert (measured.max_abs_output, measured.classes_compared) == (1.0, number)
        assert measured.notes() == notes


def test_it_says_if_a_class_has_no_label(files):
    file = read_file(files[1], 0)
    outputs = file.outputs.copy()
    outputs[0] = len(NAMES) - 1
    assert parse_result(result_of(file, outputs), [file]).notes() == []
    outputs[0] = len(NAMES)
    measured = parse_result(result_of(file, outputs), [file])
    assert measured.notes() == ["class 4 of its output has no label"]
    file.description["labels"].clear()  # of a file without a card
    assert parse_result(result_of(file, outputs), [file]).notes() == []


def test_it_says_if_a_class_map_of_one_class_was_compared(tmp_path):
    def serve(images):
        zeros = tf.zeros((1, SIZE, SIZE)) + 0 * tf.reduce_min(images)
        return {"classes": tf.cast(zeros, tf.uint8)}

    file = read_file(write_file(tmp_path / "x.tflite", converted(serve)), 0)
    measured = parse_result(result_of(file, file.outputs), [file])
    (note,) = measured.notes()
    assert measured.max_abs_difference == 0 and "has one class" in note


def picture_of_colors() -> np.ndarray:
    """Returns a wide picture: a quarter is blue, an eighth red, the rest black."""
    picture = np.zeros((128, 384, 3), np.uint8)
    picture[:, :96, 2] = 255
    picture[:64, 288:, 0] = 255
    return picture


def expected_list(classes, names) -> list[str]:
    """Returns the list that the page shows for a class map."""
    found, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shares = counts / counts.sum()
    return [
        f"{names[found[i]]} "
        + ("< 0.1 %" if shares[i] < 0.001 else f"{100 * shares[i]:.1f} %")
        for i in order
    ]


def mixed(color, label: int) -> np.ndarray:
    """Returns the color of a pixel under the color of its class."""
    return (1 - OPACITY) * np.array(color) + OPACITY * np.array(class_color(label))


@needs_browser
def test_chromium_draws_the_colors_of_classes(files, tmp_path):
    picture = picture_of_colors()
    write_png(tmp_path / "a.png", picture)
    with (
        PageServer(files, WASM) as server,
        Chromium(tmp_path / "profile") as page,
    ):
        wait_until_done(page, server)
        measured = [server.results.get(timeout=10) for _ in files]
        page.choose_file("#file", tmp_path / "a.png")
        page.wait_for("document.querySelectorAll('#found li').length == 3")
        seen = []
        for index, text in enumerate(("of resizing and argmax", "CPU thread.")):
            status = choose_model(page, index, text)
            pixels = [canvas_pixel(page, *x) for x in ((0.1, 0.9), (0.9, 0.1))]
            black = canvas_pixel(page, 0.5, 0.9)
            seen.append((status, found_items(page), pixels, black))
        aspect = page.evaluate("(x => x.width / x.height)(preview)")
        swatches = page.evaluate(
            "[...document.querySelectorAll('.swatch')].map(x => x.style.background)"
        )
    small = tf.image.resize(picture[None].astype(np.float32), (SIZE, SIZE))
    logits = color_logits(small).numpy()[0]
    named = expected_list(class_map(logits, SIZE, SIZE), NAMES)
    for measurement in measured:
        assert measurement.status == "measured", measurement.reason
        assert measurement.max_abs_difference <= 1e-4
    assert [m.fully_accelerated for m in measured] == [True, False]  # argmax
    assert measured[1].classes_compared > 1
    for status, found, (blue, red), black in seen:
        assert "ms on one CPU thread" in status
        assert found == named
        assert np.abs(mixed((0, 0, 255), 3) - blue).max() <= 1.5
        assert np.abs(mixed((255, 0, 0), 1) - red).max() <= 1.5
        assert black == [0, 0, 0]
    assert aspect == pytest.approx(3, rel=0.01)
    assert swatches[0] == "" and len(swatches) == 3
    assert swatches[1] == "rgb({}, {}, {})".format(*class_color(3))


def random_picture() -> np.ndarray:
    """Returns a smooth picture of the network's size."""
    coarse = np.random.default_rng(0).uniform(0, 255, (1, 6, 6, 3))
    return np.round(tf.image.resize(coarse, (NETWORK_SIZE, NETWORK_SIZE)).numpy()[0])


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """The real segmenter with random weights, which finds all five classes."""
    keras.utils.set_random_seed(0)
    shape = (NETWORK_SIZE, NETWORK_SIZE, 3)
    model = DeepLabV3(
        "mobilevit_xxs", classes=5, weights=None, input_shape=shape, output_stride=8
    )
    model = randomized(model, 1)
    logits = model.predict(random_picture()[None], verbose=0)
    classifier = model.get_layer(CLASSIFIER)
    classifier.bias.assign(classifier.bias - logits.mean(axis=(0, 1, 2)))
    return model


@pytest.fixture(scope="module")
def network_files(network, tmp_path_factory) -> list[str]:
    """The real segmenter with logits, which the page resizes, and with class maps."""
    folder, paths = tmp_path_factory.mktemp("network"), []
    for output in ("raw", "classmap"):
        task = OUTPUT_VARIANTS[output]
        content = conversion.prepare(network, NETWORK_SIZE, task=task).float32
        paths.append(write_file(folder / f"{output}.tflite", content, labels=LABELS))
    return paths


CENTERS = """((canvas, size) => {
  const context = canvas.getContext("2d"), places = [...Array(size).keys()];
  const [x, y] = [canvas.width, canvas.height].map(
    side => places.map(i => Math.floor((i + .5) / size * side)));
  return y.map(row => x.map(
    column => [...context.getImageData(column, row, 1, 1).data.slice(0, 3)]));
})"""


def classes_drawn(page, picture) -> np.ndarray:
    """Returns each pixel's class: the one whose color is nearest at its center."""
    drawn = np.array(page.evaluate(f"{CENTERS}(preview, {NETWORK_SIZE})"))
    opacity = np.array([[OPACITY * (name != "background")] for name in LABELS])
    colors = np.array([class_color(label) for label in range(len(LABELS))])
    expected = (1 - opacity) * picture[:, :, None] + opacity * colors
    return np.abs(drawn[:, :, None] - expected).sum(axis=-1).argmin(axis=-1)


@pytest.mark.slow
@needs_browser
def test_chromium_draws_the_classes_that_keras_finds(network, network_files, tmp_path):
    picture = random_picture()
    write_png(tmp_path / "a.png", picture)
    with (
        PageServer(network_files, WASM) as server,
        Chromium(tmp_path / "profile") as page,
    ):
        wait_until_done(page, server)
        measured = [server.results.get(timeout=10) for _ in network_files]
        page.choose_file("#file", tmp_path / "a.png")
        page.wait_for("document.querySelectorAll('#found li').length")
        seen = []
        for index, text in enumerate(("of resizing and argmax", "CPU thread.")):
            choose_model(page, index, text)
            seen.append((found_items(page), classes_drawn(page, picture)))
    expected = network.predict(picture[None], verbose=0)[0].argmax(-1)
    assert len(np.unique(expected)) == 5
    for found, drawn in seen:
        assert np.mean(drawn == expected) >= 0.999
        assert found == expected_list(expected, LABELS)
    for measurement in measured:
        assert measurement.status == "measured", measurement.reason
        assert measurement.max_abs_difference <= 1e-3


@needs_browser
@pytest.mark.slow
def test_webgpu_takes_segmenters_whole(network_files, tmp_path):
    """On SwiftShader, a software GPU."""
    with (
        PageServer(network_files, WEBGPU) as server,
        Chromium(tmp_path / "profile", chromium.SOFTWARE_WEBGPU) as page,
    ):
        wait_until_done(page, server)
        logits, classes = (server.results.get(timeout=10) for _ in network_files)
    for measurement in (logits, classes):
        assert measurement.status == "measured", measurement.reason
        assert measurement.fully_accelerated
    assert logits.max_abs_difference <= 1e-3
    assert classes.unlabeled_class is None
    assert classes.max_abs_difference <= 0.01
