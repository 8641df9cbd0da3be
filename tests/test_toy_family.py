"""A family of networks is added by rows in four files and one file with its block."""

import ast
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from keras_mobilevit import (
    VARIANTS,
    DeepLabV3,
    MobileViT_XXS,
    SSDLite,
    anchor_boxes,
    load_backbone,
    load_weights,
    save_safetensors,
)
from keras_mobilevit.backend import Tensor
from keras_mobilevit.blocks import conv_bn_act
from keras_mobilevit.classifier import classifier_function
from keras_mobilevit.configs import Family, ModelConfig
from keras_mobilevit.weights import hub
from keras_mobilevit.weights.names import CHECKPOINT_FORMATS, FamilyNames, formats_of
from tflite.models import load_model
from train.config import make_config

ROOT = Path(__file__).parents[1]
SIZE = 64


# What a new family adds to keras_mobilevit: its block, in a file of its own, ...
def toynet_block(
    x: Tensor,
    transformer_dim: int,
    depth: int,
    dropout: float,
    dilation: int,
    name: str,
) -> Tensor:
    return conv_bn_act(x, x.shape[-1], 3, f"{name}_mix")


# ... to configs.py the family, and a row for each variant, ...
TOYNET = Family(
    title="ToyNet",
    paper="[Toys](https://example.org)",
    block=f"{__name__}:toynet_block",
    mobilenet_blocks=(1, 1, 1, 1, 1),
    has_head=False,
    map_multiple=1,
    classifier_dropout=0.0,
    aspp_channels=64,
    aligns_corners=False,
)
_TOYNET = (
    # title, parameters, top-1, channels of the stem and of stages 1 to 5,
    # d of stages 3 to 5, channels of the head, expansion, dropout
    ("ToyNet_S", 39_936, 10.0, 8, (8, 8, 16, 16, 24), (0, 0, 0), 0, 2, 0.0),
)
_CONFIGS = [ModelConfig(TOYNET, *row) for row in _TOYNET]
# ... to weights/names.py its names in other libraries, ...
TOYNET_NAMES = FamilyNames(
    family=TOYNET,
    transformers="toynet",
    block_parts=(("mix", "conv_mix", "conv_mix", "mix.block"),),
    block_layers=(),
    transformer_parts=(),
    classifier="classifier.fc",
    segmenter="seg_head.classifier.block.conv",
    is_bgr=False,
    ambiguous={},
)
# ... to weights/hub.py its published files ...
FILE = hub.HubFile("timm/toynet_s.in1k", "main")
# ... and to __init__.py its functions, here made by the fixture.


@pytest.fixture
def toynet_s(monkeypatch):
    for config in _CONFIGS:
        monkeypatch.setitem(VARIANTS, config.name, config)
    formats = formats_of(TOYNET_NAMES)
    CHECKPOINT_FORMATS.extend(formats)
    monkeypatch.setitem(hub.IMAGENET_FILES, "toynet_s", FILE)
    yield classifier_function("toynet_s")
    del CHECKPOINT_FORMATS[-len(formats) :]


@pytest.fixture
def published(toynet_s, monkeypatch, tmp_path) -> keras.Model:
    """A classifier whose file, with timm's names, `weights="imagenet"` finds."""
    keras.utils.set_random_seed(0)
    model = toynet_s(weights=None, input_shape=(SIZE, SIZE, 3))
    path = tmp_path / "model.safetensors"
    save_safetensors(model, path)
    monkeypatch.setattr(hub, "fetch", {FILE: path}.__getitem__)
    return model


def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3))


def test_a_classifier_loads_timms_names(published, toynet_s, tmp_path):
    config = VARIANTS["toynet_s"]
    count = sum(np.prod(x.shape) for x in published.trainable_variables)
    assert count == config.parameters
    assert '"imagenet"' in toynet_s.__doc__ and toynet_s.__name__ == "ToyNet_S"
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["stages.2.1.conv_mix.conv.weight"].shape == (16, 16, 3, 3)
    loaded = toynet_s(input_shape=(SIZE, SIZE, 3))
    np.testing.assert_array_equal(
        loaded.predict(images(), verbose=0), published.predict(images(), verbose=0)
    )


def test_a_detector_and_a_segmenter_have_its_backbone(published):
    kernel = published.get_layer("stage5_vit_mix_conv").kernel
    shape = (SIZE, SIZE, 3)
    detector = SSDLite("toynet_s", classes=2, input_shape=shape)
    segmenter = DeepLabV3("toynet_s", classes=2, input_shape=shape)
    for model in (detector, segmenter):
        found = model.get_layer("stage5_vit_mix_conv").kernel
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (found, kernel)))
    outputs = detector.predict(images(), verbose=0)
    anchors = anchor_boxes(SIZE, SIZE, "toynet_s")
    assert outputs["logits"].shape == (2, len(anchors), 3)
    assert segmenter.predict(images(), verbose=0).shape == (2, SIZE, SIZE, 2)
    with pytest.raises(ValueError, match="no weights \"coco\" of 'toynet_s'"):
        SSDLite("toynet_s")


def test_files_of_families_are_told_apart(published, toynet_s, tmp_path):
    path = tmp_path / "model.safetensors"
    other = MobileViT_XXS(weights=None)
    with pytest.raises(ValueError, match="holds a ToyNet, but .* is a MobileViT"):
        load_weights(other, path)
    save_safetensors(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds a MobileViT, but .* is a ToyNet"):
        load_backbone(published, tmp_path / "other.safetensors")


def test_training_and_conversion_know_its_name(published):
    assert make_config(model="toynet_s").model == "toynet_s"
    assert load_model("deeplabv3_toynet_s").name == "deeplabv3_toynet_s"
    with pytest.raises(ValueError, match="toynet_s. Or one of these after ssdlite_ or"):
        load_model("nonsense")


TABLES = {
    "__init__.py",
    "configs.py",
    "hub.py",
    "names.py",
    "onnx_baselines.py",
    "recipes.py",
    "suites.py",
}


def words_of_code(path: Path) -> set[str]:
    """Returns the names and strings in a file, without docstrings and comments."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    texts = {id(x.value) for x in nodes if isinstance(x, ast.Expr)}
    found = {x.id for x in nodes if isinstance(x, ast.Name)}
    found |= {x.attr for x in nodes if isinstance(x, ast.Attribute)}
    constants = (x for x in nodes if isinstance(x, ast.Constant) and id(x) not in texts)
    return found | {x.value for x in constants if isinstance(x.value, str)}


def test_only_the_tables_name_families():
    """So a further family needs no branch elsewhere."""
    packages = ("keras_mobilevit", "train", "tflite", "benchmarks")
    files = [path for name in packages for path in (ROOT / name).rglob("*.py")]
    naming = {
        path.name
        for path in files
        if any(re.search("(?i)mobilevit_?v2", word) for word in words_of_code(path))
    }
    assert naming == TABLES
