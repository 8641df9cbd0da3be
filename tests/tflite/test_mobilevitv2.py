"""Files of MobileViTv2: each head, in every format, with Keras's outputs.

At 112 pixels the last map is enlarged from 7 to 8 rows, at 96 pixels from 3 to 4.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mobilevit import DeepLabV3, MobileViTV2_050, SSDLite
from keras_mobilevit.deeplab import CLASSIFIER, aligns_corners
from keras_mobilevit.image_models import image_model_from_file
from keras_mobilevit.litert import LiteRTModel, read_card
from tests.helpers.conversions import Conversions
from tests.helpers.networks import photos
from tflite.formats import conversion
from tflite.formats.table import formats_of
from tflite.images import ImageSet
from tflite.suites.conversion import settle_batch_norms
from tflite.tasks.registry import task_of
from tflite.validation import checks, gpu
from train.tasks.segmentation.postprocess import class_maps
from train.tasks.segmentation.task import SEGMENTATION

V2, CLASSES = "mobilevitv2_050", 5
ODD, EVEN = 112, 64


@functools.cache
def model_of(kind: str, size: int) -> keras.Model:
    """Builds a network with the statistics of its images, like a trained one."""
    keras.utils.set_random_seed(0)
    shape = (size, size, 3)
    if kind == "classifier":
        options = {"classes": CLASSES, "classifier_activation": None}
        model = MobileViTV2_050(weights=None, input_shape=shape, **options)
    elif kind == "detector":
        model = SSDLite(V2, classes=CLASSES, weights=None, input_shape=shape)
    else:
        options = {"classes": CLASSES, "input_shape": shape, "aspp_channels": 32}
        model = DeepLabV3(V2, weights=None, **options)
    # New residuals are hundreds of times smaller than what they are added to, and
    # XNNPACK adds in 8 bits only numbers of a more similar size. Training does that.
    for layer in model.layers:
        if "_transformer" in layer.name and layer.name.endswith("_conv"):
            layer.kernel.assign(4 * layer.kernel)
    settle_batch_norms(model, photos(6, size))
    if kind == "segmenter":  # as it is, one class would be the best everywhere
        layer = model.get_layer(CLASSIFIER)
        logits = keras.Model(model.inputs, layer.output)([photos(6, size)])
        layer.bias.assign(layer.bias - keras.ops.mean(logits, axis=(0, 1, 2)))
        # Keras itself is only right to 3e-5 of these logits in float32: the spatial
        # pyramid of a random network amplifies rounding. Limits are for smaller ones.
        layer.kernel.assign(layer.kernel / 4)
        layer.bias.assign(layer.bias / 4)
    return model


@pytest.fixture(scope="module")
def make_files(tmp_path_factory):
    """Returns the function that makes the files, of equal arguments only once."""

    @functools.cache
    def make(kind: str, size: int, output: str) -> Conversions:
        model = model_of(kind, size)
        images = ImageSet("spots", (), np.round(photos(6, size)).astype(np.uint8), {})
        # No network here is trained: its boxes and classes are almost ties.
        return Conversions(
            model,
            task_of(model, output),
            images,
            tmp_path_factory.mktemp(f"{kind}{size}{output}"),
            tuple(checks.CHECKS),
        )

    return make


SLOW = pytest.mark.slow
HEADS = [
    ("classifier", ODD, "logits"),
    pytest.param("classifier", EVEN, "logits", marks=SLOW),
    pytest.param("detector", ODD, "none", marks=SLOW),
    pytest.param("detector", ODD, "builtin", marks=SLOW),
    pytest.param("detector", 96, "none", marks=SLOW),
    pytest.param("detector", 240, "builtin", marks=SLOW),
    pytest.param("segmenter", ODD, "logits", marks=SLOW),
    pytest.param("segmenter", ODD, "classmap", marks=SLOW),
    pytest.param("segmenter", ODD, "raw", marks=SLOW),
    pytest.param("segmenter", 96, "logits", marks=SLOW),
    pytest.param("segmenter", 240, "logits", marks=SLOW),
]


@pytest.mark.parametrize(("kind", "size", "output"), HEADS)
def test_the_outputs_are_those_of_keras(kind, size, output, make_files):
    card = make_files(kind, size, output).card()
    assert card["parity"]["max_abs"] <= 1e-4
    assert card["max_rank"] <= 4
    assert card["foreign_ops"] == []
    if output not in ("builtin", "classmap"):
        assert card["xnnpack"] == {"partitions": 1, "ops_outside": {}}


# With random weights, 8 bits lose more than in a trained network: two seeds had 17 dB
# (dynamic) and 11 to 14 dB (int8).
LEAST_PSNR = {"fp16": 50, "dynamic": 12, "int8-mixed": 9, "int8": 9}
FLOAT_IN_INT8 = {"ADD", "QUANTIZE", "RSQRT", "SOFTMAX"}  # which XNNPACK leaves out


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("classifier", "logits"),
        pytest.param("detector", "none", marks=SLOW),
        pytest.param("segmenter", "logits", marks=SLOW),
    ],
)
@pytest.mark.parametrize(
    "file_format",
    ["fp16", "dynamic", *(pytest.param(n, marks=SLOW) for n in ("int8-mixed", "int8"))],
)
def test_every_format(kind, output, file_format, make_files):
    card = make_files(kind, ODD, output).card(file_format)
    assert card["max_rank"] <= 4
    assert card["foreign_ops"] == []
    if file_format == "int8":
        assert set(card["xnnpack"]["ops_outside"]) <= FLOAT_IN_INT8
    else:
        assert card["xnnpack"] == {"partitions": 1, "ops_outside": {}}
    if kind == "classifier":
        assert card["parity"]["psnr_db"] > LEAST_PSNR[file_format]
    assert file_format in formats_of(task_of(model_of(kind, ODD), output))


def test_logits_are_resized_as_the_model_does_it(make_files):
    """With half-pixel centers, a quarter of the pixels would have another class."""
    model = model_of("segmenter", ODD)
    assert aligns_corners(model)
    assert not aligns_corners(DeepLabV3("mobilevit_xxs", classes=CLASSES, weights=None))
    images = np.round(photos(6, ODD))
    expected = model.predict(images, verbose=0).argmax(-1)
    assert len(np.unique(expected)) > 3
    raw = conversion.outputs_as_list(model)(images)[0]
    task = task_of(model, "logits")
    (half,) = task.postprocess(model, ODD)([raw]).values()
    assert half.shape[1:3] == (ODD // 2, ODD // 2)
    assert np.mean(class_maps(half, ODD) == expected) > 0.97
    other = class_maps(tf.image.resize(raw, half.shape[1:3]), ODD)
    assert np.mean(other == expected) < 0.9
    (classes,) = task_of(model, "classmap").reference(model, ODD)([raw]).values()
    assert np.mean(classes == expected) > 0.9999


@pytest.mark.slow
def test_whoever_runs_logits_at_the_output_stride_is_told(make_files):
    """The card, and its part in the file, say how to resize them."""
    made = make_files("segmenter", ODD, "raw")
    assert made.card()["align_corners"]
    made.path().with_suffix(".json").unlink()
    assert read_card(made.path())["align_corners"]
    images = np.round(photos(6, ODD))
    model = model_of("segmenter", ODD)
    expected = model.predict(images, verbose=0).argmax(-1)
    found = image_model_from_file(str(made.path())).run(images[0])["logits"]
    assert np.mean(found.argmax(-1) == expected[0]) > 0.9999
    outputs = LiteRTModel(made.path()).predict(images)
    card = read_card(made.path())
    of_kind = SEGMENTATION.model_kind
    found = of_kind.file_predictions(outputs, ODD, card)["class_map"]
    assert np.mean(found == expected) > 0.9999


@pytest.mark.slow
@pytest.mark.skipif(not gpu.find_driver(), reason="apt install chromium libvulkan1")
@pytest.mark.parametrize(
    ("kind", "output"),
    [
        pytest.param("classifier", "logits", marks=SLOW),
        pytest.param("detector", "none", marks=SLOW),
        ("segmenter", "logits"),
        pytest.param("segmenter", "classmap", marks=SLOW),
    ],
)
def test_the_gpu_takes_all_of_it(kind, output, make_files):
    made = make_files(kind, ODD, output)
    made.card()
    verdict = gpu.check_gpu(made.path(), np.round(photos(1, ODD)))
    assert verdict.fully_accelerated, verdict.error
    assert verdict.max_abs <= 1e-3
