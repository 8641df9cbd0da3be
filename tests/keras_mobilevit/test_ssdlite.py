"""SSDLite: its sizes, its parity with ml-cvnets, its weights, its errors."""

import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_mobilevit
from keras_mobilevit import SSDLite, ssdlite
from keras_mobilevit.weights import hub
from keras_mobilevit.weights.file_formats import load_model_file
from tests.golden import reference
from tests.helpers.references import DETECTOR, check_detector, write_weights
from tests.helpers.whole_models import (
    check_backbone_is_loaded,
    check_default_is_imagenet,
    classifier,
)

V2 = "mobilevitv2_050"
# Outputs of ml-cvnets v0.1, which does not install beside current packages.
SHARED = Path(__file__).parents[3] / "shared" / "golden"
needs_golden = pytest.mark.skipif(
    not SHARED.exists(), reason="the outputs of ml-cvnets are missing"
)


def small(**arguments):
    arguments = {"classes": 3, "weights": None, "input_shape": (64, 96, 3)} | arguments
    return SSDLite("mobilevit_xxs", **arguments)


@pytest.fixture(scope="module")
def of_any_size() -> keras.Model:
    """A model that no test changes."""
    return small(input_shape=(None, None, 3))


@pytest.mark.parametrize("size", [(64, 96), (75, 51), (320, 256)])
def test_any_size_has_an_output_for_each_anchor(size: tuple, of_any_size):
    images = np.zeros((2, *size, 3), np.float32)
    outputs, anchors = of_any_size(images), keras_mobilevit.anchor_boxes(*size)
    assert outputs["offsets"].shape == (2, len(anchors), 4)
    assert outputs["logits"].shape == (2, len(anchors), 4)
    found = keras_mobilevit.detect(outputs, anchors=anchors, max_detections=7)
    assert found["boxes"].shape == (2, 7, 4)


def build_from_cvnets(weights: Path) -> keras.Model:
    """Builds the detector of a file with ml-cvnets' names."""
    with pytest.warns(UserWarning, match="BGR was assumed"):
        return SSDLite(
            "mobilevit_xxs", weights=str(weights), include_preprocessing=False
        )


@needs_golden
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_outputs_equal_the_reference(ending: str):
    if ending == "pt":
        pytest.importorskip("torch", reason="reading .pt files takes PyTorch")
    model = build_from_cvnets(SHARED / f"ssd_xxs.{ending}")
    golden = np.load(SHARED / "ssd_xxs.npz")
    images = np.random.default_rng(7).random((2, 320, 320, 3), dtype=np.float32)
    outputs = model(images)
    for name, wanted in (("logits", "conf"), ("offsets", "loc")):
        found = keras.ops.convert_to_numpy(outputs[name])
        assert np.abs(golden[wanted]).max() > 1
        assert np.abs(found - golden[wanted]).max() <= 1e-4, name
    assert (keras_mobilevit.anchor_boxes(320, 320) == golden["anchors"]).all()


def test_outputs_equal_the_golden(tmp_path):
    """The golden model equaled ml-cvnets when the golden file was written."""
    check_detector(build_from_cvnets(write_weights(DETECTOR, tmp_path)))


def test_outputs_of_the_second_family_equal_the_golden(tmp_path):
    """Maps with odd sides are enlarged, and so are those that follow."""
    name = f"detection/cvnets_{V2}"
    model = SSDLite(
        V2,
        weights=str(write_weights(name, tmp_path)),
        input_shape=(None, None, 3),
        include_preprocessing=False,
    )
    # Its map of stride 32 has the head's number of channels, so nothing projects it.
    assert "ssd32_project_conv" not in [layer.name for layer in model.layers]
    check_detector(model, name)
    check_detector(model, f"{name}_240x200", (240, 200))
    for size in ((240, 200), (33, 130)):
        outputs = model(reference.images(*size))
        anchors = keras_mobilevit.anchor_boxes(*size, V2)
        assert outputs["offsets"].shape == (2, len(anchors), 4)
        found = keras_mobilevit.detect(outputs, anchors=anchors, max_detections=7)
        assert found["boxes"].shape == (2, 7, 4)
        assert np.isfinite(found["boxes"]).all()


