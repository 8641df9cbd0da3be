"""Files return the same classes on an emulated phone CPU as on this machine.

An emulated CPU computes the right numbers; its speed says nothing.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_mobilevit import MobileViT_XXS, SSDLite
from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.detection import decode_outputs
from keras_mobilevit.litert import LiteRTModel
from tests.helpers import arm
from tests.helpers.graphs import randomized
from tests.helpers.networks import build_detector
from tflite.formats import conversion
from tflite.formats.table import FORMATS
from tflite.images import load_images
from tflite.suites.conversion import settle_batch_norms
from tflite.tasks.classification.task import SINGLE_LABEL
from tflite.tasks.detection.task import RAW

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "ucmerced"
WEIGHTS = PHOTOS / "mobilevit_xxs_ucmerced.safetensors"
FILE_FORMATS = ("fp32", "fp16", "int8-mixed", "int8")
IN_ONE_PIECE = ("fp32", "fp16", "int8-mixed")
SIZE, CROP, COUNT = 224, 0.875, 20
DETECTOR_SIZE = 128
BOX_LIMITS = {"boxes": 0.01, "scores": 0.02}  # of a coordinate, of a probability


@pytest.fixture(scope="module")
def machine() -> arm.ArmMachine:
    try:
        return arm.prepare()
    except RuntimeError as error:
        if os.environ.get("REQUIRE_ARM"):  # of `make test-arm`
            raise
        pytest.skip(f"no emulated ARM CPU: {error}")


def save_real_network(path: Path) -> None:
    """Saves the network that was trained on the photos, and its labels beside it."""
    model = MobileViT_XXS(
        weights=str(WEIGHTS),
        classes=21,
        classifier_activation=None,
        input_shape=(None, None, 3),
    )
    model.save(path)
    labels = sorted(folder.name for folder in (PHOTOS / "train").iterdir())
    path.with_name("labels.txt").write_text("".join(f"{x}\n" for x in labels))


@pytest.fixture(scope="module")
def real_files(tmp_path_factory) -> dict[str, Path]:
    """The trained network's files, by their formats."""
    folder = tmp_path_factory.mktemp("real")
    save_real_network(folder / "real.keras")
    command = [
        sys.executable,
        "tflite/convert.py",
        f"--model={folder / 'real.keras'}",
        f"--size={SIZE}",
        f"--crop={CROP}",
        f"--data=folder:{PHOTOS}",
        "--eval_images=0",
        "--calibration_images=0",
        f"--formats={','.join(FILE_FORMATS)}",
        f"--output_dir={folder}",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return {name: folder / f"real_{SIZE}_{name}.tflite" for name in FILE_FORMATS}


def some_photos() -> np.ndarray:
    """Loads validation photos of many classes, in the network's range."""
    found = load_images(
        SINGLE_LABEL, f"folder:{PHOTOS}", "validation", 0, SIZE, CROP
    ).images
    chosen = np.linspace(0, len(found) - 1, COUNT).round().astype(int)
    return found[chosen].astype(np.float32)


def largest_difference(first, second) -> float:
    return float(np.abs(first - second).max())


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no photos and weights of UC Merced")
def test_a_phone_sees_the_same_classes(machine, real_files, tmp_path):
    photos = some_photos()
    found = machine.run(real_files.values(), photos, tmp_path)
    there = {n: found[p.name].outputs["logits"] for n, p in real_files.items()}
    here = {n: LiteRTModel(p).predict(photos)["logits"] for n, p in real_files.items()}
    classes = {name: logits.argmax(-1).tolist() for name, logits in there.items()}
    classes_here = {name: logits.argmax(-1).tolist() for name, logits in here.items()}

    difference = largest_difference(there["fp16"], there["fp32"])
    print(f"\nlogits on ARM, up to {np.abs(there['fp32']).max():.1f}")
    print(f"largest difference, fp16 from fp32 on ARM: {difference:.2g}")
    for name in FILE_FORMATS:
        difference = largest_difference(there[name], here[name])
        print(f"largest difference, {name} on ARM from x86: {difference:.2g}")

    assert len(set(classes["fp32"])) > COUNT // 2  # or they would agree by chance
    assert classes["fp16"] == classes["fp32"] == classes_here["fp32"]
    for name in ("int8-mixed", "int8"):
        assert classes[name] == classes_here[name]
    for name in IN_ONE_PIECE:
        assert found[real_files[name].name].partitions == 1


class Detector:
    """A detector's files; they return offsets and logits beside boxes and scores.

    Args:
        model: the Keras model.
        images: calibration images; they set the size.
        folder: folder of the files.
    """

    def __init__(self, model: keras.Model, images: np.ndarray, folder: Path):
        size = images.shape[1]
        task = dataclasses.replace(RAW, postprocess=with_network_outputs)
        prepared = conversion.prepare(model, size, calibration=images, task=task)
        self.files = {name: folder / f"{name}.tflite" for name in ("fp32", "fp16")}
        for name, path in self.files.items():
            path.write_bytes(FORMATS[name].build(prepared))
        self.anchors = anchor_boxes(size, size)

    def run(self, machine: arm.ArmMachine, images, scratch: Path) -> list[dict]:
        """Returns the outputs of the fp32 and the fp16 file on ARM."""
        found = machine.run(self.files.values(), images, scratch)
        return [found[path.name].outputs for path in self.files.values()]

    def decoded(self, outputs: dict) -> dict[str, np.ndarray]:
        """Decodes offsets and logits in float32 on this machine."""
        boxes, scores = decode_outputs(outputs, self.anchors)
        return {"boxes": np.asarray(boxes), "scores": np.asarray(scores)}


def with_network_outputs(model: keras.Model, size: int):
    """Makes the function that returns boxes and scores, and what they are made of."""
    decoder = RAW.postprocess(model, size)
    return lambda tensors: {
        **dict(zip(("offsets", "logits"), tensors)),
        **decoder(tensors),
    }


def some_digits() -> np.ndarray:
    return load_images(
        SINGLE_LABEL, "digits", "validation", 16, DETECTOR_SIZE, 1.0
    ).images.astype(np.float32)


def check_boxes(reference: dict, outputs: dict, title: str) -> None:
    """Prints the differences of boxes and scores from a reference, and limits them."""
    for name, limit in BOX_LIMITS.items():
        difference = largest_difference(outputs[name], reference[name])
        print(f"\n{title}: {name} differ by up to {difference:.2g}")
        assert np.std(reference[name]) > limit  # or constants would pass
        assert difference < limit


def test_16_bits_are_enough_for_boxes(machine, tmp_path):
    """The network has only convolutions, so XNNPACK runs all of it in float16."""
    source = dataclasses.make_dataclass("Source", ["class_names"])(range(3))
    keras.utils.set_random_seed(0)
    images = some_digits()
    detector = Detector(randomized(build_detector(None, source), 1), images, tmp_path)
    precise, half = detector.run(machine, images[:2], tmp_path)
    for values in half.values():
        np.testing.assert_array_equal(values.astype(np.float16), values)
    check_boxes(precise, half, "16 bits from 32")
    check_boxes(detector.decoded(half), half, "decoding in 16 bits from 32")


def test_the_real_detectors_boxes_are_those_of_its_offsets(machine, tmp_path):
    """Random weights amplify the errors of float16, so these are only printed."""
    keras.utils.set_random_seed(0)
    model = SSDLite(
        "mobilevit_xxs", classes=3, weights=None, input_shape=(None, None, 3)
    )
    images = some_digits()
    settle_batch_norms(model, images)
    detector = Detector(model, images, tmp_path)
    precise, half = detector.run(machine, images[:2], tmp_path)
    for name in precise:
        difference = largest_difference(half[name], precise[name])
        spread = np.std(precise[name])
        print(f"\n{name}: 16 bits from 32 {difference:.2g}, spread {spread:.2g}")
    check_boxes(detector.decoded(precise), precise, "decoding in the fp32 file")
    check_boxes(detector.decoded(half), half, "decoding in the fp16 file")
