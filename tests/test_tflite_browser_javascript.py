"""The page's arithmetic, in node, against NumPy and Keras."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from keras_mobilevit.detection import non_max_suppression
from keras_mobilevit.drawing import class_color
from tests.test_keras_mobilevit_boxes import random_boxes

WEB = Path(__file__).parents[1] / "tflite/web"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node")


def run_javascript(module: str, expression: str, given):
    """Returns what an expression of a module of the page makes of `given`."""
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
    """Rounds values, so that many are equal."""
    return (np.round(values * steps) / steps).astype(np.float32)


def on_the_page(call: str, boxes, scores, options) -> np.ndarray:
    """Returns rows of class, score and corners, of a call in `detection.js`."""
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


SUPPRESS = "page.nonMaxSuppression(boxes, scores, options)"


@pytest.mark.parametrize("steps", [None, 16])  # 16: equal scores, overlaps of 0.5
@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 200),
        ({"score_threshold": 0.3, "iou_threshold": 0.3}, 50),
        ({"score_threshold": 0.5, "candidates": 20, "max_detections": 30}, 20),
        ({"score_threshold": 2.0}, 0),
    ],
)
def test_the_page_suppresses_as_keras_does(options, least, steps):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 500)
    scores = rng.uniform(0, 1, (500, 5)).astype(np.float32)
    if steps:
        boxes, scores = on_a_grid(boxes, steps), on_a_grid(scores, steps)
    found = on_the_page(SUPPRESS, boxes, scores, options)
    expected = non_max_suppression(boxes[None], scores[None], **options)
    expected = {name: np.array(x[0]) for name, x in expected.items()}
    number = np.count_nonzero(expected["scores"])
    assert len(found) == number >= least
    assert (found[:, 0] == expected["classes"][:number]).all()
    assert (found[:, 1] == expected["scores"][:number]).all()
    assert (found[:, 2:] == expected["boxes"][:number]).all()


def test_what_scores_too_little_changes_nothing_of_the_rest():
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, 300), np.float32(rng.uniform(0, 1, (300, 2)))
    of_card = {"score_threshold": 0.01, "iou_threshold": 0.3, "max_detections": 1000}
    everything = on_the_page(SUPPRESS, boxes, scores, of_card)
    call = "page.objectsOf({boxes, scores}, options, 0.5)"
    shown = on_the_page(call, boxes, scores, of_card)
    assert 5 < len(shown) < len(everything)
    assert (everything[everything[:, 1] > 0.5] == shown).all()


def test_classes_have_the_same_colors_everywhere():
    labels = list(range(100))
    found = run_javascript("drawing.js", "given.map(page.classColor)", labels)
    assert found == [list(class_color(label)) for label in labels]


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
