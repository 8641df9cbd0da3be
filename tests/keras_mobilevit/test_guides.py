"""What people do with networks in Keras, written as in Keras's guides.

The documents show this code. It runs here on a few small pictures, with random weights
in place of the published ones.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.model_selection import KFold

import keras_mobilevit
from keras_mobilevit import backbone as backbone_module
from keras_mobilevit import classifier as classifier_module
from keras_mobilevit.litert import LiteRTModel
from tests.helpers.commands import run_here

pytestmark = [
    pytest.mark.usefixtures("shallow"),
    # Of TensorFlow, about the pipeline of `fit`, which is a graph all the same.
    pytest.mark.filterwarnings("ignore:Even though the `tf.config"),
]

ROOT = Path(__file__).parents[2]
WHOLE = ["coming-from"]  # pages on which all code is here; of others, what trains
PAGES = [*WHOLE, "detection", "segmentation"]

random = np.random.default_rng(0)
photos = random.uniform(0, 255, (4, 64, 64, 3)).astype("float32")
labels = np.array([0, 1, 2, 1])
ages = random.uniform(0, 1, (4, 1))
facts = random.uniform(0, 1, (4, 5))
regions = random.integers(0, 3, (4, 64, 64))
masks = np.where(regions[:, :, :1] == 2, 255, regions)
boxes = [[[8, 8, 40, 40]], [[0, 0, 16, 32], [20, 4, 60, 60]], [], [[1, 2, 30, 40]]]
classes = [[0], [1, 2], [], [2]]


@pytest.fixture(autouse=True)
def quick_and_offline(monkeypatch, tmp_path) -> Iterator[None]:
    """Trains without graphs, which take long to make, and downloads nothing."""
    monkeypatch.chdir(tmp_path)
    for module in (backbone_module, classifier_module):
        monkeypatch.setattr(module, "weights_file", lambda *_: None)
    monkeypatch.setattr(backbone_module, "load_backbone", lambda *_: None)
    monkeypatch.setattr(classifier_module, "load_weights", lambda *_: None)
    keras.utils.set_random_seed(0)
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
    keras.config.set_dtype_policy("float32")


def build_model():
    backbone = keras_mobilevit.MobileViT_XXS(
        include_top=False, pooling="avg", input_shape=(64, 64, 3)
    )
    outputs = keras.layers.Dense(3, activation="softmax")(backbone.output)
    model = keras.Model(backbone.input, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_feature_extraction():
    backbone = keras_mobilevit.MobileViT_XXS(include_top=False, pooling="avg")
    features = backbone.predict(photos)
    assert features.shape == (4, 320)


def test_fine_tuning_in_two_phases():
    backbone = keras_mobilevit.MobileViT_XXS(include_top=False, pooling="avg")
    model = keras.Sequential([backbone, keras.layers.Dense(3, activation="softmax")])
    before = backbone.get_weights()

    backbone.trainable = False
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(photos, labels, epochs=1)
    assert all(map(np.array_equal, before, backbone.get_weights()))

    backbone.trainable = True
    model.compile(keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy")
    model.fit(photos, labels, epochs=1)
    assert not any(map(np.array_equal, before, backbone.get_weights()))


def test_a_head_of_ones_own():
    backbone = keras_mobilevit.MobileViT_XXS(include_top=False)
    backbone.trainable = False
    x = keras.layers.GlobalMaxPooling2D()(backbone.output)
    x = keras.layers.Dropout(0.2)(x)
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(x)
    age = keras.layers.Dense(1, name="age")(x)
    model = keras.Model(backbone.input, {"kind": kind, "age": age})
    loss = {"kind": "sparse_categorical_crossentropy", "age": "mean_squared_error"}
    model.compile("adam", loss)
    model.fit(photos, {"kind": labels, "age": ages})
    assert len(model.trainable_weights) == 4
    assert model.predict(photos)["age"].shape == (4, 1)


def test_a_decoder_on_the_pyramid():
    backbone = keras_mobilevit.MobileViTBackbone("mobilevit_xxs")
    x = backbone.output["P5"]
    for level in ("P4", "P3", "P2", "P1"):
        x = keras.layers.UpSampling2D()(x)
        x = keras.layers.Concatenate()([x, backbone.output[level]])
        x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    logits = keras.layers.Conv2D(3, 1)(keras.layers.UpSampling2D()(x))
    unet = keras.Model(backbone.input, logits)
    unet.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    unet.fit(photos, regions)
    assert unet.predict(photos).shape == (4, 64, 64, 3)


@pytest.mark.slow
def test_several_inputs():
    backbone = keras_mobilevit.MobileViT_XXS(include_top=False, pooling="avg")
    photo = keras.Input((64, 64, 3), name="photo")
    numbers = keras.Input((5,), name="facts")
    x = keras.layers.Concatenate()([backbone(photo), numbers])
    outputs = keras.layers.Dense(3, activation="softmax")(x)
    model = keras.Model({"photo": photo, "facts": numbers}, outputs)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit({"photo": photos, "facts": facts}, labels)
    assert model.predict({"photo": photos, "facts": facts}).shape == (4, 3)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    backbone = keras_mobilevit.MobileViT_XXS(include_top=False, pooling="avg")
    head = keras.layers.Dense(3, activation="softmax", dtype="float32")
    model = keras.Model(backbone.input, head(backbone.output))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(photos, labels)
    assert model.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert model.predict(photos).dtype == "float32"


LOAD = """
import keras
import keras_mobilevit  # registers the layers with Keras

