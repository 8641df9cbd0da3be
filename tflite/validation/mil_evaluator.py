"""Runs the program of a Core ML package in NumPy, on any machine.

coremltools predicts on macOS only. This knows the operations that
`tflite.formats.coreml.mil_ops` makes, and no other. It computes in float32 and rounds what
an operation returns to the type that the program declares, which is what hardware with
float16 maps and wider sums does; Core ML's own sums may be narrower.
"""

import math
from collections.abc import Callable

import numpy as np

from tflite.validation.mil_reader import Operation, Program, read_program, unpack_bits
from tflite.formats.coreml.nms import to_corners

HALF_PIXEL = "UNALIGN_CORNERS"
OVERFLOW = 65520  # from here on, the nearest float16 is infinite


def _padding(mode: str, pad, sizes, kernel, strides, dilations):
    """Returns what is added before and after height and width."""
    if mode == "valid":
        return (0, 0), (0, 0)
    if mode == "custom":
        return tuple(pad[:2]), tuple(pad[2:])
    if mode != "same":
        raise ValueError(f"Padding {mode!r} is not known here.")
    sides = []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations):
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        sides.append((total // 2, total - total // 2))
    return tuple(sides)


def _conv(x, weight, strides, pad_type, dilations, groups, bias=None, pad=()):
    """A sum over the taps of the kernel: a product of matrices each, or of channels."""
    _, channels, *sizes = x.shape
    outputs, inputs, *kernel = weight.shape
    if groups not in (1, channels) or (groups > 1 and inputs != 1):
        raise ValueError(f"A convolution in {groups} groups is not known here.")
    padding = _padding(str(pad_type), pad, sizes, kernel, strides, dilations)
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    height, width = (
        (side - (taps - 1) * dilation - 1) // stride + 1
        for side, taps, dilation, stride in zip(x.shape[2:], kernel, dilations, strides)
    )
    y = np.zeros((1, outputs, height, width), np.float32)
    for row, column in np.ndindex(*kernel):
        top, left = row * dilations[0], column * dilations[1]
        bottom = top + (height - 1) * strides[0] + 1
        right = left + (width - 1) * strides[1] + 1
        pixels = x[:, :, top : bottom : strides[0], left : right : strides[1]]
        tap = weight[:, :, row, column]
        if groups == 1:
            product = tap @ pixels.reshape(channels, -1)
            y += product.reshape(y.shape)
        else:
            pixels = np.repeat(pixels, outputs // channels, axis=1)
            y += pixels * tap[:, 0, None, None]
    return y if bias is None else y + bias[:, None, None]


def _linear(x, weight, bias=None):
    y = x @ weight.T
    return y if bias is None else y + bias


def _matmul(x, y, transpose_x=False, transpose_y=False):
    x = x.swapaxes(-1, -2) if transpose_x else x
    return x @ (y.swapaxes(-1, -2) if transpose_y else y)


def _einsum(values, equation):
    if str(equation) != "nchw,nwhu->nchu":
        raise ValueError(f"The sum {equation} is not known here.")
    x, y = (value.transpose(0, 2, 1, 3) for value in values)  # [n, h, ...]
    return (x @ y).transpose(0, 2, 1, 3)


def _softmax(x, axis):
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))  # which never overflows


def _layer_norm(x, axes, epsilon, gamma=None, beta=None):
    (axis,) = axes
    centred = x - x.mean(axis, keepdims=True)
    variance = np.mean(centred**2, axis, keepdims=True)
    y = centred / np.sqrt(variance + np.float32(epsilon))
    shape = [1] * x.ndim
    shape[axis] = -1
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def _reduce_mean(x, axes, keep_dims):
    return x.mean(tuple(axes), keepdims=bool(keep_dims))


def _reshape(x, shape):
    return x.reshape([int(side) for side in shape])


def _pixel_unshuffle(x, downscale_factor):
    patch = int(downscale_factor)
    _, channels, height, width = x.shape
    rows, columns = height // patch, width // patch
    x = x.reshape(channels, rows, patch, columns, patch)
    return x.transpose(0, 2, 4, 1, 3).reshape(1, -1, rows, columns)


def _pixel_shuffle(x, upscale_factor):
    patch = int(upscale_factor)
    _, channels, rows, columns = x.shape
    x = x.reshape(-1, patch, patch, rows, columns).transpose(0, 3, 1, 4, 2)
    return x.reshape(1, channels // patch**2, rows * patch, columns * patch)


def _resize_side(x, axis: int, size: int):
    """Interpolates linearly along an axis, with half-pixel centres."""
    old = x.shape[axis]
    position = (np.arange(size, dtype=np.float32) + 0.5) * (old / size) - 0.5
    position = np.clip(position, 0, old - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, old - 1)
    shape = [1] * x.ndim
    shape[axis] = size
    part = (position - low).astype(np.float32).reshape(shape)
    return x.take(low, axis) * (1 - part) + x.take(high, axis) * part


def _resize_bilinear(x, target_size_height, target_size_width, sampling_mode):
    if str(sampling_mode) != HALF_PIXEL:
        raise ValueError(f"Sampling {sampling_mode} is not known here.")
    x = _resize_side(x, 2, int(target_size_height))
    return _resize_side(x, 3, int(target_size_width))


def _resize(x, shape, resized_dims, interpolation_mode, sampling_mode):
    if str(interpolation_mode) != "LINEAR" or int(resized_dims) != 2:
        raise ValueError("Only maps are resized here, and linearly.")
    return _resize_bilinear(x, *shape[-2:], sampling_mode)


def _reduce_argmax(x, axis, keep_dims, output_dtype="int32"):
    if str(output_dtype) != "int32":
        raise ValueError(f"Positions as {output_dtype} are not known here.")
    return x.argmax(int(axis), keepdims=bool(keep_dims)).astype(np.int32)


def _slice(x, begin, end, begin_mask=None, end_mask=None):
    """Takes a part of each axis; where a mask is true, from its start or to its end."""
    nothing = [False] * x.ndim
    masks = (nothing if mask is None else mask for mask in (begin_mask, end_mask))
    return x[
        tuple(
            slice(None if from_start else int(first), None if to_end else int(last))
            for first, last, from_start, to_end in zip(begin, end, *masks)
        )
    ]


def _split(x, axis, num_splits=None, split_sizes=None):
    if split_sizes is not None:
        return np.split(x, np.cumsum(split_sizes)[:-1], int(axis))
    return np.split(x, int(num_splits), int(axis))


def _pad(x, pad, mode, constant_val):
    if str(mode) != "constant":
        raise ValueError(f"Padding {mode} is not known here.")
    sides = [(0, 0)] * (x.ndim - len(pad) // 2) + list(np.reshape(pad, (-1, 2)))
    return np.pad(x, sides, constant_values=constant_val)


def _affine_dequantize(quantized_data, scale, zero_point, axis):
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1
    scale, zero_point = (
        np.asarray(values, np.float32).reshape(shape if np.size(values) > 1 else ())
        for values in (scale, zero_point)
    )
    return (quantized_data.astype(np.float32) - zero_point) * scale


def _lut_to_dense(indices, lut, shape=None):
    if shape is None:  # since iOS 18
        *groups, entries, length = lut.shape
        if math.prod(groups) * length != 1:
            raise ValueError("Only one table of numbers a kernel is known here.")
        return lut.reshape(entries)[indices]
    count = math.prod(int(side) for side in shape)
    return lut[unpack_bits(indices, int(np.log2(len(lut))), count)].reshape(shape)


def _shift_scale(data, scale, offset=None):
    """One scale for each block of the data; here, for each output channel."""
    data = data.astype(np.float32)
    for axis, (side, blocks) in enumerate(zip(data.shape, scale.shape)):
        scale = np.repeat(scale, side // blocks, axis)
        offset = None if offset is None else np.repeat(offset, side // blocks, axis)
    return (data if offset is None else data - offset) * scale


def _classify(probabilities, classes):
    best = classes[int(probabilities.argmax())]
    return best, dict(zip(classes, probabilities.ravel()))


OPERATIONS: dict[str, Callable] = {
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: x,  # rounded below, as everything is
    "classify": _classify,
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "concat": lambda values, axis, interleave=False: np.concatenate(values, int(axis)),
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _shift_scale,
    "constexpr_lut_to_dense": _lut_to_dense,
    "conv": _conv,
    "einsum": _einsum,
    "exp": lambda x: np.exp(x),
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "floor_div": lambda x, y: x // y,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "reduce_argmax": _reduce_argmax,
    "reduce_mean": _reduce_mean,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "reshape": _reshape,
    "resize": _resize,
    "resize_bilinear": _resize_bilinear,
    "shape": lambda x: np.array(x.shape, np.int32),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "slice_by_index": _slice,
    "softmax": _softmax,
    "split": _split,
    "squeeze": lambda x, axes: np.squeeze(x, tuple(axes)),
    "sub": lambda x, y: x - y,
    "transpose": lambda x, perm: x.transpose(perm),
}


def unknown_operations(program: Program) -> list[str]:
    """Returns the kinds of operations that cannot be evaluated."""
    return sorted({o.kind for o in program.operations} - set(OPERATIONS))


def round_to_half(x: np.ndarray) -> np.ndarray:
    """Rounds float32 to the nearest float16, ties to even, twenty times faster than
    NumPy's own conversion there and back.
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    # float32 has 13 bits more; half of their range, less one before an even number.
    rounded = (bits + (0xFFF + ((bits >> 13) & 1))) & 0xFFFFE000
    y = rounded.view(np.float32)
    size = np.abs(x)
    if size.size and not size.max() < OVERFLOW:  # or not a number
        y = np.where(size < OVERFLOW, y, np.copysign(np.float32(np.inf), x))
        y = np.where(np.isnan(x), x, y)
    # Below its smallest normal number float16 has steps of 2**-24, as float32 has
    # between 0.5 and 1.
    fine = size < np.float32(2**-14)
    return np.where(fine, (x + np.float32(0.75)) - np.float32(0.75), y)


def _rounded(value, dtype):
    """Rounds to the declared type; floats go on as float32, in which NumPy is fast."""
    if dtype is np.float16:
        return round_to_half(np.asarray(value, np.float32))
    return np.asarray(value, np.float32) if dtype is np.float32 else value


def _as_keras(value: np.ndarray) -> np.ndarray:
    """Takes the batch, which a class map has not, off an output; channels come last."""
    if np.issubdtype(value.dtype, np.integer):
        return value
    return np.moveaxis(value[0], 0, -1) if value.ndim == 4 else value[0]


class Evaluator:
    """A saved package that can be run.

    Args:
        package: path of the `.mlpackage`.

    Raises:
        ValueError: if it is none, or has an operation that is not known here.

    Example:
    >>> Evaluator("best_160_coreml.mlpackage").predict(images).shape
    (8, 10)
    """

    def __init__(self, package):
        self.program = read_program(package)
        unknown = unknown_operations(self.program)
        if unknown:
            raise ValueError(f"{package} has operations not known: {unknown}.")
        self.constants = {}
        for name, value in self.program.constants.items():
            dtype = value.dtype.type
            self.constants[name] = _rounded(value, dtype)
        self.operations = []
        for operation in self.program.operations:
            if operation.kind.startswith("constexpr"):
                self._run(operation, self.constants)
            else:
                self.operations.append(operation)

    def _run(self, operation: Operation, values: dict) -> None:
        arguments = {}
        for name, given in operation.inputs.items():
            if isinstance(given, np.ndarray):
                arguments[name] = given
            elif name == "values":
                arguments[name] = [values[source] for source in given]
            else:
                arguments[name] = values[given[0]]
        results = OPERATIONS[operation.kind](**arguments)
        if not isinstance(results, (list, tuple)):
            results = [results]
        for name, dtype, result in zip(operation.outputs, operation.dtypes, results):
            values[name] = _rounded(result, dtype)

    def run(self, image) -> dict:
        """Runs one image.

        Args:
            image: `[height, width, 3]`, RGB, values in [0, 255].

        Returns:
            Every value of the program by name.
        """
        x = np.asarray(image, np.float32).transpose(2, 0, 1)[None]
        values = self.constants | {self.program.input: x}
        for operation in self.operations:
            self._run(operation, values)
        return values

    def _output_name(self, before_softmax: bool) -> str:
        """Finds the numbers behind a classifier's dictionary."""
        makers = {name: o for o in self.operations for name in o.outputs}
        operation = makers[self.program.outputs[0]]
        if operation.kind != "classify":
            return self.program.outputs[0]
        (name,) = operation.inputs["probabilities"]
        while before_softmax and makers[name].kind in ("cast", "softmax", "sigmoid"):
            before_softmax = makers[name].kind == "cast"
            (name,) = makers[name].inputs["x"]
        return name

    def predict(self, images, logits: bool = False) -> np.ndarray:
        """Runs images one by one.

        Args:
            images: `[images, height, width, 3]`, RGB, values in [0, 255].
            logits: of a classifier, what its last softmax takes, not what it returns.

        Returns:
            The outputs: of a classifier `[images, classes]`; of a segmenter integers
            `[images, height, width]`, or logits `[images, rows, columns, classes]`.
        """
        name = self._output_name(logits)
        return np.stack([_as_keras(self.run(image)[name]) for image in images])

    def predict_outputs(self, pixels) -> dict[str, np.ndarray]:
        """Runs a detector's images one by one, without non-maximum suppression.

        Args:
            pixels: uint8 `[images, height, width, 3]`, RGB.

        Returns:
            A dict: `boxes` `[images, anchors, 4]`, corners as fractions of the image,
            and `scores` `[images, anchors, classes]`.

        Raises:
            ValueError: if the package is no detector.
        """
        found = [self._boxes_and_scores(self.run(image)) for image in pixels]
        boxes, scores = (np.stack(values) for values in zip(*found))
        return {"boxes": boxes, "scores": scores}

    def _boxes_and_scores(self, values: dict) -> tuple[np.ndarray, np.ndarray]:
        """Finds a detector's corners `[anchors, 4]` and scores among its values."""
        suppression = self.program.suppression
        if suppression is not None:
            coordinates = values[suppression.coordinatesInputFeatureName]
            scores = values[suppression.confidenceInputFeatureName]
            # Behind the classes stand columns that only fill up.
            return to_corners(coordinates), scores[:, : len(self.program.classes)]
        if set(self.program.outputs) != {"boxes", "scores"}:
            raise ValueError(
                "The package is no detector. Expected the outputs boxes and scores, or "
                f"non-maximum suppression. Found: {', '.join(self.program.outputs)}."
            )
        return values["boxes"][0], values["scores"][0]
