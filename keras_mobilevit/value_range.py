"""Whether a model takes images with values in [0, 255] or in [0, 1].

What a model does first with its images tells it: `Rescaling(1 / 255)`, `x / 127.5 - 1`
or a normalization by the mean of 123 is for [0, 255], one by the mean of 0.45 is for
[0, 1]. Layers in front that only move pixels, or do nothing at inference, tell nothing.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator

import keras
import numpy as np
from keras import layers

from keras_mobilevit.calls import Call, Value, list_calls


def _types(*names: str) -> frozenset[type]:
    """Returns layers by their names, those that this version of Keras has."""
    return frozenset(getattr(layers, n) for n in names if hasattr(layers, n))


# What returns its input at inference.
IDENTITIES = _types(
    "ActivityRegularization",
    "AlphaDropout",
    "AugMix",
    "CutMix",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "MixUp",
    "RandAugment",
    "RandomBrightness",
    "RandomColorDegeneration",
    "RandomColorJitter",
    "RandomContrast",
    "RandomElasticTransform",
    "RandomErasing",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHue",
    "RandomInvert",
    "RandomPerspective",
    "RandomPosterization",
    "RandomRotation",
    "RandomSaturation",
    "RandomSharpness",
    "RandomShear",
    "RandomTranslation",
    "RandomZoom",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
)
# What returns values of the same range: it moves, joins, averages or repeats pixels.
_MOVES = IDENTITIES | _types(
    "AutoContrast",
    "AveragePooling2D",
    "CLAHE",
    "CenterCrop",
    "Concatenate",
    "Cropping2D",
    "Equalization",
    "Flatten",
    "MaxPooling2D",
    "Permute",
    "RandomCrop",
    "Reshape",
    "Resizing",
    "Solarization",
    "UpSampling2D",
    "ZeroPadding2D",
)
# The same of operations, which have no public type.
_MOVING_OPERATIONS = (
    "BroadcastTo",
    "Cast",
    "Concatenate",
    "Copy",
    "CropImages",
    "ExpandDims",
    "Flip",
    "GetItem",
    "Identity",
    "Mean",
    "Moveaxis",
    "Pad",
    "PadImages",
    "RGBToGrayscale",
    "Repeat",
    "Reshape",
    "Resize",
    "Squeeze",
    "Stack",
    "Tile",
    "Transpose",
)


def per_channel(values) -> np.ndarray | None:
    """Returns numbers for each channel, or for all, in float64.

    Args:
        values: a number, or an array whose last axis is the channels.

    Returns:
        An array `[channels]` or `[]`; `None` if they differ along another axis too.
    """
    values = np.asarray(keras.ops.convert_to_numpy(values), np.float64)
    if values.ndim and values.size != values.shape[-1]:
        return None
    return values.reshape(values.shape[-1:])


def _of_rescaling(layer):
    return per_channel(layer.scale), per_channel(layer.offset)


def _of_normalization(layer):
    mean, variance = per_channel(layer.mean), per_channel(layer.variance)
    if mean is None:
        return None, None
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    return (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)


# `x + 1` and `x * 2` are no layers and have no public type. By their name, from the
# number to scale and offset: where it is the second argument, and where the first.
_OPERATORS: dict[str, tuple[Callable | None, Callable | None]] = {
    "Add": (lambda n: (1.0, n), lambda n: (1.0, n)),
    "Divide": (lambda n: (1 / n, 0.0), None),
    "Multiply": (lambda n: (n, 0.0), lambda n: (n, 0.0)),
    "Subtract": (lambda n: (1.0, -n), lambda n: (-1.0, n)),
    "TrueDivide": (lambda n: (1 / n, 0.0), None),
}


def _of_operator(call: Call):
    forms = _OPERATORS.get(type(call.operation).__name__)
    if not forms or call.kwargs or len(call.args) != 2:
        return None, None
    if not keras.backend.is_float_dtype(call.operation.output.dtype):
        return None, None
    is_value = [isinstance(argument, Value) for argument in call.args]
    if sum(is_value) != 1:
        return None, None
    number, form = (call.args[1], forms[0]) if is_value[0] else (call.args[0], forms[1])
    number = per_channel(number)
    if form is None or number is None:
        return None, None
    return tuple(np.asarray(x, np.float64) for x in form(number))


def _numbers_of(call: Call) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns scale and offset of a call, also of one that makes new channels."""
    if type(call.operation) is layers.Rescaling:
        found = _of_rescaling(call.operation)
    elif type(call.operation) is layers.Normalization:
        found = _of_normalization(call.operation)
    elif not isinstance(call.operation, layers.Layer):
        found = _of_operator(call)
    else:
        return None
    return None if any(x is None for x in found) else found