def test_a_file_of_another_kind_says_what_is_missing(tmp_path):
    file = tmp_path / "classifier.safetensors"
    keras_mobilevit.save_safetensors(classifier(), file)
    with pytest.raises(ValueError, match="not in the file: ssd128_depthwise_bn"):
        small(weights=str(file))


@pytest.mark.slow
def test_a_saved_detector_is_the_same(tmp_path):
    model, images = small(), np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3))
    for ending in ("keras", "weights.h5"):
        file = tmp_path / f"detector.{ending}"
        (model.save if ending == "keras" else model.save_weights)(file)
        again = small(weights=str(file))
        for name, value in model(images).items():
            assert (np.asarray(again(images)[name]) == np.asarray(value)).all()
    loaded = load_model_file(tmp_path / "detector.keras")
    assert set(loaded(images)) == {"offsets", "logits"}


@pytest.mark.parametrize(
    "suffix", [pytest.param("keras", marks=pytest.mark.slow), "safetensors"]
)
def test_the_backbone_of_a_classifier(suffix: str, tmp_path):
    check_backbone_is_loaded(small(), suffix, tmp_path)


@pytest.mark.parametrize(
    ("variant", "place"),
    [
        ("mobilevit_s", "cvnets/detection/ssd_mobilevit_s_320.pt"),
        (V2, "cvnets-v2/detection/mobilevitv2/coco-ssd-mobilevitv2-0.5.pt"),
        (
            "mobilevitv2_200",
            "cvnets-v2/detection/mobilevitv2/coco-ssd-mobilevitv2-2.0.pt",
        ),
    ],
)
def test_published_detectors(variant: str, place: str, tmp_path, monkeypatch):
    """A folder replaces Apple's server."""
    served, home = tmp_path / "served", tmp_path / "home"
    monkeypatch.setattr(hub, "COCO_URL", served.as_uri())
    file = served / place
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(hub, "_check_has_torch", lambda: None)
    monkeypatch.setenv("KERAS_HOME", str(home))
    with pytest.raises(OSError, match=f"fetch file:.*/{re.escape(place)} on"):
        hub.weights_file("coco", variant)
    assert not list(home.rglob("*.*"))
    file.write_bytes(b"weights")
    path = hub.weights_file("coco", variant)
    assert path.read_bytes() == b"weights"
    file.unlink()
    assert hub.weights_file("coco", variant) == path
    assert hub.is_published(path)
    other = tmp_path / path.name
    other.write_bytes(path.read_bytes())
    assert not hub.is_published(other)


def test_published_detectors_without_pytorch(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "COCO_URL", "file:///nowhere")  # it is not used
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="pip install torch.*imagenet.*random"):
        SSDLite("mobilevit_xxs")


def test_default_weights_fit_any_number_of_classes(tmp_path, monkeypatch):
    requested = check_default_is_imagenet(
        ssdlite,
        lambda: SSDLite("mobilevit_xxs", classes=3, input_shape=(64, 96, 3)),
        tmp_path,
        monkeypatch,
    )
    with pytest.raises(ValueError, match="does not fit"):
        SSDLite("mobilevit_xxs")
    assert requested[1] == ("coco", "mobilevit_xxs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "positive integer. Received: classes=0"),
        ({"weights": "coco"}, "has 80 classes.*Received: classes=3"),
        ({"weights": "voc"}, '"imagenet" or .*"coco" .*weights=.voc'),
        ({"input_shape": (31, 64, 3)}, "at least 32"),
        ({"weights": "imagenet", "input_shape": (64, 64, 1)}, "3 channels"),
    ],
)
def test_invalid_arguments(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_unknown_backbone():
    with pytest.raises(ValueError, match="Unknown model 'resnet'"):
        SSDLite("resnet", weights=None)


def test_anchors_of_another_backbone_are_refused():
    model = SSDLite(V2, classes=3, weights=None, input_shape=(300, 300, 3))
    outputs = model(np.zeros((1, 300, 300, 3), np.float32))
    anchors = keras_mobilevit.anchor_boxes(300, 300)  # of MobileViT
    with pytest.raises(ValueError, match=r"boxes, but there are \d+ anchors.*backbone"):
        keras_mobilevit.detect(outputs, anchors=anchors)
