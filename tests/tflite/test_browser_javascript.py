"""The page's arithmetic, in node, against NumPy and Keras."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_mobilevit import detection
from keras_mobilevit.backend import resize_bilinear
from keras_mobilevit.segmentation import class_map
from tests.helpers.boxes import random_boxes
from tflite.drivers.browser_files import nms_options

WEB = Path(__file__).parents[2] / "tflite/web"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node")


def run_javascript(module: str, expression: str, given):
    """Returns the value of an expression with a module of the page and `given`."""
    script = (
        "import {readFileSync} from 'node:fs';"
        f"import * as page from {json.dumps((WEB / module).as_uri())};"
        "const given = JSON.parse(readFileSync(0));"
        f"console.log(JSON.stringify({expression}));"
    )
    completed = subprocess.run(
        [NODE, "--input-type=module", "--eval", script],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


def on_a_grid(values, steps: int) -> np.ndarray:
    """Rounds values so that many are equal."""
    return (np.round(values * steps) / steps).astype(np.float32)


def on_the_page(call: str, boxes, scores, options) -> np.ndarray:
    """Returns rows of class, score and corners from a call in `detection.js`."""
    found = run_javascript(
        "detection.js",
        "(({boxes, scores, options}) => "
        f"{call})({{...given, boxes: Float32Array.from(given.boxes)}})"
        ".map(({label, score, box}) => [label, score, ...box])",
        {
            "boxes": boxes.ravel().tolist(),
            "scores": scores.ravel().tolist(),
            "options": options,
        },
    )
    return np.array(found, np.float32).reshape(-1, 6)


# Eagerly, its loop of a few hundred steps takes seconds.
compiled_suppression = tf.function(detection.non_max_suppression, autograph=False)
SUPPRESS = "page.nonMaxSuppression(boxes, scores, options)"
DEFAULTS = {"score_threshold": detection.SCORE_THRESHOLD} | nms_options({})


@pytest.mark.parametrize("steps", [None, 16])  # 16: equal scores, overlaps of 0.5
@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, 200),
        ({"score_threshold": 0.3, "iou_threshold": 0.3}, 50),
        ({"score_threshold": 0.5, "pre_nms_top_k": 20, "max_detections": 30}, 20),
        ({"score_threshold": 2.0}, 0),
    ],
)
def test_the_page_suppresses_as_keras_does(changes, least, steps):
    options = DEFAULTS | changes
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 500)
    scores = rng.uniform(0, 1, (500, 5)).astype(np.float32)
    if steps:
        boxes, scores = on_a_grid(boxes, steps), on_a_grid(scores, steps)
    found = on_the_page(SUPPRESS, boxes, scores, options)
    expected = compiled_suppression(boxes[None], scores[None], **options)
    expected = {name: np.array(x[0]) for name, x in expected.items()}
    number = np.count_nonzero(expected["scores"])
    assert len(found) == number >= least
    assert (found[:, 0] == expected["classes"][:number]).all()
    assert (found[:, 1] == expected["scores"][:number]).all()
    assert (found[:, 2:] == expected["boxes"][:number]).all()


def test_boxes_below_the_threshold_change_nothing():
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, 300), np.float32(rng.uniform(0, 1, (300, 2)))
    options = DEFAULTS | {"iou_threshold": 0.3, "max_detections": 1000}
    everything = on_the_page(SUPPRESS, boxes, scores, options)
    call = "page.detectedObjects({boxes, scores}, options, 0.5)"
    shown = on_the_page(call, boxes, scores, options)
    assert 5 < len(shown) < len(everything)
    assert (everything[everything[:, 1] > 0.5] == shown).all()


def test_colors_of_many_classes_repeat():
    call = "given.map(x => new page.Palette({colors: [[1, 2, 3], [4, 5, 6]]}).css(x))"
    found = run_javascript("drawing.js", call, [0, 1, 2])
    assert found == ["rgb(1 2 3)", "rgb(4 5 6)", "rgb(1 2 3)"]


def best_classes(outputs) -> list[dict]:
    return run_javascript("classification.js", "page.bestClasses(given)", outputs)


def test_logits_become_probabilities():
    logits = np.random.default_rng(0).normal(0, 3, 10)
    found = best_classes({"logits": logits.tolist()})
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [x["label"] for x in found] == np.argsort(-expected)[:5].tolist()
    assert [x["score"] for x in found] == pytest.approx(sorted(expected)[:-6:-1])
    found = best_classes({"probabilities": [0.2, 0.7, 0.1]})
    assert [x["score"] for x in found] == [0.7, 0.2, 0.1]


def class_maps(
    logits, height: int, width: int, align_corners: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class maps of the page and of Keras for logits."""
    rows, columns, classes = logits.shape
    found = run_javascript(
        "segmentation.js",
        "Array.from(page.classMap({logits: Float32Array.from(given.logits)}, "
        "given.shape, given.height, given.width, given.align))",
        {
            "logits": logits.ravel().tolist(),
            "shape": [1, rows, columns, classes],
            "height": height,
            "width": width,
            "align": align_corners,
        },
    )
    found = np.reshape(found, (height, width))
    if align_corners:
        logits = resize_bilinear(logits[None], height, width, True)[0]
    return found, class_map(np.asarray(logits), height, width)