def scale_and_offset(call: Call) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns what a call multiplies by and adds, if that is all that it does.

    Args:
        call: of `Rescaling`, `Normalization`, or an operator between a tensor and
            numbers, such as `x / 127.5`.

    Returns:
        Scale and offset, each `[channels]` or `[]`, or `None`.
    """
    found = _numbers_of(call)
    if found is None:
        return None
    given, returned = call.operation.input.shape, call.operation.output.shape
    keeps_shape = tuple(given) == tuple(returned)
    keeps_shape &= {x.size for x in found} <= {1, given[-1]}
    return found if keeps_shape else None


def is_identity(call: Call) -> bool:
    """Tells whether a call returns its one input at inference."""
    if len(call.inputs) != 1:
        return False
    if isinstance(call.operation, layers.Layer):
        return type(call.operation) in IDENTITIES
    is_one = type(call.operation).__name__ in ("Cast", "Identity", "Copy")
    return is_one and call.operation.output.dtype == "float32"


# The range ---------------------------------------------------------------------------

# Pixels are centered by 0.3 to 0.6, or by 80 to 150, and divided by 0.2 to 1, or by 50
# to 255. What is between these limits, or far beyond them, is of neither range.
_HIGHEST_CENTER, _SPREADS = 2.0, (2.0, 32.0)
_CENTERS, _WIDEST = (-1e-3, 300.0), 1024.0


@dataclasses.dataclass(frozen=True)
class _Sign:
    """How a model scales its images: `(x - center) / spread`.

    Attributes:
        center, spread: means over the channels.
        by: name of the layer or operation that does it, or the last of several.
        is_measured: whether they are the mean and deviation of images.
    """

    center: float
    spread: float
    by: str
    is_measured: bool

    @property
    def is_told(self) -> bool:
        """Whether it does anything to the images."""
        return (self.center, self.spread) != (0.0, 1.0)

    def doubt(self) -> str | None:
        """Returns why the numbers are of neither range, if they are not."""
        low, high = _SPREADS
        numbers = f"center {self.center:.3g}, spread {self.spread:.3g}"
        if not self.is_told:
            return "has not been adapted or trained" if self.is_measured else None
        if self.is_measured and self.center <= _CENTERS[0]:
            return f"was adapted to values below 0 ({numbers})"
        if self.center > _CENTERS[1] or self.spread > _WIDEST:
            return f"is for values far above 255 ({numbers})"
        if self.center <= _HIGHEST_CENTER and low < self.spread < high:
            return f"fits neither [0, 1] nor [0, 255] ({numbers})"
        return None

    def input_max(self) -> int:
        low, high = _SPREADS
        is_wide = self.spread > (low * high) ** 0.5
        return 255 if is_wide or self.center > _HIGHEST_CENTER else 1


def _measured(layer, scale: float, offset: float) -> _Sign:
    """Returns the sign of a batch normalization of `scale * x + offset`."""
    mean, variance = (
        float(np.mean(keras.ops.convert_to_numpy(x)))
        for x in (layer.moving_mean, layer.moving_variance)
    )
    if (mean, variance) == (0.0, 1.0):  # untrained
        return _Sign(-offset / scale, 1 / abs(scale), layer.name, True)
    deviation = max(variance, 1e-12) ** 0.5
    return _Sign((mean - offset) / scale, deviation / abs(scale), layer.name, True)


def _signs(model: keras.Model) -> Iterator[_Sign]:
    """Yields how a model scales its images, at each place where that ends."""
    listed = list_calls(model)
    # What is known to be `scale * image + offset`, and by which layer.
    scaled = {value: (1.0, 0.0, None) for value in listed.inputs}
    for call in listed.calls:
        found = [scaled[value] for value in call.inputs if value in scaled]
        if not found:
            continue
        scale, offset, by = found[0]
        operation, own = call.operation, _numbers_of(call)
        if own is not None:
            own_scale, own_offset = (float(np.mean(x)) for x in own)
            if not own_scale:
                continue
            scaled[call.outputs[0]] = (
                scale * own_scale,
                offset * own_scale + own_offset,
                operation,
            )
        elif is_identity(call) or _moves_pixels(operation):
            scaled |= dict.fromkeys(call.outputs, found[0])
            ended = [other for other in found[1:] if other[:2] != found[0][:2]]
            yield from _signs_of(ended)
        elif isinstance(operation, layers.BatchNormalization):
            yield _measured(operation, scale, offset)
        else:
            yield from _signs_of(found)
    yield from _signs_of([scaled[value] for value in listed.outputs if value in scaled])


def _signs_of(ended: list[tuple]) -> Iterator[_Sign]:
    """Yields the signs of scaled images that are not scaled any further."""
    for scale, offset, by in ended:
        if by is not None:
            is_measured = isinstance(by, layers.Normalization)
            yield _Sign(-offset / scale, 1 / abs(scale), by.name, is_measured)


def _moves_pixels(operation) -> bool:
    if type(operation) in _types("Pipeline"):
        return all(map(_moves_pixels, operation.layers))
    if isinstance(operation, layers.Layer):
        return type(operation) in _MOVES
    return type(operation).__name__ in _MOVING_OPERATIONS


def input_max(model: keras.Model) -> int:
    """Returns the largest value of an image that a model takes.

    Where the model's first layers leave it open, this warns and says what it assumes.

    Args:
        model: functional or sequential, also with such models as layers.

    Returns:
        255 if the model scales images with values in [0, 255] itself, as
        `include_preprocessing=True` makes it, or takes integers; otherwise 1.
    """
    if any(not keras.backend.is_float_dtype(x.dtype) for x in model.inputs):
        return 255
    signs = list(_signs(model))
    told = [sign for sign in signs if sign.is_told] or signs
    found = {sign.input_max() for sign in told}
    largest = max(found, default=1)
    doubts = [f"{s.by!r} {s.doubt()}" for s in told if s.doubt()]
    if not signs:
        doubts = ["it does not scale them"]
    if len(found) > 1:
        names = ", ".join(repr(sign.by) for sign in told)
        doubts = [f"of its first layers, {names}, some are for [0, 1], others [0, 255]"]
    if doubts:
        warnings.warn(
            f"Model {model.name!r} does not tell whether its images have values in "
            f"[0, 255] or [0, 1]: {'; '.join(dict.fromkeys(doubts))}. Assumed: [0, "
            f"{largest}]. To be sure, begin the model with keras.layers.Rescaling.",
            stacklevel=1,  # one place, so that it is shown once
        )
    return largest