model = keras.saving.load_model("model.keras")
"""
USE = """
import numpy as np
np.save("found.npy", model.predict(np.load("photos.npy")))
"""


def python(code: str) -> None:
    """Runs code in another process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.slow
def test_saving_and_loading_in_another_process():
    model = build_model()
    model.save("model.keras")
    np.save("photos.npy", photos)
    python(LOAD + USE)
    np.testing.assert_allclose(np.load("found.npy"), model.predict(photos), atol=1e-5)


@pytest.mark.slow
def test_cross_validation():
    scores = []
    for train, test in KFold(2).split(photos):
        keras.utils.clear_session()
        model = build_model()
        model.fit(photos[train], labels[train])
        results = model.evaluate(photos[test], labels[test], return_dict=True)
        scores.append(results["accuracy"])
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)


@pytest.mark.slow
def test_export():
    model = build_model()
    model.export("exported")
    loaded = tf.saved_model.load("exported")  # owns the variables
    found = loaded.serve(photos)
    np.testing.assert_allclose(found, model.predict(photos), atol=1e-5)


CONVERT = """
python tflite/convert.py --model=model.keras --output_dir=out
"""


@pytest.mark.slow
def test_conversion():
    model = build_model()
    model.save("model.keras")
    result = run_here(*CONVERT.split()[1:], folder=Path.cwd())
    assert result.returncode == 0, result.stderr
    (path,) = Path("out").glob("*.tflite")
    found = LiteRTModel(path).predict(photos)["probabilities"]
    np.testing.assert_allclose(found, model.predict(photos), atol=1e-4)


@pytest.mark.slow
def test_a_detector_fits_in_two_phases():
    targets = keras_mobilevit.detection_targets(
        boxes, classes, bounding_box_format="xyxy", image_sizes=(64, 64)
    )
    model = keras_mobilevit.SSDLite("mobilevit_xxs", classes=3, input_shape=(64, 64, 3))
    keras_mobilevit.freeze_backbone(model)  # phase one: the head alone
    model.compile("adam")
    model.fit(photos, targets)

    keras_mobilevit.unfreeze_backbone(model)  # phase two: everything
    metric = keras_mobilevit.BoxAveragePrecision(classes=3)
    model.compile(keras.optimizers.Adam(1e-4), metrics=[metric])
    history = model.fit(photos, targets)
    assert set(history.history) == {"loss", "AP50"}


def test_a_detector_finds_objects():
    model = keras_mobilevit.SSDLite("mobilevit_xxs", classes=3, input_shape=(64, 64, 3))
    outputs = model.predict(photos)
    found = keras_mobilevit.detect(outputs, (64, 64), score_threshold=0.3)
    assert found["boxes"].shape == (4, 200, 4) and found["number"].shape == (4,)


def test_a_segmenter_fits():
    model = keras_mobilevit.DeepLabV3(
        "mobilevit_xxs", classes=3, input_shape=(64, 64, 3)
    )
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255),
        metrics=[keras.metrics.MeanIoU(3, sparse_y_pred=False, ignore_class=255)],
    )
    history = model.fit(photos, masks)
    assert np.isfinite(history.history["loss"]) and "mean_io_u" in history.history


@pytest.mark.slow
def test_a_segmenter_fits_with_an_auxiliary_head():
    model = keras_mobilevit.DeepLabV3(
        "mobilevit_xxs", classes=3, input_shape=(64, 64, 3), auxiliary=True
    )
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255
    )
    losses = {"logits": loss, "auxiliary": loss}
    model.compile("adam", losses, loss_weights={"logits": 1, "auxiliary": 0.4})
    model.fit(photos, {"logits": masks, "auxiliary": masks})
    model = keras_mobilevit.without_auxiliary(model)
    assert model.predict(photos).shape == (4, 64, 64, 3)


def statements(body: list[ast.stmt]) -> list[str]:
    return [ast.unparse(statement) for statement in body]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_is_that_of_a_test(page: str):
    """Apart from the statements that a page leaves out, such as assertions."""
    module = ast.parse(Path(__file__).read_text("utf-8")).body
    functions = [x.body for x in module if isinstance(x, ast.FunctionDef)]
    own = [statements(x) for x in (module, ast.parse(LOAD).body, *functions)]
    text = (ROOT / f"docs/{page}.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shown = [block for block in blocks if page in WHOLE or ".fit(" in block]
    assert shown
    for block in shown:
        wanted = statements(ast.parse(block).body)
        # `in` reads an iterator up to what it finds, so the order counts.
        rests = map(iter, own)
        assert any(all(line in rest for line in wanted) for rest in rests), block


def test_the_error_without_the_import_is_on_the_page(monkeypatch):
    keras_mobilevit.MobileViT_XXS(weights=None).save("model.keras")
    registered = keras.saving.get_custom_objects()
    for name in list(registered):
        monkeypatch.delitem(registered, name)
    with pytest.raises(TypeError) as error:
        keras.saving.load_model("model.keras")
    text = (ROOT / "docs/weights.md").read_text("utf-8")
    (shown,) = re.findall(r"```\nTypeError: (.*?)\.\.\.\n```", text, re.DOTALL)
    assert " ".join(shown.split()) in str(error.value)