SHAPES = [  # rows and columns of logits, and of the map
    ((8, 8), (128, 128)),
    ((16, 16), (128, 128)),
    ((7, 5), (101, 77)),
    ((1, 9), (33, 130)),
    ((6, 6), (6, 6)),
    ((9, 12), (5, 7)),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "map_size"), SHAPES)
def test_the_page_finds_the_classes_that_keras_finds(size, map_size, align_corners):
    logits = np.random.default_rng(0).normal(0, 1, (*size, 21)).astype(np.float32)
    found, expected = class_maps(logits, *map_size, align_corners)
    assert len(np.unique(expected)) > 5
    # Where the best classes differ only by rounding, either may win.
    assert np.mean(found == expected) >= 0.9995


@pytest.mark.parametrize("stride", [8, 16])
def test_of_classes_that_are_equally_good_the_page_takes_the_first(stride):
    logits = np.random.default_rng(1).integers(-1, 2, (8, 6, 5)).astype(np.float32)
    logits[:4, :, 3] = logits[:4, :, 1]
    logits[5:] = 0
    found, expected = class_maps(logits, 8 * stride, 6 * stride)
    assert (found == expected).all()
    assert (found[-stride:] == 0).all() and not (found[: 3 * stride] == 3).any()


def test_the_page_takes_the_classes_that_a_file_has_chosen():
    expression = "page.classMap({classes: given}, [1, 2, 2], 2, 2)"
    assert run_javascript("segmentation.js", expression, [3, 1, 1, 0]) == [3, 1, 1, 0]


def test_shares_of_a_picture_are_sorted():
    found = run_javascript(
        "segmentation.js", "page.classShares(Uint8Array.from(given))", [3, 0, 3, 3, 1]
    )
    assert [x["label"] for x in found] == [3, 0, 1]  # of equal ones the first class
    assert [x["share"] for x in found] == pytest.approx([0.6, 0.2, 0.2])


@pytest.mark.parametrize(
    ("outputs", "scores"),
    [
        ({"probabilities": [0.05, 0.95, 0.9]}, [0.95, 0.9, 0.05]),  # of a sigmoid
        ({"probabilities": [0.047]}, [0.047]),
        ({"probabilities": [0.1, 0.7, 0.2]}, [0.7, 0.2, 0.1]),
        ({"logits": [0.0, float(np.log(3))]}, [0.75, 0.25]),
        ({"logits": [float(np.log(3))]}, [0.75]),  # a softmax would return 1
    ],
)
def test_scores_of_a_classifier_fit_its_output(outputs, scores):
    call = "page.bestClasses(given).map(found => found.score)"
    found = run_javascript("classification.js", call, outputs)
    np.testing.assert_allclose(found, scores, rtol=1e-6)
