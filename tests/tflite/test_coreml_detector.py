"""Core ML packages of detectors: Keras's boxes and scores, in the form of Vision."""

import dataclasses
import functools
import types
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_mobilevit import SSDLite, anchor_boxes
from keras_mobilevit.class_names import COCO_NAMES
from keras_mobilevit.detection import decode_outputs
from tests.helpers.coreml import small_model
from tests.helpers.graphs import randomized
from tests.helpers.networks import build_detector
from tflite.formats.coreml import options, package
from tflite.formats.coreml.options import PackageOptions
from tflite.graph.graph import Node
from tflite.graph.reader import read_model
from tflite.graph.rewrites import COREML_REWRITES, deployment_graph
from tflite.metadata.origin import describe_origin
from tflite.tasks.detection import task as detection
from tflite.validation.card import describe_package

ct = pytest.importorskip("coremltools", reason="pip install '.[coreml]'")

from tflite.formats.coreml import detector, nms  # noqa: E402
from tflite.formats.coreml.mil_ops import run_node  # noqa: E402
from tflite.validation import mil_evaluator, mil_reader  # noqa: E402

SIZE = 64
LABELS = ("cell", "debris", "unused 1")
MEANINGS = {"boxes": "corners", "scores": "probabilities"}


@functools.cache
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    source = types.SimpleNamespace(class_names=LABELS)
    return with_spread(randomized(build_detector(None, source)))


def with_spread(model: keras.Model) -> keras.Model:
    """Scales the predictions to the spread of a trained model's."""
    images = pixels(model.input_shape[1] or SIZE).astype(np.float32)
    for layer in model.layers:
        if layer.name.endswith("_predictions"):
            part = keras.Model(model.input, layer.output)
            scale = 2.0 / part(images).numpy().std()
            layer.set_weights([values * scale for values in layer.get_weights()])
    return model


def pixels(size: int, count: int = 1) -> np.ndarray:
    random = np.random.default_rng(size)
    return random.integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def core_ml(precision, model=None, size=SIZE, anchors=None, compress=None, **given):
    spec = package.PackageSpec(**{"sizes": (size,), "labels": LABELS} | given)
    graph = deployment_graph(
        read_model(model or network(), size, size), COREML_REWRITES
    )
    graph, scale = package.split_input_scale(graph, 255)
    spec = dataclasses.replace(spec, pixel_scale=scale)
    anchors = anchor_boxes(size, size) if anchors is None else anchors
    made = detector.make_program(graph, anchors, spec, precision)
    return detector.finalize_detector(compress(made) if compress else made, spec)


@functools.cache
def small(precision: str, **given):
    return core_ml(precision, **given)


def save(model, folder: Path) -> Path:
    path = folder / "model.mlpackage"
    model.save(str(path))
    return path


def differences(
    path: Path, model: keras.Model, size: int, backbone: str = "mobilevit_xxs"
) -> tuple[float, float]:
    """Returns the largest difference of a corner, and of a score."""
    images = pixels(size, 2)
    outputs = model(images.astype(np.float32), training=False)
    anchors = anchor_boxes(size, size, backbone)
    expected = [x.numpy() for x in decode_outputs(outputs, anchors)]
    found = mil_evaluator.Evaluator(path).predict_outputs(images)
    assert list(found) == ["boxes", "scores"]
    pairs = zip(found.values(), expected)
    assert all(values.shape == wanted.shape for values, wanted in pairs)
    boxes, scores = (np.abs(a - b).max() for a, b in zip(found.values(), expected))
    return boxes, scores


# The network --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["tokens", "ane"])
def test_float32_is_keras_own(layout, tmp_path):
    path = save(small("float32", layout=layout), tmp_path)
    assert max(differences(path, network(), SIZE)) <= 1e-5
    card = describe_package(path, MEANINGS, 255)
    assert card["casts"] == card["casts_at_ends"] == 0


def test_float16_decodes_boxes_in_float32(tmp_path):
    path = save(small("float16"), tmp_path)
    boxes, scores = differences(path, network(), SIZE)
    assert boxes <= 1e-3 and scores <= 3e-3
    card = describe_package(path, MEANINGS, 255)
    assert (card["casts"], card["casts_at_ends"]) == (0, 3)
    kinds = {o.kind: o.dtypes for o in mil_reader.read_program(path).operations}
    assert kinds["exp"] == (np.float32,)
    assert kinds["conv"] == kinds["softmax"] == (np.float16,)


def test_raw_outputs_are_boxes_and_scores(tmp_path):
    path = save(small("float32", labels=()), tmp_path)
    assert max(differences(path, network(), SIZE)) <= 1e-5
    card = describe_package(path, MEANINGS, 255)
    anchors = len(anchor_boxes(SIZE, SIZE))
    assert card["outputs"] == [
        {"name": "boxes", "type": "multiArrayType", "shape": [1, anchors, 4]},
        {"name": "scores", "type": "multiArrayType", "shape": [1, anchors, 3]},
    ]
    assert "nms" not in card and "labels" not in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compress", "limit"),
    [(package.int8_weights, 0.02), (package.palette_weights, 0.05)],
)
def test_smaller_weights_leave_the_anchors_as_they_are(compress, limit, tmp_path):
    path = save(core_ml("float16", compress=compress), tmp_path)
    assert max(differences(path, network(), SIZE)) <= limit
    read = mil_reader.read_program(path)
    assert any(o.kind.startswith("constexpr") for o in read.operations)
    halves = anchor_boxes(SIZE, SIZE)[:, 2:] / 2
    assert any(np.array_equal(x, halves) for x in read.constants.values())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tokens", "ane"])
