"""Core ML packages return Keras's numbers when their programs run in NumPy."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_mobilevit import VARIANTS
from tests.helpers.coreml import (
    CLASSES,
    classifier,
    core_ml,
    flags,
    pixels,
    save,
    small_model,
)
from tests.helpers.graphs import randomized
from tflite.checked_file import write_checked
from tflite.compare_with_keras import Reference, make_reference
from tflite.formats import conversion
from tflite.formats.coreml import options, package
from tflite.formats.table import FORMATS
from tflite.graph import tf_ops
from tflite.graph.reader import read_model
from tflite.images import load_images
from tflite.tasks.classification.task import SINGLE_LABEL
from tflite.validation.card import describe_package
from tflite.validation.checks import refuse_faults
from tflite.validation.checksum import sha256

ct = pytest.importorskip("coremltools", reason="pip install '.[coreml]'")

from coremltools.converters.mil import Builder as mb  # noqa: E402

from tflite.formats.coreml import mil_ops  # noqa: E402
from tflite.validation import mil_evaluator, mil_reader, numpy_ops, on_mac  # noqa: E402

ROOT = Path(__file__).parents[2]
LABELS = tuple(f"garment {i}" for i in range(CLASSES))
LAYOUTS = ("tokens", "ane")
MEANINGS = {"logits": "one for each class"}
# The operations of the network; Core ML has each of them.
NATIVE = {
    *("add", "cast", "concat", "conv", "layer_norm", "linear", "mul", "pixel_shuffle"),
    *("pixel_unshuffle", "reduce_mean", "reshape", "silu", "softmax", "transpose"),
}
IN_TOKENS = NATIVE | {"matmul"}
IN_ANE = NATIVE | {"einsum", "split"}


def difference(path: Path, size: int, model: keras.Model) -> float:
    """Returns the largest difference of a logit, relative to the largest logit."""
    images = pixels(size)
    expected = model(images.astype(np.float32), training=False).numpy()
    found = mil_evaluator.Evaluator(path).predict(images, logits=True)
    return np.abs(found - expected).max() / np.abs(expected).max()


# The network --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", ["tokens", pytest.param("ane", marks=pytest.mark.slow)]
)
def test_float32_is_keras_own(layout, tmp_path):
    """96 gives a map of 3x3, which must be resized before it is cut into patches."""
    path = save(core_ml("float32", sizes=(96,), layout=layout), tmp_path)
    assert difference(path, 96, classifier()) <= 1e-6
    card = describe_package(path, MEANINGS, 255)
    assert set(card["ops"]) - {"resize_bilinear", "mul"} == (
        {"tokens": IN_TOKENS, "ane": IN_ANE}[layout] - {"cast", "mul"}
        | ({"linear"} if layout == "ane" else set())
    )
    assert card["casts"] == card["casts_at_ends"] == 0


@pytest.mark.parametrize(
    "layout", ["tokens", pytest.param("ane", marks=pytest.mark.slow)]
)
def test_float16_is_near_and_all_native(layout, tmp_path):
    path = save(core_ml("float16", layout=layout), tmp_path)
    assert difference(path, 64, classifier()) <= 5e-3
    card = describe_package(path, MEANINGS, 255)
    assert set(card["ops"]) == {"tokens": IN_TOKENS, "ane": IN_ANE}[layout]
    assert card["ops"]["layer_norm"] == 21  # none is left in pieces
    assert card["ops"]["reduce_mean"] == 1  # of the classifier
    assert (card["casts"], card["casts_at_ends"]) == (0, 2)
    assert card["max_rank"] == 4
    assert card["foreign_ops"] == []
    assert card["ios"] == 16


@pytest.mark.slow
@pytest.mark.parametrize("size", [256, 224])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant(name, size, tmp_path):
    for layout in LAYOUTS:
        for precision, limit in (("float32", 1e-4), ("float16", 5e-3)):
            options = {"sizes": (size,), "layout": layout}
            model = core_ml(precision, name, 1000, **options)
            path = save(model, tmp_path)
            assert difference(path, size, classifier(name, 1000)) <= limit
            if (name, precision) == ("mobilevit_xxs", "float16"):
                assert describe_package(path, MEANINGS, 255)["bytes"] <= 2.85e6


@pytest.mark.skipif(sys.platform != "darwin", reason="coremltools predicts on macOS")
def test_core_ml_itself_agrees(tmp_path):
    from PIL import Image

    path = save(core_ml("float32"), tmp_path)
    (image,) = pixels(64)
    found = ct.models.MLModel(str(path)).predict({"image": Image.fromarray(image)})
    expected = mil_evaluator.Evaluator(path).predict(image[None])
    np.testing.assert_allclose(found["logits"], expected, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operations_that_core_ml_lacks(layout):
    """Every operation has its name in TensorFlow; five have no function in MIL."""
    found = mil_ops.OPERATIONS.keys() | mil_ops.LAYOUTS[layout]
    assert tf_ops.OPERATIONS.keys() - found == {
        *("crop_tokens", "keras", "pad_tokens", "positions", "rms_norm")
    }
    assert found <= tf_ops.OPERATIONS.keys() | {"best_class"}  # a segmenter's ending


# What an application sees -------------------------------------------------------------


def test_an_image_goes_in_and_names_come_out(tmp_path):
    metadata = {"author": "A", "license": "L", "version": "1", "source": "S"}
    model = core_ml("float16", labels=LABELS, metadata=Frozen(metadata))
    path = save(model, tmp_path)
    described = mil_reader.read_program(path).description
    assert described.input[0].type.imageType.colorSpace == 20  # RGB
    assert described.predictedFeatureName == "classLabel"
    assert (described.metadata.author, described.metadata.license) == ("A", "L")
    assert described.metadata.versionString == "1"
    assert described.metadata.userDefined["source"] == "S"
    image = pixels(64)
    expected = classifier()(image.astype(np.float32)).numpy()[0]
    values = mil_evaluator.Evaluator(path).run(image[0])
    assert values["classLabel"] == LABELS[expected.argmax()]
    probabilities = values["classLabel_probs"]
    assert tuple(probabilities) == LABELS
    np.testing.assert_allclose(sum(probabilities.values()), 1, atol=1e-3)
    assert difference(path, 64, classifier()) <= 5e-3  # of what the softmax takes
    card = describe_package(path, MEANINGS, 255)
    assert card["casts"] == 0 and card["labels"] == list(LABELS)


class Frozen(dict):
    def __hash__(self):
        return hash(tuple(self.items()))


@pytest.mark.parametrize(
    "layout", ["tokens", pytest.param("ane", marks=pytest.mark.slow)]
)
def test_several_sizes(layout, tmp_path):
    """One program takes all sizes; only at 96 is the last map resized."""
    model = core_ml("float32", sizes=(64, 96, 128), layout=layout)
    path = save(model, tmp_path)
    for size in (64, 96, 128):
        assert difference(path, size, classifier()) <= 1e-6
    card = describe_package(path, MEANINGS, 255)
    assert card["input"]["sizes"] == [[64, 64], [96, 96], [128, 128]]
    assert card["input"]["default_size"] == [64, 64]
    assert card["ios"] == 17
    assert card["ops"]["resize"] == 2  # at the one map that needs it, there and back


@pytest.mark.slow
def test_several_sizes_without_odd_maps_run_on_ios_16(tmp_path):
    path = save(core_ml("float16", sizes=(64, 128)), tmp_path)
    card = describe_package(path, MEANINGS, 255)
    assert card["ios"] == 16 and "resize" not in card["ops"]
    assert card["casts"] == 0 and difference(path, 128, classifier()) <= 5e-3


def test_an_ios_that_is_too_old_is_refused():
    with pytest.raises(ValueError, match="64, 96 .* iOS 17. Received: --ios=16"):
        core_ml("float32", sizes=(64, 96), ios=16)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:9], "has 10 classes, but 9 labels"),
        ((*LABELS[:9], ""), "Label 10 of the labels is empty"),
        (LABELS[:9] + LABELS[:1], "more than one class is called .garment 0."),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        package.check_labels(labels, CLASSES)


def test_no_coremltools_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(ValueError, match=r"need coremltools 9.0 .*'\.\[coreml\]'"):
        package.load_coremltools()


def test_an_old_coremltools_is_told(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "8.3.0")
    with pytest.raises(ValueError, match="9.0 or later.* Found: 8.3.0"):
        package.load_coremltools()


@pytest.mark.parametrize(
    ("before", "largest", "power", "ops"),
    [
        (None, 255, 1.0, {"conv"}),
        (None, 1, 1 / 256, {"conv"}),
        ({"scale": 1 / 255}, 255, 1 / 256, {"conv"}),
        ({"scale": -1 / 255}, 255, 1.0, {"conv"}),
        # The offset has to come after the scale, and padding after both.
        ({"scale": 1 / 127.5, "offset": -1}, 255, 1.0, {"conv", "rescale"}),
    ],
)
def test_pixels_stay_exact_in_float16(before, largest, power, ops):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(**before)(inputs) if before else inputs
    model = randomized(keras.Model(inputs, keras.layers.Conv2D(2, 1)(x)))
    graph, scale = package.split_input_scale(read_model(model, 8, 8), largest)
    assert scale == power
    assert {node.op for node in graph.nodes.values()} == ops
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3))
    (found,) = tf_ops.run(graph, image * scale)
    expected = model(image * largest / 255)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# From a conversion to a package with its card -----------------------------------------


def references(model, sizes) -> list[Reference]:
    return [
        make_reference(
            model, load_images(SINGLE_LABEL, "digits", "validation", 2, size, 1.0)
        )
        for size in sizes
    ]


def convert(folder: Path, file_format: str = "coreml-fp32", **options) -> dict:
    model = classifier()
    prepared = conversion.prepare(
        model,
        64,
        core_ml=lambda p: core_ml(p, sizes=(64, 96, 128), layout="tokens"),
    )
    return write_checked(
        prepared,
        file_format,
        references(model, (64, 96)),
        folder / "m.mlpackage",
        {},
        **options,
    )


def test_a_package_has_a_card(tmp_path):
    card = convert(tmp_path)
    assert json.loads((tmp_path / "m.json").read_text()) == card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.mlpackage"]
    assert card["sha256"] == sha256(tmp_path / "m.mlpackage")
    assert card["parity"]["size"] == 64 and card["parity"]["max_abs"] <= 1e-4
    (other,) = card["other_sizes"]
    assert other["parity"]["size"] == 96 and other["parity"]["max_abs"] <= 1e-4
    assert card["outputs"] == [
        {"name": "logits", "type": "multiArrayType", "shape": [1, CLASSES]}
    ]
    assert "gpu" not in card and "xnnpack" not in card


def test_a_package_that_misses_a_limit_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS["coreml-fp32"].limits, "parity", 0.0)
    with pytest.raises(ValueError, match=r"differ from Keras's .*--allow=parity"):
        convert(tmp_path)
    assert list(tmp_path.iterdir()) == []


CARD = {
    "format": "coreml",
    "foreign_ops": [],
    "casts": 0,
    "max_rank": 4,
    "parity": {"max_abs": 0.01, "max_abs_reference": 10.0},
    "accuracy": None,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"casts": 1},
            r"casts within the network: 1.*at most 0 \(--allow=internal_casts\)",
        ),
        ({"max_rank": 6}, "rank 6; phones take at most 5"),
        (
            {"parity": {"max_abs": 0.1, "max_abs_reference": 10.0}},
            "relative to the largest, by up to 0.01; at most 0.005",
        ),
    ],
)
def test_every_fault_of_a_package_is_told(change, message):
    limits = FORMATS["coreml"].limits
    refuse_faults(CARD, limits)
    with pytest.raises(ValueError, match=message):
        refuse_faults(CARD | change, limits)


@pytest.mark.parametrize(
    ("given", "has_packages", "message"),
    [
        ({"raw_outputs": True}, False, "--raw_outputs is for Core ML: add coreml to"),
        ({"sizes": ["64", "x"]}, True, "at least 32. Received: 64,x"),
        ({"sizes": ["64", "16"]}, True, "at least 32. Received: 64,16"),
        ({"sizes": ["64", "64"]}, True, "more than once: 64,64"),
        ({"no_rewrite": True}, True, "remove --no_rewrite"),
        ({"sizes": ["64", "96"], "size": 96}, True, "--size=96 is not the first of"),
    ],
)
def test_flags_that_do_not_fit(given, has_packages, message):
    with pytest.raises(ValueError, match=message):
        options.package_options(flags(**given), has_packages)


def test_labels_come_from_the_model(caplog):
    assert options.class_labels(flags(), list(LABELS), CLASSES) == LABELS
    assert options.class_labels(flags(raw_outputs=True), LABELS, CLASSES) == ()
    assert options.class_labels(flags(), [], 3) == ("0", "1", "2")
    assert "name them with --labels" in caplog.text


@pytest.mark.slow
def test_from_the_command_line(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "tflite/convert.py", "--model=mobilevit_xxs"),
            "--weights=none",
            *("--formats=coreml,coreml-int8", "--size=64"),
            *("--data=digits", "--eval_images=8"),
            *("--author=Ada", "--layout=ane", f"--output_dir={tmp_path}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "mobilevit_xxs_64_coreml_ane.mlpackage: 2." in result.stdout
    packages = sorted(path.name for path in tmp_path.glob("*.mlpackage"))
    assert packages == [
        "mobilevit_xxs_64_coreml-int8_ane.mlpackage",
        "mobilevit_xxs_64_coreml_ane.mlpackage",
    ]
    described = mil_reader.read_program(tmp_path / packages[1]).description
    assert described.metadata.author == "Ada"


# Smaller weights ----------------------------------------------------------------------


@pytest.mark.parametrize("ios", [16, 18])
def test_int8_weights(ios, tmp_path):
    weight = np.random.default_rng(0).normal(size=(64, 3, 3, 3)).astype(np.float32)
    path = save(package.int8_weights(small_model(weight, ios)), tmp_path)
    scale = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    expected = tf.nn.conv2d(
        pixels(8).astype(np.float32),
        (np.round(weight / scale) * scale).transpose(2, 3, 1, 0),
        1,
        "VALID",
    )
    found = mil_evaluator.Evaluator(path).predict(pixels(8))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
    assert any(kind.startswith("constexpr") for kind in kinds(path))


@pytest.mark.parametrize("ios", [16, 18])
def test_weights_out_of_a_table(ios, tmp_path):
    """The weights have 64 different values, so a table of 64 loses nothing."""
    random = np.random.default_rng(0)
    values = random.normal(size=64).astype(np.float32)
    weight = values[random.integers(0, 64, (64, 3, 3, 3))]
    path = save(package.palette_weights(small_model(weight, ios)), tmp_path)
    expected = tf.nn.conv2d(
        pixels(8).astype(np.float32), weight.transpose(2, 3, 1, 0), 1, "VALID"
    )
    found = mil_evaluator.Evaluator(path).predict(pixels(8))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
    assert "constexpr_lut_to_dense" in kinds(path)


def kinds(path) -> set[str]:
    return {operation.kind for operation in mil_reader.read_program(path).operations}


@given(bits=st.sampled_from([1, 2, 3, 4, 6, 8]), data=st.data())
def test_packed_bits(bits, data):
    numbers = st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=40)
    values = data.draw(numbers)
    stream = sum(value << bits * i for i, value in enumerate(values))
    packed = stream.to_bytes(-(-bits * len(values) // 8), "little")
    found = mil_reader.unpack_bits(np.frombuffer(packed, np.uint8), bits, len(values))
    assert found.tolist() == values


# The evaluator ------------------------------------------------------------------------


@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 3)]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["same", "valid"]),
    depthwise=st.booleans(),
)
def test_convolutions_are_tensorflows(size, kernel, strides, padding, depthwise):
    random = np.random.default_rng(0)
    x = random.normal(size=(1, *size, 4)).astype(np.float32)
    strides = (strides[0],) * 2 if depthwise else strides  # TensorFlow wants one
    weight = random.normal(size=(*kernel, 4, 2)).astype(np.float32)
    function = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
    expected = function(x, weight, (1, *strides, 1), padding.upper())
    weight = (
        weight.transpose(2, 3, 0, 1).reshape(8, 1, *kernel)
        if depthwise
        else (weight.transpose(3, 2, 0, 1))
    )
    found = numpy_ops.OPERATIONS["conv"](
        x=x.transpose(0, 3, 1, 2),
        weight=weight,
        strides=strides,
        pad_type=padding,
        dilations=(1, 1),
        groups=4 if depthwise else 1,
    )
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, atol=1e-5)


@given(st.tuples(*[st.integers(1, 9)] * 4), st.sampled_from([False, True]))
def test_resizing_is_tensorflows(sides, align_corners):
    old, new = sides[:2], sides[2:]
    x = np.random.default_rng(0).normal(size=(1, *old, 2)).astype(np.float32)
    mode = mil_ops.SAMPLING[align_corners]
    found = numpy_ops.OPERATIONS["resize_bilinear"](x.transpose(0, 3, 1, 2), *new, mode)
    expected = tf.raw_ops.ResizeBilinear(
        images=x,
        size=new,
        align_corners=align_corners,
        half_pixel_centers=not align_corners,
    )
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, atol=1e-5)


def test_an_unknown_sampling_is_told():
    with pytest.raises(ValueError, match="Sampling OFFSET_CORNERS is not supported"):
        numpy_ops.OPERATIONS["resize_bilinear"](
            np.zeros((1, 1, 2, 2)), 3, 3, "OFFSET_CORNERS"
        )


def check_rounding(x: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(numpy_ops.round_to_half(x), expected)


@given(st.lists(st.floats(width=32), min_size=1))
def test_rounding_is_numpys(values):
    check_rounding(np.array(values, np.float32))


@pytest.mark.parametrize("part", [0.25, 0.5, 0.75])
def test_rounding_between_all_neighbors(part):
    """The range includes subnormal numbers; a part of 0.5 makes ties."""
    numbers = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    check_rounding(numbers[:-1] + (numbers[1:] - numbers[:-1]) * np.float32(part))


def test_an_operation_that_is_not_known_is_named(tmp_path):
    @mb.program(input_specs=[mb.TensorSpec((1, 3, 8, 8))])
    def other(image):
        return mb.erf(x=image)

    model = ct.convert(
        other,
        source="milinternal",
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    )
    with pytest.raises(ValueError, match="cannot be evaluated: erf"):
        mil_evaluator.Evaluator(save(model, tmp_path))
    card = describe_package(tmp_path / "model.mlpackage", MEANINGS, 255)
    assert card["foreign_ops"] == ["erf"]


def test_a_damaged_package_is_told(tmp_path):
    path = save(core_ml("float16", layout="tokens"), tmp_path)  # as above
    (weights,) = path.rglob("weight.bin")
    content = weights.read_bytes()
    for length in (10_000, 100, 60, 0):
        weights.write_bytes(content[:length])
        with pytest.raises(
            ValueError, match="weight.bin is missing, truncated or damaged"
        ):
            mil_evaluator.Evaluator(path)
    weights.unlink()
    with pytest.raises(ValueError, match="weight.bin is missing"):
        mil_evaluator.Evaluator(path)
    (path / "Manifest.json").unlink()
    with pytest.raises(ValueError, match="is not a Core ML package"):
        mil_reader.read_program(path)


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        (0.0, {"ran": True, "max_abs": 0.0}),
        (0.25, {"ran": True, "max_abs": 0.25}),
        (np.nan, {"ran": True, "max_abs": None, "reason": "Core ML returns numbers"}),
        (None, {"ran": False, "reason": "Core ML refuses it here: too old"}),
    ],
)
def test_a_mac_says_what_core_ml_makes_of_it(shift, verdict, tmp_path, monkeypatch):
    """NumPy's outputs, shifted, stand in for Core ML's."""
    path = save(core_ml("float32", labels=LABELS), tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    package = mil_evaluator.Evaluator(path)
    values = package.run(pixels)

    def predict(path, pixels) -> dict:
        if shift is None:
            raise RuntimeError("too old")
        found = {name: values[name] for name in package.program.outputs}
        return {
            name: {k: v + np.float64(shift) for k, v in value.items()}
            if isinstance(value, dict)
            else value
            for name, value in found.items()
        }

    monkeypatch.setattr(on_mac, "_predict", predict)
    monkeypatch.setattr(on_mac.sys, "platform", "linux")
    assert on_mac.run_in_core_ml(path, pixels)["reason"] == on_mac.ELSEWHERE
    monkeypatch.setattr(on_mac.sys, "platform", "darwin")
    found = on_mac.run_in_core_ml(path, pixels)
    assert found.keys() == verdict.keys() and found["ran"] == verdict["ran"]
    assert found.get("reason", "").startswith(verdict.get("reason", ""))
    if verdict.get("max_abs") is not None:
        assert found["max_abs"] == pytest.approx(verdict["max_abs"], abs=1e-6)
