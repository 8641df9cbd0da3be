"""Core ML packages of segmenters find the classes that Keras finds."""

import dataclasses
import functools
import json
import types
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_mobilevit import DeepLabV3
from keras_mobilevit.deeplab import CLASSIFIER
from keras_mobilevit.drawing import class_color
from tests.helpers.graphs import randomized
from tests.helpers.networks import build_segmenter
from tflite.checked_file import write_checked
from tflite.compare_with_keras import make_reference
from tflite.formats import conversion
from tflite.formats.coreml import options, package
from tflite.formats.coreml.options import PackageOptions
from tflite.graph.reader import read_model
from tflite.graph.rewrites import COREML_REWRITES, deployment_graph
from tflite.images import ImageSet
from tflite.metadata.origin import describe_origin, describe_preparation
from tflite.tasks.segmentation import task as segmentation
from tflite.validation.card import describe_package

ct = pytest.importorskip("coremltools", reason="pip install '.[coreml]'")

from tflite.formats.coreml import segmenter  # noqa: E402
from tflite.validation import mil_evaluator, mil_reader  # noqa: E402

SIZE = 96
LABELS = ("background", "road", "sky", "tree", "car")
MEANINGS = {"classes": "of each pixel"}


@functools.cache
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = randomized(
        DeepLabV3(
            "mobilevit_xxs",
            classes=len(LABELS),
            weights=None,
            input_shape=(None, None, 3),
            aspp_channels=16,
        )
    )
    return with_several_classes(model)


@functools.cache
def small_network() -> keras.Model:
    """A network of a few layers, for what does not depend on the layers."""
    keras.utils.set_random_seed(0)
    config = types.SimpleNamespace(auxiliary_weight=0.0)
    source = types.SimpleNamespace(class_names=LABELS)
    return with_several_classes(randomized(build_segmenter(config, source)))


def with_several_classes(model: keras.Model) -> keras.Model:
    """Moves the biases, without which one class would be the best everywhere."""
    classifier = model.get_layer(CLASSIFIER)
    images = pixels(SIZE, 4).astype(np.float32)
    logits = keras.Model(model.inputs, classifier.output)([images])
    classifier.bias.assign(classifier.bias - keras.ops.mean(logits, axis=(0, 1, 2)))
    return model


def pixels(size: int, count: int = 2) -> np.ndarray:
    """Makes images of a few large patches, so that several classes occur."""
    random = np.random.default_rng(size)
    patches = random.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return patches.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def core_ml(precision: str, compress=None, model=None, **given):
    spec = package.PackageSpec(**{"sizes": (SIZE,), "labels": LABELS} | given)
    graph = read_model(model or network(), spec.sizes[0], spec.sizes[0])
    graph = deployment_graph(graph, COREML_REWRITES)
    graph, scale = package.split_input_scale(graph, 255)
    spec = dataclasses.replace(spec, pixel_scale=scale)
    made = segmenter.make_segmenter(graph, spec, precision)
    return segmenter.finalize_segmenter(compress(made) if compress else made, spec)


def save(model, folder: Path) -> Path:
    path = folder / "model.mlpackage"
    model.save(str(path))
    return path


def agreement(path: Path, size: int, model: keras.Model | None = None) -> float:
    """Returns the fraction of pixels whose class is the same as in Keras."""
    images = pixels(size)
    run = model or network()
    expected = run(images.astype(np.float32), training=False).numpy().argmax(-1)
    assert len(np.unique(expected)) > 2
    found = mil_evaluator.Evaluator(path).predict(images)
    assert found.shape == (2, size, size) and found.dtype == np.int32
    return float(np.mean(found == expected))


