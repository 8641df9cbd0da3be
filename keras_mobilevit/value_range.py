"""Finds out whether a model expects images with values in [0, 255] or in [0, 1].

The first layers show it: `Rescaling(1 / 255)`, `x / 127.5 - 1` or a normalization with
the mean 123 expects [0, 255]; a normalization with the mean 0.45 expects [0, 1]. Layers
that only move pixels, or that do nothing at inference, are skipped.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from keras_mobilevit.calls import Call, Value, list_calls


def _types(names: str) -> frozenset[type]:
    """Returns the layer classes that this version of Keras has, by their names."""
    return frozenset(getattr(layers, n) for n in names.split() if hasattr(layers, n))


# Layers that return their input at inference.
IDENTITIES = _types(
    """
    ActivityRegularization AlphaDropout AugMix CutMix Dropout GaussianDropout
    GaussianNoise Identity MixUp RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomElasticTransform
    RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue
    RandomInvert RandomPerspective RandomPosterization RandomRotation
    RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom
    SpatialDropout1D SpatialDropout2D SpatialDropout3D
    """
)
# Layers that keep the range of values: they move, join, average or repeat pixels.
_MOVES = IDENTITIES | _types(
    """
    AutoContrast AveragePooling2D CLAHE CenterCrop Concatenate Cropping2D
    Equalization Flatten MaxPooling2D Permute RandomCrop Reshape Resizing
    Solarization UpSampling2D ZeroPadding2D
    """
)
# Operations that keep the range of values. They have no public type.
_MOVING_OPERATIONS = """
    BroadcastTo Cast Concatenate Copy CropImages ExpandDims Flip GetItem Identity
    Mean Moveaxis Pad PadImages RGBToGrayscale Repeat Reshape Resize Squeeze Stack
    Tile Transpose
    """.split()


def per_channel(values: Any) -> np.ndarray | None:
    """Returns values that depend only on the channel, float64 `[channels]` or `[]`.

    The last axis of an array is the channels. If another axis is longer than 1, the
    result is `None`.
    """
    values = np.asarray(keras.ops.convert_to_numpy(values), np.float64)
    if values.ndim and values.size != values.shape[-1]:
        return None
    return values.reshape(values.shape[-1:])


_Affine = tuple[np.ndarray | None, np.ndarray | None]  # scale and offset, if known


def _of_normalization(layer: layers.Normalization) -> _Affine:
    mean, variance = per_channel(layer.mean), per_channel(layer.variance)
    if mean is None or variance is None:
        return None, None
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    return (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)


# `x + 1` and `x * 2` are operations without a public type. By the operation's name: the
# functions that convert its number to a scale and an offset, if the number is the
# second argument, and if it is the first.
_OPERATORS: dict[str, tuple[Callable | None, Callable | None]] = {
    "Add": (lambda n: (1.0, n), lambda n: (1.0, n)),
    "Divide": (lambda n: (1 / n, 0.0), None),
    "Multiply": (lambda n: (n, 0.0), lambda n: (n, 0.0)),
    "Subtract": (lambda n: (1.0, -n), lambda n: (-1.0, n)),
    "TrueDivide": (lambda n: (1 / n, 0.0), None),
}


def _of_operator(call: Call) -> _Affine:
    forms = _OPERATORS.get(type(call.operation).__name__)
    if not forms or call.kwargs or len(call.args) != 2:
        return None, None
    if not keras.backend.is_float_dtype(call.operation.output.dtype):
        return None, None
    is_value = [isinstance(argument, Value) for argument in call.args]
    if sum(is_value) != 1:
        return None, None
    form = forms[0] if is_value[0] else forms[1]
    number = per_channel(call.args[1 if is_value[0] else 0])
    if form is None or number is None:
        return None, None
    scale, offset = form(number)
    return np.asarray(scale, np.float64), np.asarray(offset, np.float64)


def _scale_and_offset(call: Call) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns scale and offset of a call, which may change the number of channels."""
    layer = call.operation
    if type(layer) is layers.Rescaling:
        scale, offset = per_channel(layer.scale), per_channel(layer.offset)
    elif type(layer) is layers.Normalization:
        scale, offset = _of_normalization(layer)
    elif not isinstance(layer, layers.Layer):
        scale, offset = _of_operator(call)
    else:
        return None
    return None if scale is None or offset is None else (scale, offset)


