"""The outputs of other libraries in tests/golden, and the weights that gave them.

The weights are made again from a seed. Works on any backend of Keras. A name such as
`timm_mobilevit_xxs` or `detection/cvnets_mobilevitv2_050` is that of a file of shapes
in tests/golden.
"""

import json
from pathlib import Path

import keras
import numpy as np
from safetensors.numpy import load_file, save_file

import keras_mobilevit
from keras_mobilevit import DeepLabV3
from keras_mobilevit.backbone import feature_maps
from keras_mobilevit.configs import MOBILEVIT, VARIANTS, get_variant
from keras_mobilevit.weights.names import (
    CheckpointFormat,
    find_format,
    is_backbone,
)
from tests.golden import reference

GOLDEN = Path(reference.__file__).parent
SEGMENTER = "segmentation/transformers_mobilevit_xxs"
DETECTOR = "detection/cvnets_mobilevit_xxs"
TOLERANCE = 1e-5  # as a fraction of the largest number
MODELS = {
    name: getattr(keras_mobilevit, config.title) for name, config in VARIANTS.items()
}


def run(model, images) -> np.ndarray:
    """Calls a model with one output and returns NumPy."""
    return keras.ops.convert_to_numpy(model(images))


def assert_near(found, wanted: np.ndarray, case) -> None:
    """Compares outputs with stored ones, which must not be near zero."""
    found, largest = keras.ops.convert_to_numpy(found), np.abs(wanted).max()
    assert found.shape == wanted.shape, case
    assert largest > 0.1, case
    assert np.abs(found - wanted).max() <= TOLERANCE * largest, case


def read_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's tensors by name."""
    shapes = json.loads(Path(GOLDEN, f"{name}.json").read_text("utf-8"))
    return {tensor: tuple(shape) for tensor, shape in shapes.items()}


def write_weights(name: str, folder: Path) -> Path:
    """Writes the weights that gave the outputs `<name>*.npz`."""
    path = folder / f"{name.replace('/', '_')}.safetensors"
    save_file(reference.random_state(read_shapes(name)), path)
    return path


def stored_outputs(name: str) -> np.lib.npyio.NpzFile:
    """Returns the outputs `<name>.npz`."""
    return np.load(GOLDEN / f"{name}.npz")


def build_classifier(weights, variant: str = "mobilevit_xxs", **arguments):
    """Builds the model whose outputs are stored; without a file, it is random."""
    arguments = {
        "classifier_activation": None,
        "include_preprocessing": False,
        "input_shape": (None, None, 3),
    } | arguments
    return MODELS[variant](weights=weights and str(weights), **arguments)


def build_backbone(weights, variant: str, output_stride: int) -> keras.Model:
    """Builds a model that returns the last feature map."""
    images = keras.Input((None, None, 3))
    maps = feature_maps(images, get_variant(variant), output_stride)
    model = keras.Model(images, maps["P5"])
    keras_mobilevit.load_backbone(model, weights)
    return model


def build_segmenter(
    weights, output_stride: int, backbone: str = "mobilevit_xxs", **arguments
) -> keras.Model:
    """Builds the model whose outputs are stored."""
    arguments = {
        "input_shape": (None, None, 3),
        "include_preprocessing": False,
        "upsample": False,
    } | arguments
    return DeepLabV3(
        backbone, weights=str(weights), output_stride=output_stride, **arguments
    )


def check_logits(model, name: str, sizes=reference.SIZES) -> None:
    """Compares logits with those of a library and variant."""
    golden = stored_outputs(name)
    for size in sizes:
        logits = model(reference.images(*size))
        assert_near(logits, golden[reference.size_key(*size)], size)


def check_classifier(model, name: str, sizes=reference.SIZES) -> None:
    """Compares logits, and the last feature map if it is stored, with a library's."""
    golden = stored_outputs(name)
    outputs = [model.output, last_feature_map(model)]
    both = keras.Model(model.input, outputs)
    for size in sizes:
        logits, features = map(
            keras.ops.convert_to_numpy, both(reference.images(*size))
        )
        assert_near(logits, golden[reference.size_key(*size)], size)
        if reference.feature_key(*size) in golden:
            wanted = golden[reference.feature_key(*size)]
            assert_near(reference.subsampled_features(features), wanted, size)


def last_feature_map(model: keras.Model):
    """Returns the output of the last layer of a model's backbone."""
    return [x for x in model.layers if is_backbone(x.name)][-1].output


def check_backbone(model, name: str, sizes=reference.DILATED_SIZES) -> None:
    """Compares the last feature map with that of a library and variant."""
    golden = stored_outputs(name)
    for size in sizes:
        found = reference.subsampled_features(run(model, reference.images(*size)))
        assert_near(found, golden[reference.feature_key(*size)], size)


def check_segmenter(
    model,
    output_stride: int,
    sizes=reference.SEGMENTATION_SIZES,
    name: str = SEGMENTER,
    key=reference.size_key,
) -> None:
    """Compares a segmenter's logits with those of a library and variant.

    `key` returns the name of a size's logits, which may have been resized.
    """
    golden = stored_outputs(f"{name}_{output_stride}")
    for size in sizes:
        found = reference.subsampled(run(model, reference.images(*size)))
        assert_near(found, golden[key(*size)], size)


def check_detector(model, name: str = DETECTOR, size=reference.DETECTION_SIZE) -> None:
    """Compares a detector's outputs with those of a library and variant."""
    outputs, golden = model(reference.images(*size)), stored_outputs(name)
    assert set(golden) == set(outputs) == {"logits", "offsets"}
    for key, wanted in golden.items():
        found = keras.ops.convert_to_numpy(outputs[key])
        assert_near(found[:, :: reference.ANCHOR_STEP], wanted, key)


def rename_tensors(path: Path, target: CheckpointFormat) -> dict[str, np.ndarray]:
    """Reads a file with transformers' names and gives its tensors other names."""
    tensors, renamed = load_file(path), {}
    transformers = find_format("transformers", MOBILEVIT)
    for layer, module in target.modules.items():
        module, _, third = module.partition("#")
        source = transformers.modules.get(layer)
        for name in [name for name in tensors if name.rpartition(".")[0] == source]:
            parts = renamed.setdefault(f"{module}.{name.rpartition('.')[2]}", {})
            parts[int(third or 0)] = tensors[name]
    return {
        name: np.concatenate([parts[i] for i in sorted(parts)])
        for name, parts in renamed.items()
    }