@pytest.mark.parametrize("layout", ["tokens", "ane"])
def test_float32_has_the_classes_of_keras(layout, tmp_path):
    path = save(core_ml("float32", layout=layout), tmp_path)
    assert agreement(path, SIZE) >= 0.9999
    card = describe_package(path, MEANINGS, 255)
    assert card["outputs"] == [
        {"name": "classes", "type": "multiArrayType", "shape": [SIZE, SIZE]}
    ]
    assert card["labels"] == list(LABELS)
    assert card["foreign_ops"] == [] and card["max_rank"] == 4 and card["ios"] == 16
    assert card["casts"] == card["casts_at_ends"] == 0


def test_float16_is_near_and_chooses_without_a_cast(tmp_path):
    path = save(core_ml("float16"), tmp_path)
    assert agreement(path, SIZE) >= 0.99
    card = describe_package(path, MEANINGS, 255)
    assert card["casts"] == 0
    found = mil_reader.read_program(path)
    (best,) = (o for o in found.operations if o.kind == "reduce_argmax")
    assert best.dtypes == (np.int32,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compress", "limit"),
    [(package.int8_weights, 0.9), (package.palette_weights, 0.8)],
)
def test_smaller_weights(compress, limit, tmp_path):
    path = save(core_ml("float16", compress), tmp_path)
    assert agreement(path, SIZE) >= limit
    assert describe_package(path, MEANINGS, 255)["labels"] == list(LABELS)


def test_the_logits_alone(tmp_path):
    path = save(core_ml("float32", labels=()), tmp_path)
    images = pixels(SIZE)
    logits = keras.Model(network().inputs, network().get_layer(CLASSIFIER).output)
    expected = logits([images.astype(np.float32)], training=False).numpy()
    found = mil_evaluator.Evaluator(path).predict(images)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    card = describe_package(path, {"logits": "of each cell"}, 255)
    (described,) = card["outputs"]
    assert described["name"] == "logits"
    assert described["shape"] == [1, len(LABELS), SIZE // 16, SIZE // 16]
    assert "labels" not in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "limit"), [("float32", 0.9999), ("float16", 0.99)]
)
def test_several_sizes_are_resized_at_run_time(precision, limit, tmp_path):
    sizes = (SIZE, 128)
    path = save(core_ml(precision, sizes=sizes), tmp_path)
    assert [agreement(path, size) >= limit for size in sizes] == [True, True]
    card = describe_package(path, MEANINGS, 255)
    assert card["ios"] == 17 and card["casts"] == 0
    assert card["input"]["sizes"] == [[size, size] for size in sizes]
    with pytest.raises(ValueError, match="an operation of iOS 17. Received: --ios=16"):
        core_ml(precision, sizes=sizes, ios=16)


@functools.cache
def mobilevitv2() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = DeepLabV3(
        "mobilevitv2_050",
        classes=len(LABELS),
        weights=None,
        input_shape=(None, None, 3),
        aspp_channels=16,
    )
    return with_several_classes(randomized(model))


@pytest.mark.parametrize(
    ("precision", "sizes", "limit"),
    [
        ("float32", (SIZE,), 0.9999),
        # Untrained, its classes are close to each other.
        pytest.param("float16", (SIZE,), 0.95, marks=pytest.mark.slow),
        pytest.param("float32", (SIZE, 128, 80), 0.9999, marks=pytest.mark.slow),
    ],
)
def test_mobilevitv2_keeps_the_corners_in_place(precision, sizes, limit, tmp_path):
    """As its published segmenters do; 80 pixels give a map of 5x5 at stride 16."""
    args, task, model = PackageOptions(sizes), segmentation.CLASS_MAP, mobilevitv2()
    path = save(
        options.core_ml_from_options(args, task, model, CARD)(precision), tmp_path
    )
    for size in sizes:
        assert agreement(path, size, model) >= limit
    card = describe_package(path, MEANINGS, 255)
    assert (card["casts"], card["max_rank"]) == (0, 4)
    read = mil_reader.read_program(path)
    *_, last = (o for o in read.operations if o.kind.startswith("resize"))
    (mode,) = last.inputs["sampling_mode"]
    assert str(read.constants[mode]) == "STRICT_ALIGN_CORNERS"