def scale_and_offset(call: Call) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns scale and offset, each `[channels]` or `[]`, of a call that only scales.

    These are `Rescaling`, `Normalization`, and operators between a tensor and numbers,
    such as `x / 127.5`. The result is `None` for all other calls.
    """
    found = _scale_and_offset(call)
    if found is None:
        return None
    given, returned = call.operation.input.shape, call.operation.output.shape
    keeps_shape = tuple(given) == tuple(returned)
    keeps_shape &= {x.size for x in found} <= {1, given[-1]}
    return found if keeps_shape else None


def is_identity(call: Call) -> bool:
    """Tells whether a call has one input and returns it at inference."""
    if len(call.inputs) != 1:
        return False
    if isinstance(call.operation, layers.Layer):
        return type(call.operation) in IDENTITIES
    is_one = type(call.operation).__name__ in ("Cast", "Identity", "Copy")
    return is_one and call.operation.output.dtype == "float32"


# Models for [0, 1] subtract 0.3 to 0.6 and divide by 0.2 to 1. Models for [0, 255]
# subtract 80 to 150 and divide by 50 to 255. Numbers between these limits, or far
# outside, fit neither range.
_MAX_MEAN_OF_UNIT_RANGE = 2.0
_MAX_STD_OF_UNIT_RANGE, _MIN_STD_OF_PIXELS = 2.0, 32.0
_MIN_MEAN, _MAX_MEAN, _MAX_STD = -1e-3, 300.0, 1024.0


class _Scaling(NamedTuple):
    """A tensor that equals `scale * image + offset`, both means over the channels.

    `operation` scaled last; it is `None` for an input of the model.
    """

    scale: float
    offset: float
    operation: Any = None

    def then(
        self, scale: float, offset: float, operation: keras.Operation
    ) -> "_Scaling":
        """Returns the result of another scaling of this tensor."""
        return _Scaling(self.scale * scale, self.offset * scale + offset, operation)

    @property
    def mean(self) -> float:
        """The number that the model subtracts from images; `std` then divides them."""
        return -self.offset / self.scale

    @property
    def std(self) -> float:
        """The number by which the model divides images."""
        return 1 / abs(self.scale)

    @property
    def is_active(self) -> bool:
        """Whether the scaling changes the images."""
        return (self.mean, self.std) != (0.0, 1.0)

    def doubt(self) -> str | None:
        """Returns the reason why the numbers fit neither range, or `None`."""
        numbers = f"mean {self.mean:.3g}, std {self.std:.3g}"
        # Then mean and std were measured on images.
        is_measured = isinstance(
            self.operation, layers.Normalization | layers.BatchNormalization
        )
        if not self.is_active:
            return "has not been adapted or trained" if is_measured else None
        if is_measured and self.mean <= _MIN_MEAN:
            return f"was adapted to values below 0 ({numbers})"
        if self.mean > _MAX_MEAN or self.std > _MAX_STD:
            return f"is for values far above 255 ({numbers})"
        if (
            self.mean <= _MAX_MEAN_OF_UNIT_RANGE
            and _MAX_STD_OF_UNIT_RANGE < self.std < _MIN_STD_OF_PIXELS
        ):
            return f"fits neither [0, 1] nor [0, 255] ({numbers})"
        return None

    def input_max(self) -> int:
        """Returns the more likely maximum of the images, 1 or 255."""
        limit = (_MAX_STD_OF_UNIT_RANGE * _MIN_STD_OF_PIXELS) ** 0.5
        is_for_pixels = self.mean > _MAX_MEAN_OF_UNIT_RANGE or self.std > limit
        return 255 if is_for_pixels else 1


def _scalings(model: keras.Model) -> Iterator[_Scaling]:
    """Yields the scalings of a model's images, each where it is complete."""
    listed = list_calls(model)
    images = {value: _Scaling(1.0, 0.0) for value in listed.inputs}
    for call in listed.calls:
        found = [images[value] for value in call.inputs if value in images]
        if not found:
            continue
        image, operation = found[0], call.operation
        affine = _scale_and_offset(call)
        if affine is not None:
            scale, offset = (float(np.mean(x)) for x in affine)
            if scale:
                images[call.outputs[0]] = image.then(scale, offset, operation)
        elif is_identity(call) or _moves_pixels(operation):
            images |= dict.fromkeys(call.outputs, image)
            # Another input with another scaling ends here.
            yield from _complete([x for x in found[1:] if x[:2] != image[:2]])
        elif isinstance(operation, layers.BatchNormalization):
            mean, variance = (
                float(np.mean(keras.ops.convert_to_numpy(x)))
                for x in (operation.moving_mean, operation.moving_variance)
            )
            deviation = max(variance, 1e-12) ** 0.5
            yield image.then(1 / deviation, -mean / deviation, operation)
        else:
            yield from _complete(found)
    yield from _complete([images[value] for value in listed.outputs if value in images])


def _complete(images: list[_Scaling]) -> list[_Scaling]:
    """Returns the images that the model has scaled."""
    return [image for image in images if image.operation is not None]


def _moves_pixels(operation: keras.Operation) -> bool:
    if type(operation) in _types("Pipeline"):
        return all(map(_moves_pixels, operation.layers))
    if isinstance(operation, layers.Layer):
        return type(operation) in _MOVES
    return type(operation).__name__ in _MOVING_OPERATIONS


def input_max(model: keras.Model) -> int:
    """Returns 255 if a model expects images with values in [0, 255], 1 for [0, 1].

    A model that takes integers expects [0, 255]. If the first layers do not show the
    range, the function warns and states its assumption.
    """
    if any(not keras.backend.is_float_dtype(x.dtype) for x in model.inputs):
        return 255
    scalings = list(_scalings(model))
    active = [scaling for scaling in scalings if scaling.is_active] or scalings
    found = {scaling.input_max() for scaling in active}
    result = max(found, default=1)
    doubts = [f"{x.operation.name!r} {x.doubt()}" for x in active if x.doubt()]
    if not scalings:
        doubts = ["the model does not scale its images"]
    if len(found) > 1:
        names = ", ".join(repr(scaling.operation.name) for scaling in active)
        doubts = [f"of its first layers, {names}, some are for [0, 1], others [0, 255]"]
    if doubts:
        warnings.warn(
            f"Model {model.name!r} does not show whether its images have values in "
            f"[0, 255] or [0, 1]: {'; '.join(dict.fromkeys(doubts))}. Assumed: [0, "
            f"{result}]. To make it clear, begin the model with "
            "keras.layers.Rescaling.",
            stacklevel=1,  # always the same line, so that it is shown once
        )
    return result