def test_ssdlite(layout, tmp_path):
    keras.utils.set_random_seed(0)
    model = SSDLite("mobilevit_xxs", classes=80, weights=None)
    model = with_spread(randomized(model))
    for precision, limit in (("float32", 1e-5), ("float16", 5e-3)):
        made = core_ml(precision, model, 320, labels=COCO_NAMES, layout=layout)
        path = save(made, tmp_path)
        assert max(differences(path, model, 320)) <= limit
    card = describe_package(path, MEANINGS, 255)
    assert card["labels"] == list(COCO_NAMES)
    assert card["casts"] == 0 and card["max_rank"] == 4 and card["ios"] == 16


def mobilevitv2() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = SSDLite("mobilevitv2_050", classes=3, weights=None, input_shape=(96, 96, 3))
    return with_spread(randomized(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "box_limit", "score_limit"),
    [
        ("float32", 1e-5, 1e-5),
        ("float16", 2e-3, 5e-3),
    ],
)
def test_mobilevitv2_has_the_anchors_of_its_enlarged_maps(
    precision, box_limit, score_limit, tmp_path
):
    """At 96 pixels the map at stride 32 has 4x4 cells; MobileViT's has 3x3."""
    model, task = mobilevitv2(), detection.RAW
    args, card = PackageOptions(sizes=(96,)), CARD | {"labels": LABELS}
    make = options.core_ml_from_options(args, task, model, card)
    path = save(make(precision), tmp_path)
    boxes, scores = differences(path, model, 96, "mobilevitv2_050")
    assert boxes <= box_limit and scores <= score_limit
    card = describe_package(path, MEANINGS, 255)
    assert (card["casts"], card["max_rank"], card["ios"]) == (0, 4, 16)
    assert card["ops"]["resize_bilinear"] == 1
    anchors = [len(anchor_boxes(96, 96, n)) for n in ("mobilevitv2_050", "mobilevit_s")]
    assert mil_evaluator.Evaluator(path).predict_outputs(pixels(96))["boxes"].shape == (
        (1, anchors[0], 4)
    )
    assert anchors[0] > anchors[1]


# The pipeline -------------------------------------------------------------------------


def test_the_pipeline_is_an_object_detector(tmp_path):
    metadata = {"author": "A", "source": "S"}
    path = save(core_ml("float16", metadata=metadata), tmp_path)
    specification = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    image, *thresholds = specification.description.input
    assert image.name == "image" and image.type.imageType.width == SIZE
    assert [x.name for x in thresholds] == ["iouThreshold", "confidenceThreshold"]
    assert all(x.type.isOptional for x in thresholds)
    assert specification.description.metadata.author == "A"
    assert specification.description.metadata.userDefined["source"] == "S"
    first, second = specification.pipeline.models
    # Apple's validator takes optional inputs of the pipeline alone.
    assert not any(x.type.isOptional for x in second.description.input)
    nms = second.nonMaximumSuppression
    assert nms.pickTop.perClass
    assert (nms.iouThreshold, nms.confidenceThreshold) == (0.5, 0.01)
    assert list(nms.stringClassLabels.vector[:3]) == list(LABELS)
    taken = {x.name: x.type for x in second.description.input}
    for output in first.description.output:
        assert taken[output.name] == output.type
        assert output.type.multiArrayType.dataType == output.type.multiArrayType.FLOAT32
    columns = [list(x.type.multiArrayType.shape)[1] for x in first.description.output]
    assert columns == [80, 4] and len(nms.stringClassLabels.vector) == 80
    for output in specification.description.output:
        array = output.type.multiArrayType
        assert array.dataType == array.FLOAT32 and not array.shape
        assert len(array.shapeRange.sizeRanges) == 2


def test_the_card_of_a_pipeline(tmp_path):
    card = describe_package(save(small("float16"), tmp_path), MEANINGS, 255)
    assert card["input"]["name"] == "image" and card["input"]["sizes"] == [[64, 64]]
    assert card["outputs"] == [
        {"name": "confidence", "type": "multiArrayType", "shape": [None, 80]},
        {"name": "coordinates", "type": "multiArrayType", "shape": [None, 4]},
    ]
    assert card["labels"] == list(LABELS)
    assert card["nms"] == {
        "where": "inside",
        "score_threshold": 0.01,
        "iou_threshold": 0.5,
        "per_class": True,
    }
    assert card["ios"] == 16 and card["max_rank"] == 4 and card["foreign_ops"] == []


