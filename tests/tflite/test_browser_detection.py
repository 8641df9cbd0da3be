"""Detectors on the page: their description, latency and boxes."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mobilevit import anchor_boxes
from keras_mobilevit.drawing import class_color
from tests.helpers import chromium, networks
from tests.helpers.chromium import Chromium
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
from tflite.drivers.browser_results import MAX_OUTPUTS
from tflite.drivers.browser_server import PageServer
from tflite.formats import conversion
from tflite.tasks.detection.postprocess import suppress
from tflite.tasks.registry import task_of

CELLS = 4  # side of the grid of the color detector
COLORS = ["red", "green", "blue"]


def color_boxes() -> np.ndarray:
    """Returns two anchors per grid cell: the cell, and a slightly smaller box."""
    y, x = np.divmod(np.arange(CELLS**2), CELLS)
    cells = np.stack([x, y, x + 1, y + 1], axis=-1) / CELLS
    return np.concatenate([cells, cells * 0.98 + 0.01])[None].astype(np.float32)


def detect_colors(images) -> dict:
    """Scores how red, green and blue each cell of the grid is."""
    side = SIZE // CELLS
    scores = tf.nn.avg_pool2d(images / 255, side, side, "VALID")
    scores = tf.reshape(scores, (1, CELLS**2, 3))
    scores = tf.concat([scores, scores * 0.9], axis=1)  # overlap and score less
    return {"boxes": tf.constant(color_boxes()), "scores": scores}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Detectors of colors and of the real anchors, the last with built-in NMS."""
    folder = tmp_path_factory.mktemp("tflite")
    keras.utils.set_random_seed(0)
    model = networks.build_detector(None, SimpleNamespace(class_names=COLORS))
    contents = {"colors": converted(detect_colors)}
    for nms in ("none", "builtin"):
        task = task_of(model, nms)
        prepared = conversion.prepare(model, SIZE, task=task)
        contents[nms] = prepared.float32
    return [
        write_file(folder / f"{name}.tflite", content, labels=COLORS)
        for name, content in contents.items()
    ]


def test_detectors_are_described_to_the_page(files):
    colors, anything, suppressed = map(read_file, files, range(3))
    for file in (colors, anything, suppressed):
        assert file.description["task"] == "detection"
        assert file.description["labels"] == COLORS
    shapes = {x["name"]: x["shape"] for x in anything.description["outputs"]}
    number = len(anchor_boxes(SIZE, SIZE))
    assert shapes == {"boxes": [1, number, 4], "scores": [1, number, 3]}
    types = {x["name"]: x["dtype"] for x in suppressed.description["outputs"]}
    assert set(types) == {"boxes", "scores", "classes", "count"}
    assert set(types.values()) == {"float32"}
    assert len(colors.outputs) == 32 * (4 + 3)
    assert len(suppressed.outputs) == 200  # the scores


def test_of_many_outputs_some_of_each_are_compared(tmp_path):
    def serve(images):
        zero = tf.reduce_min(images) * 0
        boxes, scores = tf.zeros((1, MAX_OUTPUTS, 4)), tf.ones((1, MAX_OUTPUTS, 3))
        return {"boxes": boxes + zero, "scores": scores + zero}

    compared = read_file(write_file(tmp_path / "x.tflite", converted(serve)), 0).outputs
    assert len(compared) == MAX_OUTPUTS
    assert np.count_nonzero(compared) == pytest.approx(MAX_OUTPUTS * 3 / 7, abs=2)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"a": (1, 2, 3)}, r"returns a \(1, 2, 3\). Expected a classifier with one"),
        ({"boxes": (1, 5, 4)}, "Expected a classifier"),
        ({"boxes": (1, 5, 4), "scores": (1, 6, 2)}, "Expected a classifier"),
        ({"boxes": (1, 5, 3), "scores": (1, 5, 2)}, "Expected a classifier"),
        ({"boxes": (1, 5, 4), "logits": (1, 5, 2)}, "Expected a classifier"),
        (
            {"boxes": (1, 5, 4), "scores": (1, 5), "classes": (1, 6)},
            "Expected a classifier",
        ),
    ],
)
def test_files_of_other_tasks_are_refused(outputs, message, tmp_path):
    def serve(images):
        return {n: tf.zeros(x) + tf.reduce_mean(images) for n, x in outputs.items()}

    path = write_file(tmp_path / "other.tflite", converted(serve))
    with pytest.raises(ValueError, match=message):
        read_file(path, 0)


COLORS_SHOWN = ["blue 99 %", "red 50 %"]  # resizing takes a little of the blue


def picture_of_colors() -> np.ndarray:
    """Returns a wide picture: blue at the left edge, some red at the right one.

    The middle, where a classifier looks, is black.
    """
    picture = np.zeros((128, 384, 3), np.uint8)
    picture[32:64, :96, 2] = 255
    picture[96:, 288:, 0] = 128
    return picture


@needs_browser
def test_chromium_measures_detectors_and_draws_boxes(files, tmp_path):
    write_png(tmp_path / "a.png", picture_of_colors())
    write_png(tmp_path / "b.png", np.zeros((8, 8, 3)))
    with (
        PageServer(files, WASM) as server,
        Chromium(tmp_path / "profile") as page,
    ):
        wait_until_done(page, server)
        measured = [server.results.get(timeout=10) for _ in files]
        page.choose_file("#file", tmp_path / "a.png")
        page.wait_for("document.querySelectorAll('#found li').length == 2")
        status, named = choose_model(page, 0, "non-maximum"), found_items(page)
        aspect = page.evaluate("(x => x.width / x.height)(preview)")
        corner, inside = canvas_pixel(page, 0.001, 0.497), canvas_pixel(page, 0.1, 0.4)
        beyond = canvas_pixel(page, 0.5, 0.4)
        page.choose_file("#file", tmp_path / "b.png")
        page.wait_for("document.querySelectorAll('#found li').length == 1")
        nothing = found_items(page)
    for measurement in measured:
        assert measurement.status == "measured", measurement.reason
        assert measurement.max_abs_difference <= 1e-4
        assert measurement.max_abs_output > 0.1
    assert named == COLORS_SHOWN
    assert "ms on one CPU thread" in status
    assert aspect == pytest.approx(3, rel=0.01)
    assert corner == list(class_color(2))
    assert inside == [0, 0, 255] and beyond == [0, 0, 0]
    assert nothing == ["nothing found"]


@needs_browser
def test_chromium_shows_what_a_file_suppressed_itself(tmp_path):
    write_png(tmp_path / "a.png", picture_of_colors())
    content = converted(lambda images: suppress(**detect_colors(images)))
    path = write_file(tmp_path / "suppressed.tflite", content, labels=COLORS)
    with (
        PageServer([path], WASM) as server,
        Chromium(tmp_path / "profile") as page,
    ):
        wait_until_done(page, server)
        page.choose_file("#file", tmp_path / "a.png")
        choose_model(page, 0, "ms on one CPU thread.")
        assert found_items(page) == COLORS_SHOWN


@needs_browser
@pytest.mark.slow
def test_webgpu_leaves_suppression_to_the_cpu(files, tmp_path):
    """On SwiftShader, a software GPU."""
    with (
        PageServer(files, WEBGPU) as server,
        Chromium(tmp_path / "profile", chromium.SOFTWARE_WEBGPU) as page,
    ):
        wait_until_done(page, server)
        measured = [server.results.get(timeout=10) for _ in files]
    assert [m.status for m in measured] == ["measured"] * 3
    assert [m.fully_accelerated for m in measured] == [True, True, False]
    assert all(m.max_abs_difference <= 1e-3 for m in measured)
