"""Core ML packages of MobileViTv2 classifiers, and of the operations that it adds."""

import math
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.helpers.coreml import classifier, core_ml, flags, pixels, save
from tests.helpers.graphs import randomized
from tflite.formats.coreml import options, package
from tflite.formats.coreml.classifier import make_classifier
from tflite.graph.reader import read_model
from tflite.graph.rewrites import COREML_REWRITES, deployment_graph
from tflite.metadata.origin import describe_origin
from tflite.tasks.classification.task import SINGLE_LABEL
from tflite.validation.card import describe_package

ct = pytest.importorskip("coremltools", reason="pip install '.[coreml]'")

from tflite.formats.coreml import mil_ops  # noqa: E402
from tflite.validation import mil_evaluator, mil_reader, numpy_ops  # noqa: E402

NAME = "mobilevitv2_050"
BLOCKS, TRANSFORMERS = 3, 9
NORMS = 2 * TRANSFORMERS + BLOCKS
# Query, key, value and output of the attention, and two feed-forward convolutions.
CONVOLUTIONS = 6 * TRANSFORMERS
MEANINGS = {"logits": "one for each class"}
NATIVE = {
    *("add", "conv", "layer_norm", "linear", "mul", "pixel_shuffle", "pixel_unshuffle"),
    *("reduce_mean", "reduce_sum", "relu", "reshape", "silu", "softmax"),
}


def difference(path: Path, size: int, model: keras.Model) -> float:
    """Returns the largest difference of a logit, relative to the largest logit."""
    images = pixels(size)
    expected = model(images.astype(np.float32), training=False).numpy()
    found = mil_evaluator.Evaluator(path).predict(images, logits=True)
    return np.abs(found - expected).max() / np.abs(expected).max()


# The network --------------------------------------------------------------------------


def test_float32_is_keras_own(tmp_path):
    """96 gives a map of 3x3, which is enlarged to 4x4 and stays so."""
    path = save(core_ml("float32", NAME, sizes=(96,)), tmp_path)
    assert difference(path, 96, classifier(NAME)) <= 1e-6
    card = describe_package(path, MEANINGS, 255)
    assert set(card["ops"]) == NATIVE | {"resize_bilinear"}
    assert card["ops"]["resize_bilinear"] == 1
    assert card["ops"]["layer_norm"] == NORMS
    assert card["casts"] == card["casts_at_ends"] == 0


def test_float16_is_near_and_all_native(tmp_path):
    path = save(core_ml("float16", NAME), tmp_path)
    assert difference(path, 64, classifier(NAME)) <= 5e-3
    card = describe_package(path, MEANINGS, 255)
    assert set(card["ops"]) == NATIVE | {"cast"}
    assert (card["casts"], card["casts_at_ends"]) == (0, 2)
    assert (card["max_rank"], card["ios"], card["foreign_ops"]) == (4, 16, [])
    ranks = {rank for o in mil_reader.read_program(path).operations for rank in o.ranks}
    assert ranks == {2, 4}  # images and tokens are maps, and the top has rows
    assert card["ops"]["conv"] == CONVOLUTIONS + 2 * BLOCKS + 7 * 3 + 1  # and the stem


def test_every_layout_is_the_same_program():
    """Tokens are maps already, and their projections are 1x1 convolutions."""
    graph = deployment_graph(read_model(classifier(NAME), 64, 64), COREML_REWRITES)
    programs = [
        package.trace(graph, (1, 3, 64, 64), layout, ct.target.iOS16)[0]
        for layout in mil_ops.LAYOUTS
    ]
    tokens, ane = (
        [
            (o.op_type, [x.shape for x in o.outputs])
            for o in program.functions["main"].operations
        ]
        for program in programs
    )
    assert tokens == ane and len(tokens) > 200


def test_several_sizes(tmp_path):
    """One program takes all sizes; only at 96 is the last map enlarged."""
    path = save(core_ml("float32", NAME, sizes=(64, 96)), tmp_path)
    for size in (64, 96):
        assert difference(path, size, classifier(NAME)) <= 1e-6
    card = describe_package(path, MEANINGS, 255)
    assert card["ios"] == 17 and card["ops"]["resize"] == 1
    with pytest.raises(ValueError, match="64, 96 .* iOS 17. Received: --ios=16"):
        core_ml("float32", NAME, sizes=(64, 96), ios=16)


@pytest.mark.slow
def test_several_sizes_without_odd_maps_run_on_ios_16(tmp_path):
    path = save(core_ml("float16", NAME, sizes=(64, 128)), tmp_path)
    card = describe_package(path, MEANINGS, 255)
    assert card["ios"] == 16 and "resize" not in card["ops"] and card["casts"] == 0
    for size in (64, 128):
        assert difference(path, size, classifier(NAME)) <= 5e-3