def test_xcode_finds_names_and_colors(tmp_path):
    made = core_ml("float32", model=small_network())
    metadata = mil_reader.read_program(save(made, tmp_path))
    metadata = metadata.description.metadata.userDefined
    assert metadata["com.apple.coreml.model.preview.type"] == "imageSegmenter"
    preview = json.loads(metadata["com.apple.coreml.model.preview.params"])
    assert preview["labels"] == list(LABELS)
    assert preview["colors"][:2] == [
        "#000000",
        "#{:02X}{:02X}{:02X}".format(*class_color(1)),
    ]


CARD = {
    **describe_origin("Image segmenter", "runs/best.keras", "voc"),
    "weights": "voc",
    "preprocessing": f"RGB; {describe_preparation([SIZE], None)}",
    "labels": list(LABELS),
}


def test_from_the_flags(tmp_path):
    args, task = PackageOptions(sizes=(SIZE,), ios=17), segmentation.CLASS_MAP
    core_ml = options.core_ml_from_options(args, task, small_network(), CARD)
    path = save(core_ml("float16", package.int8_weights), tmp_path)
    card = describe_package(path, MEANINGS, 255)
    assert card["labels"] == list(LABELS) and card["ios"] == 17
    assert agreement(path, SIZE, small_network()) >= 0.9
    metadata = mil_reader.read_program(path).description.metadata
    assert metadata.shortDescription == "Image segmenter, from best.keras"
    assert metadata.author == "Sachin Mehta and Mohammad Rastegari, Apple"
    assert "the whole image resized to 96x96" in metadata.userDefined["preprocessing"]
    few = CARD | {"labels": list(LABELS[:2])}
    with pytest.raises(ValueError, match="has 5 classes, but 2 labels"):
        options.core_ml_from_options(args, task, small_network(), few)


@pytest.mark.parametrize("file_format", ["coreml-fp32", "coreml", "coreml-int8"])
def test_a_package_is_proven_and_written(file_format, tmp_path):
    images = ImageSet("patches", LABELS, pixels(SIZE), {})
    task, network = segmentation.CLASS_MAP, small_network()
    reference = make_reference(network, images, ["another"], task)
    core_ml = options.core_ml_from_options(
        PackageOptions(sizes=(SIZE,)), task, network, CARD
    )
    prepared = conversion.prepare(network, SIZE, core_ml=core_ml, task=task)
    path, allowed = tmp_path / "model.mlpackage", ["agreement", "max_relative_error"]
    card = write_checked(prepared, file_format, [reference], path, {}, allowed)
    assert path.is_dir() and card["classes"] == len(LABELS)
    assert card["parity"]["agreement"] >= 0.9
    if file_format == "coreml-fp32":
        assert card["parity"]["agreement"] >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [16, 8])
def test_the_real_segmenter(output_stride, tmp_path):
    model = DeepLabV3(
        "mobilevit_s",
        weights=None,
        input_shape=(256, 256, 3),
        output_stride=output_stride,
    )
    model = randomized(model)
    graph = deployment_graph(read_model(model, 256, 256), COREML_REWRITES)
    graph, scale = package.split_input_scale(graph, 255)
    images = pixels(256, 1)
    logits = keras.Model(model.inputs, model.get_layer(CLASSIFIER).output)
    expected = logits([images.astype(np.float32)], training=False).numpy()
    for precision, limit in (("float32", 1e-4), ("float16", 5e-3)):
        spec = package.PackageSpec((256,), pixel_scale=scale)
        made = segmenter.make_segmenter(graph, spec, precision)
        path = save(segmenter.finalize_segmenter(made, spec), tmp_path)
        found = mil_evaluator.Evaluator(path).predict(images)
        assert np.abs(found - expected).max() <= limit * np.abs(expected).max()
