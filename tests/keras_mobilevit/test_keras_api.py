"""Keras's functions for models work: clone, save, fit, export, quantize."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_mobilevit
from keras_mobilevit import DeepLabV3, MobileViT_XXS, MobileViTV2_050, SSDLite
from train.models import dtype_policy

pytestmark = pytest.mark.usefixtures("shallow")

ROOT = Path(__file__).parents[2]
SHAPE = (48, 80, 3)  # not square, and not of whole patches
IMAGES = np.random.default_rng(0).uniform(0, 255, (4, *SHAPE)).astype("float32")
# MobileViTv2's block is in its classifier; its detectors and segmenters add nothing.
KINDS = ("classifier", "second_classifier", "detector", "segmenter")
# Tracing is slow, and the detector's layers are all in the two others.
TRACED = ["classifier", "second_classifier", "segmenter"]


def build(kind: str, shape=SHAPE):
    if kind == "detector":
        return SSDLite("mobilevit_xxs", classes=3, weights=None, input_shape=shape)
    if kind == "segmenter":
        return DeepLabV3(
            "mobilevit_xxs",
            classes=3,
            weights=None,
            input_shape=shape,
            auxiliary=True,
        )
    variant = MobileViTV2_050 if kind == "second_classifier" else MobileViT_XXS
    return variant(weights=None, classes=3, input_shape=shape)


@pytest.fixture(scope="module")
def models() -> dict:
    """Models in float32 with statistics of images. Tests must not train them."""
    keras.utils.set_random_seed(0)
    models = {kind: build(kind) for kind in KINDS}
    for model in models.values():
        for _ in range(2):
            model(IMAGES, training=True)
    return models


def run(model, images=IMAGES) -> dict[str, np.ndarray]:
    outputs = model(images)
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    return {name: keras.ops.convert_to_numpy(x) for name, x in outputs.items()}


def assert_close(found: dict, wanted: dict, part: float = 1e-5) -> None:
    """Compares outputs; `part` is a fraction of the largest value."""
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        difference = np.abs(found[name].astype("float32") - value).max()
        assert difference <= part * np.abs(value).max(), name


def with_kerass_own(layer):
    """Replaces a layer by the class of `keras.layers` that it extends."""
    for own in (keras.layers.BatchNormalization, keras.layers.Activation):
        if isinstance(layer, own):
            return own.from_config(layer.get_config())
    return layer.__class__.from_config(layer.get_config())


@pytest.mark.parametrize("kind", KINDS)
def test_a_clone_gives_the_same(kind: str, models):
    clone = keras.models.clone_model(models[kind])
    clone.set_weights(models[kind].get_weights())
    assert_close(run(clone), run(models[kind]), 0)


@pytest.mark.slow
def test_a_clone_of_kerass_own_layers_is_saved_and_loaded(models, tmp_path):
    model = models["classifier"]
    clone = keras.models.clone_model(model, clone_function=with_kerass_own)
    assert type(clone.get_layer("stem_bn")) is keras.layers.BatchNormalization
    clone.set_weights(model.get_weights())
    clone.save(tmp_path / "clone.keras")
    clone.save_weights(tmp_path / "clone.weights.h5")
    keras_mobilevit.save_safetensors(clone, tmp_path / "clone.safetensors")
    assert_close(run(keras.models.load_model(tmp_path / "clone.keras")), run(model))
    for ending in ("keras", "weights.h5", "safetensors"):
        for other in (build("classifier"), clone):
            for variable in other.weights:
                variable.assign(keras.ops.zeros_like(variable))
            keras_mobilevit.load_weights(other, tmp_path / f"clone.{ending}")
            assert_close(run(other), run(model))


LOAD = """
import sys
import keras
import numpy as np
folder = sys.argv[1]
try:
    keras.models.load_model(f"{folder}/classifier.keras")
except Exception as error:
    print(error, file=sys.stderr)
import keras_mobilevit
images = np.load(f"{folder}/images.npy")
for kind in sys.argv[2:]:
    outputs = keras.models.load_model(f"{folder}/{kind}.keras")(images)
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    outputs = {name: keras.ops.convert_to_numpy(x) for name, x in outputs.items()}
    np.savez(f"{folder}/{kind}.npz", **outputs)