@pytest.mark.slow
def test_one_patch(tmp_path):
    """32 pixels give a map of one pixel, which becomes one patch of equal pixels."""
    path = save(core_ml("float32", NAME, sizes=(32,)), tmp_path)
    assert difference(path, 32, classifier(NAME)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compress", "limit", "share"),
    [(package.int8_weights, 0.1, 0.6), (package.palette_weights, 0.3, 0.5)],
)
def test_smaller_weights(compress, limit, share, tmp_path):
    whole = save(core_ml("float16", NAME, 1000), tmp_path)
    size = describe_package(whole, MEANINGS, 255)["bytes"]
    path = save(compress(core_ml("float16", NAME, 1000)), tmp_path)
    assert difference(path, 64, classifier(NAME, 1000)) <= limit
    card = describe_package(path, MEANINGS, 255)
    assert card["bytes"] <= share * size
    assert any(kind.startswith("constexpr") for kind in card["ops"])


def test_the_source_is_the_familys_paper():
    origin = describe_origin("Image classifier", NAME, "imagenet")
    card = {**origin, "weights": "imagenet", "preprocessing": "RGB"}
    for name, paper in ((NAME, "2206.02680"), ("mobilevit_xxs", "2110.02178")):
        found = options._metadata(options.PackageOptions(), classifier(name), card)
        assert paper in found["source"]
    own = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 1)])
    found = options._metadata(options.PackageOptions(), own, card)
    assert found["source"] == "weights: imagenet"


# Its operations -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", mil_ops.LAYOUTS)
def test_a_scale_that_is_not_folded(layout, tmp_path):
    """The gamma and beta of a norm stay before an activation; Dense reads a map."""
    layers = keras.layers
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same")(inputs)
    x = layers.GroupNormalization(1, epsilon=1e-5)(x)
    x = layers.Activation("silu")(x)
    gate = layers.Dense(8, activation="sigmoid")(x)
    x = layers.GlobalAveragePooling2D()(layers.Multiply()([x, gate]))
    model = randomized(keras.Model(inputs, layers.Dense(4)(x)))
    graph = deployment_graph(read_model(model, 16, 16), COREML_REWRITES)
    spec = package.PackageSpec((16,), layout=layout)
    path = save(make_classifier(graph, spec, "float32", "logits"), tmp_path)
    assert difference(path, 16, model) <= 1e-5
    kinds = [o.kind for o in mil_reader.read_program(path).operations]
    assert kinds.count("layer_norm") == kinds.count("batch_norm") == 1
    assert kinds.count("conv") == 2


def test_a_norm_over_several_axes():
    random = np.random.default_rng(0)
    x = random.normal(3, 2, (1, 3, 4, 5)).astype(np.float32)
    gamma, beta = random.normal(size=(2, 4, 5)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(
        keras.ops.layer_normalization(x, gamma, beta, axis=(2, 3), epsilon=1e-5)
    )
    run = numpy_ops.OPERATIONS["layer_norm"]
    for axes in ([2, 3], [-2, -1]):
        found = run(x, axes, 1e-5, gamma, beta)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_norm_of_a_million_numbers_keeps_its_digits():
    """So many numbers has the largest map of width 2.0 at 512 pixels."""
    x = np.random.default_rng(0).normal(3, 2, (1, 256, 4, 1024)).astype(np.float32)
    found = numpy_ops.OPERATIONS["layer_norm"](x, [1, 2, 3], 1e-5)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean()) / math.sqrt(exact.var() + 1e-5)
    assert np.abs(found - exact).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilevitv2_050", "mobilevitv2_100", "mobilevitv2_200"]
)
@pytest.mark.parametrize("size", [256, 224])
def test_published_sizes(name, size, tmp_path):
    for precision, limit in (("float32", 1e-5), ("float16", 5e-3)):
        path = save(core_ml(precision, name, 1000, sizes=(size,)), tmp_path)
        assert difference(path, size, classifier(name, 1000)) <= limit


@pytest.mark.slow
def test_from_the_flags(tmp_path):
    """An application's classes come out of a package of 8-bit weights."""
    card = {
        **describe_origin("Image classifier", NAME, "none"),
        **{"weights": "none", "preprocessing": "RGB", "labels": list("abcdefghij")},
    }
    given = options.package_options(flags(sizes=["64"]), has_packages=True)
    run = options.core_ml_from_options(given, SINGLE_LABEL, classifier(NAME), card)
    path = save(run("float16", package.int8_weights), tmp_path)
    assert difference(path, 64, classifier(NAME)) <= 0.1
    assert describe_package(path, MEANINGS, 255)["labels"] == list("abcdefghij")