def test_columns_without_a_class_are_nothing(tmp_path):
    """Empty columns are not among the card's classes, and their scores are 0."""
    path = save(small("float32"), tmp_path)
    values = mil_evaluator.Evaluator(path).run(pixels(SIZE)[0])
    assert values["raw_confidence"].shape == (len(anchor_boxes(SIZE, SIZE)), 80)
    assert not values["raw_confidence"][:, 3:].any()
    filled = nms.pad_labels(LABELS)
    assert filled[:4] == [*LABELS, "unused 2"] and len(set(filled)) == 80
    assert nms.pad_labels(COCO_NAMES) == list(COCO_NAMES)


def test_a_pipeline_of_coremltools_own_is_read_too(tmp_path):
    """coremltools names the weight file of a pipeline 0-weight.bin."""
    made = small("float32")
    _, last = made.get_spec().pipeline.models
    graph = deployment_graph(read_model(network(), SIZE, SIZE), COREML_REWRITES)
    graph, scale = package.split_input_scale(graph, 255)
    spec = package.PackageSpec((SIZE,), LABELS, scale)
    anchors = anchor_boxes(SIZE, SIZE)
    joined = ct.utils.make_pipeline(
        detector.make_program(graph, anchors, spec, "float32"),
        ct.models.MLModel(last, skip_model_load=True),
    )
    path = save(joined, tmp_path)
    assert [file.name for file in path.rglob("*.bin")] == ["0-weight.bin"]
    found = mil_evaluator.Evaluator(path).predict_outputs(pixels(SIZE))
    assert found["scores"].shape[-1] == 80  # without our metadata
    expected = mil_evaluator.Evaluator(save(made, tmp_path)).predict_outputs(
        pixels(SIZE)
    )
    np.testing.assert_array_equal(found["boxes"], expected["boxes"])


def test_a_package_that_is_none_of_ours_is_told(tmp_path):
    model = ct.proto.Model_pb2.Model(specificationVersion=7)
    model.pipeline.models.add(specificationVersion=7).identity.SetInParent()
    path = save(small("float32", labels=()), tmp_path)
    (file,) = path.rglob("model.mlmodel")
    file.write_bytes(model.SerializeToString())
    with pytest.raises(
        ValueError, match="holds neither an ML Program.* Found: identity"
    ):
        mil_reader.read_program(path)


def test_damaged_weights_are_told(tmp_path):
    path = save(small("float32"), tmp_path)
    (weights,) = path.rglob("weight.bin")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="weight.bin is missing, truncated or damaged"):
        mil_evaluator.Evaluator(path)


def test_a_classifier_has_no_boxes(tmp_path):
    weight = np.ones((4, 3, 1, 1), np.float32)
    path = save(small_model(weight, 16), tmp_path)
    with pytest.raises(ValueError, match="is not a detector.* Found: y"):
        mil_evaluator.Evaluator(path).predict_outputs(pixels(8))


# What does not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sizes": (64, 96)}, "fit one size of image. Received: --sizes=64,96"),
        ({"labels": LABELS[:2]}, "has 3 classes, but 2 labels"),
        (
            {"anchors": anchor_boxes(96, 96)},
            r"At 64x64 the network has .* boxes .*: anchor_boxes\(64, 64\)",
        ),
    ],
)
def test_what_does_not_fit_the_network_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        core_ml("float32", **given)


def test_a_reshaping_to_a_map_has_no_form():
    node = Node("r", "reshape", ("x",), options={"shape": (2, 2, 3)})
    with pytest.raises(ValueError, match="'r' reshapes to a map of .*not supported"):
        run_node("tokens", node, [np.zeros((1, 4, 3), np.float32)])


# From the flags -----------------------------------------------------------------------

CARD = {
    **describe_origin("Object detector", "runs/best.keras", "none"),
    "weights": "none",
    "preprocessing": "RGB; the whole image",
}


def test_from_the_flags(tmp_path):
    args = PackageOptions(sizes=(SIZE,), ios=17)
    card = CARD | {"labels": LABELS}
    core_ml = options.core_ml_from_options(args, detection.RAW, network(), card)
    path = save(core_ml("float16", package.int8_weights), tmp_path)
    card = describe_package(path, MEANINGS, 255)
    assert card["labels"] == list(LABELS) and card["ios"] == 17
    assert "constexpr_affine_dequantize" in card["ops"]
    metadata = mil_reader.read_program(path).description.metadata
    assert metadata.shortDescription == CARD["description"]
    assert metadata.userDefined["preprocessing"].startswith(CARD["preprocessing"])


def test_raw_outputs_from_the_flags(tmp_path):
    args = PackageOptions(sizes=(SIZE,), raw_outputs=True)
    core_ml = options.core_ml_from_options(args, detection.RAW, network(), CARD)
    path = save(core_ml("float32"), tmp_path)
    assert max(differences(path, network(), SIZE)) <= 1e-5


def test_a_detector_takes_one_size():
    args = PackageOptions(sizes=(64, 96))
    with pytest.raises(ValueError, match="Received: --sizes=64,96. Give one"):
        options.core_ml_from_options(args, detection.RAW, network(), CARD)


def test_a_detector_without_names_gets_numbers():
    assert options.class_labels(PackageOptions(), [], 3) == ("0", "1", "2")
