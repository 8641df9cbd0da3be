"""What holds for every variant of every family."""

import inspect
from typing import NamedTuple

import keras
import numpy as np
import pytest
from safetensors import safe_open

import keras_mobilevit
from keras_mobilevit import DeepLabV3, MobileViT_S, SSDLite
from keras_mobilevit.configs import VARIANTS
from keras_mobilevit.weights.names import is_backbone
from tests.helpers.references import MODELS, read_shapes
from tests.helpers.whole_models import count_parameters

SMALLEST = ("mobilevit_xxs", "mobilevitv2_050")


class Variant(NamedTuple):
    """Trainable parameters of a variant's models, as published or as counted in timm.

    The classifier has 1,000 classes, the detector 80 and the segmenter 21.
    """

    name: str
    classifier: int
    backbone: int
    detector: int
    segmenter: int


# fmt: off
TABLE = [
    Variant("mobilevit_xxs", 1_272_024, 924_784, 1_755_050, 1_854_853),
    Variant("mobilevit_xs", 2_317_848, 1_895_216, 2_742_042, 2_944_069),
    Variant("mobilevit_s", 5_578_632, 4_833_952, 5_738_826, 6_357_941),
    Variant("mobilevitv2_050", 1_370_593, 1_113_593, 2_035_395, 6_242_318),
    Variant("mobilevitv2_075", 2_866_009, 2_481_009, 3_584_955, 9_510_278),
    Variant("mobilevitv2_100", 4_901_841, 4_388_841, 5_608_883, 13_318_654),
    Variant("mobilevitv2_125", 7_478_089, 6_837_089, 8_173_227, 17_667_446),
    Variant("mobilevitv2_150", 10_594_753, 9_825_753, 11_277_987, 22_556_654),
    Variant("mobilevitv2_175", 14_251_833, 13_354_833, 14_923_163, 27_986_278),
    Variant("mobilevitv2_200", 18_449_329, 17_424_329, 19_108_755, 33_956_318),
]
# fmt: on
# The everyday tests leave the wider variants of a family to the slow ones.
EVERYDAY = [
    pytest.param(row, marks=() if row.name in SMALLEST else pytest.mark.slow)
    for row in TABLE
]


def test_the_table_has_every_variant():
    assert [row.name for row in TABLE] == list(VARIANTS) == list(MODELS)


def check_public_function(row: Variant) -> None:
    build, config = MODELS[row.name], VARIANTS[row.name]
    assert build.__name__ == config.title
    assert config.title in keras_mobilevit.__all__
    assert config.title.lower() == row.name
    parameters = inspect.signature(build).parameters
    assert parameters["name"].default == row.name
    others = inspect.signature(MobileViT_S).parameters
    assert list(parameters) == list(others)
    for name in set(others) - {"name"}:
        assert parameters[name].default == others[name].default, name
    about = f"{config.title}: {row.classifier / 1e6:.1f} M parameters, {config.top1} %"
    assert build.__doc__.startswith(about)
    assert f"keras_mobilevit.{config.title}(" in build.__doc__
    assert config.family.paper in build.__doc__


def check_saved_names(model, row: Variant, folder) -> None:
    """A saved file has the names and shapes of timm's, no more and no less."""
    path = folder / "saved.safetensors"
    keras_mobilevit.save_safetensors(model, path)
    with safe_open(path, "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    path.unlink()
    counters = {name for name in shapes if name.endswith("num_batches_tracked")}
    norms = {name for name in shapes if name.endswith("running_var")}
    assert {name.rpartition(".")[0] for name in counters} == {
        name.rpartition(".")[0] for name in norms
    }
    saved = {name: shape for name, shape in shapes.items() if name not in counters}
    assert saved == read_shapes(f"timm_{row.name}")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_classifier(row: Variant, tmp_path):
    config = VARIANTS[row.name]
    check_public_function(row)
    model = MODELS[row.name](weights=None)
    assert model.name == row.name
    assert count_parameters(model) == row.classifier == config.parameters
    backbone = [layer for layer in model.layers if is_backbone(layer.name)]
    assert sum(map(count_parameters, backbone)) == row.backbone
    assert model.output_shape == (None, 1000)
    assert model.layers[-1].name == "predictions"
    *_, channels = config.stage_channels
    assert backbone[-1].output.shape == (None, 8, 8, channels)
    check_saved_names(model, row, tmp_path)


@pytest.mark.parametrize("row", EVERYDAY, ids=lambda row: row.name)
def test_a_model_is_rebuilt_from_its_config(row: Variant):
    shape = (64, 96, 3)
    model = MODELS[row.name](weights=None, input_shape=shape, classes=3)
    rebuilt = keras.Model.from_config(model.get_config())
    assert [x.shape for x in rebuilt.weights] == [x.shape for x in model.weights]
    assert rebuilt.get_config() == model.get_config()


@pytest.mark.parametrize("row", EVERYDAY, ids=lambda row: row.name)
def test_detector_and_segmenter(row: Variant):
    title = VARIANTS[row.name].title  # a backbone's name may be in upper case
    model = SSDLite(title, weights=None)
    assert model.name == f"ssdlite_{row.name}"
    assert count_parameters(model) == row.detector
    shapes = {name: output.shape for name, output in model.output.items()}
    assert shapes == {"offsets": (None, 3232, 4), "logits": (None, 3232, 81)}

    model = DeepLabV3(title, weights=None)
    assert model.name == f"deeplabv3_{row.name}"
    assert count_parameters(model) == row.segmenter
    assert model.output_shape == (None, 512, 512, 21)


@pytest.mark.parametrize(
    ("variant", "channels", "sides"),
    [
        ("mobilevit_xxs", 1, ((4, 3), (1, 2))),
        ("mobilevit_xxs", 3, ((4, 3), (1, 2))),
        ("mobilevit_xxs", 4, ((4, 3), (1, 2))),
        ("mobilevitv2_050", 4, ((4, 4), (2, 2))),  # rounded up to even numbers
    ],
)
def test_any_size_and_channels(variant: str, channels: int, sides: tuple):
    model = MODELS[variant](
        weights=None, include_top=False, input_shape=(None, None, channels)
    )
    *_, features = model.output_shape
    assert model.output_shape == (None, None, None, features)
    for size, wanted in zip(((123, 70), (32, 33)), sides, strict=True):
        found = model(np.zeros((1, *size, channels)))
        assert found.shape == (1, *wanted, features)
    # One token: its softmax is 1, and Keras warns of it.
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, channels))
    for training in (False, True):
        assert np.isfinite(model(images, training=training)).all()


@pytest.mark.parametrize("variant", ["mobilevit_xxs", "mobilevitv2_050"])
def test_no_two_layers_start_with_the_same_kernel(variant: str):
    """An initializer that two layers share draws the same numbers twice."""
    build = getattr(keras_mobilevit, keras_mobilevit.VARIANTS[variant].title)
    kernels = [w.numpy() for w in build(weights=None).weights if w.name == "kernel"]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)