"""


def test_another_process_loads_what_is_saved_after_the_import(models, tmp_path):
    """Without the import Keras finds no layers; its error names the package."""
    np.save(tmp_path / "images.npy", IMAGES)
    for kind, model in models.items():
        model.save(tmp_path / f"{kind}.keras")
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), *KINDS],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "'module': 'keras_mobilevit." in result.stderr
    for kind, model in models.items():
        # Processes may split sums between threads differently.
        assert_close(dict(np.load(tmp_path / f"{kind}.npz")), run(model), 1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "Activation",
        "BatchNormalization",
        "ContextPooling",
        "DilatedConv2D",
        "DotProductAttention",
        "Fold",
        "ResizeLike",
        "ResizeToMultiple",
        "SplitPredictions",
        "Unfold",
    ],
)
def test_the_names_in_saved_files_stay(name: str):
    found = keras.saving.get_registered_object(f"keras_mobilevit>{name}")
    assert found is not None and found.__name__ == name


@pytest.mark.parametrize("kind", KINDS)
def test_free_sizes_give_the_same_as_a_fixed_one(kind: str, models):
    free = build(kind, (None, None, 3))
    free.set_weights(models[kind].get_weights())
    assert_close(run(free), run(models[kind]))


# What differs between the kinds are their heads, which each have one everyday case.
@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("classifier", "mixed_bfloat16"),
        ("classifier", "float16"),
        ("second_classifier", "mixed_float16"),
        pytest.param("second_classifier", "mixed_bfloat16", marks=pytest.mark.slow),
        ("detector", "mixed_bfloat16"),
        pytest.param("detector", "float16", marks=pytest.mark.slow),
        pytest.param("segmenter", "mixed_bfloat16", marks=pytest.mark.slow),
        ("segmenter", "float16"),
    ],
)
def test_sixteen_bits_give_float32_outputs(kind: str, policy: str, models):
    with dtype_policy(policy):
        model = build(kind)
    assert model.get_layer("stem_conv").compute_dtype == policy.removeprefix("mixed_")
    model.set_weights(models[kind].get_weights())
    found = run(model)
    assert {x.dtype.name for x in found.values()} == {"float32"}
    assert_close(found, run(models[kind]), 0.1)
    trained = model(IMAGES, training=True)  # with its own statistics
    for value in keras.tree.flatten(trained):
        assert np.isfinite(keras.ops.convert_to_numpy(value)).all()


def test_float32_layers_have_no_policy_of_their_own(models):
    """Otherwise a model loaded under another policy would keep float32 layers."""
    for model in models.values():
        assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRACED)
def test_fit_in_plain_keras(kind: str):
    keras.utils.set_random_seed(1)
    if kind.endswith("classifier"):
        model, labels = build(kind), np.array([0, 1, 2, 0])
    else:
        model = keras_mobilevit.without_auxiliary(build(kind))
        labels = np.zeros((4, *SHAPE[:2]), int) + np.array([0, 1, 2, 0])[:, None, None]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=kind == "segmenter")
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)  # quick
    losses = model.fit(IMAGES, labels, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["classifier", "detector", "segmenter"])
@pytest.mark.parametrize("variant", keras_mobilevit.VARIANTS)
def test_every_variant_with_every_head(variant: str, head: str, tmp_path):
    """Cloned, saved and loaded, and in 16 bits."""
    options = {"classes": 2, "weights": None, "input_shape": SHAPE}

    def build_model():
        if head == "detector":
            return SSDLite(variant, **options)
        if head == "segmenter":
            return DeepLabV3(variant, **options)
        config = keras_mobilevit.VARIANTS[variant]
        return getattr(keras_mobilevit, config.title)(**options)

    model = build_model()
    model(IMAGES, training=True)
    wanted = run(model)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_close(run(clone), wanted, 0)
    model.save(tmp_path / "model.keras")
    assert_close(run(keras.saving.load_model(tmp_path / "model.keras")), wanted, 0)
    with dtype_policy("mixed_bfloat16"):
        mixed = build_model()
    mixed.set_weights(model.get_weights())
    assert_close(run(mixed), wanted, 0.1)


# Keras says so of every layer that stays in floats.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_models_are_close_and_are_saved(kind: str, models, tmp_path):
    model = keras.models.clone_model(models[kind])
    model.set_weights(models[kind].get_weights())
    model.quantize("int8")
    found = run(model)
    assert_close(found, run(models[kind]), 0.05)
    model.save(tmp_path / "int8.keras")
    assert_close(run(keras.models.load_model(tmp_path / "int8.keras")), found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_export_takes_other_sizes_and_batches(kind: str, models, tmp_path):
    tf = pytest.importorskip("tensorflow")
    model = build(kind, (None, None, 3))
    model.set_weights(models[kind].get_weights())
    model.export(str(tmp_path / "saved"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))  # owns the variables
    for images in (IMAGES, IMAGES[:1, :37], IMAGES[:3, :, :64]):
        assert_close(run(loaded.serve, images), run(model, images))


@pytest.mark.slow
def test_objects_are_found_inside_a_graph_of_any_size(models):
    tf = pytest.importorskip("tensorflow")
    model = build("detector", (None, None, 3))
    model.set_weights(models["detector"].get_weights())
    specs = [tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, 4))]

    @tf.function(input_signature=specs)
    def find(images, anchors):
        return keras_mobilevit.detect(
            model(images), anchors=anchors, score_threshold=0.2
        )

    for images in (IMAGES, IMAGES[:1, :37]):
        anchors = keras_mobilevit.anchor_boxes(*images.shape[1:3])
        wanted = keras_mobilevit.detect(
            model(images), anchors=anchors, score_threshold=0.2
        )
        wanted = {name: keras.ops.convert_to_numpy(x) for name, x in wanted.items()}
        assert (wanted["scores"] > 0.2).any()
        found = find(images, anchors)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
