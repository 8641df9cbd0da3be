"""The MIL operations that packages of this project use, in NumPy.

Each function takes the parameters of its operation by their names in MIL. A package
with another operation cannot be evaluated; to support one, add a row to `OPERATIONS`.
"""

import math
from collections.abc import Callable

import numpy as np

from tflite.validation.mil_reader import unpack_bits

HALF_PIXEL, ALIGN_CORNERS = "UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS"
OVERFLOW = 65520  # the smallest float32 that rounds to an infinite float16


def _padding(mode: str, pad, sizes, kernel, strides, dilations):
    """Returns the padding before and after each side of a map."""
    if mode == "valid":
        return (0, 0), (0, 0)
    if mode == "custom":
        return tuple(pad[:2]), tuple(pad[2:])
    if mode != "same":
        raise ValueError(f"Padding {mode!r} is not supported.")
    sides = []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations):
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        sides.append((total // 2, total - total // 2))
    return tuple(sides)


def _conv(x, weight, strides, pad_type, dilations, groups, bias=None, pad=()):
    """Sums over the kernel's taps, each a matrix product or a scaling of channels."""
    _, channels, *sizes = x.shape
    outputs, inputs, *kernel = weight.shape
    if groups not in (1, channels) or (groups > 1 and inputs != 1):
        raise ValueError(f"A convolution in {groups} groups is not supported.")
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


def _matmul(x, y, transpose_x=False, transpose_y=False):
    x = x.swapaxes(-1, -2) if transpose_x else x
    return x @ (y.swapaxes(-1, -2) if transpose_y else y)


def _einsum(values, equation):
    if str(equation) != "nchw,nwhu->nchu":
        raise ValueError(f"The equation {equation} is not supported.")
    x, y = (value.transpose(0, 2, 1, 3) for value in values)  # [n, h, ...]
    return (x @ y).transpose(0, 2, 1, 3)


def _softmax(x, axis):
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))  # tanh, unlike exp, cannot overflow


def _along(values, axis: int, x):
    """Shapes one number for each place on an axis so that it broadcasts to `x`."""
    return np.reshape(values, np.where(np.arange(x.ndim) == axis % x.ndim, -1, 1))


def _batch_norm(x, mean, variance, epsilon, gamma=1.0, beta=0.0):
    scale = gamma / np.sqrt(variance + np.float32(epsilon))
    return x * _along(scale, 1, x) + _along(beta - mean * scale, 1, x)


def _layer_norm(x, axes, epsilon, gamma=None, beta=None):
    axes = tuple(int(axis) % x.ndim for axis in axes)
    centered = x - x.mean(axes, keepdims=True)
    variance = np.mean(centered**2, axes, keepdims=True)
    y = centered / np.sqrt(variance + np.float32(epsilon))
    sides = [side if axis in axes else 1 for axis, side in enumerate(x.shape)]
    y = y if gamma is None else y * np.reshape(gamma, sides)
    return y if beta is None else y + np.reshape(beta, sides)


def _pixel_unshuffle(x, downscale_factor):
    patch = int(downscale_factor)
    _, channels, height, width = x.shape
    rows, columns = height // patch, width // patch
    x = x.reshape(channels, rows, patch, columns, patch)
    # [1, channels * patch**2, rows, columns]
    return x.transpose(0, 2, 4, 1, 3).reshape(1, -1, rows, columns)


def _pixel_shuffle(x, upscale_factor):
    patch = int(upscale_factor)
    _, channels, rows, columns = x.shape
    # [channels, rows, patch row, columns, patch column]
    x = x.reshape(-1, patch, patch, rows, columns).transpose(0, 3, 1, 4, 2)
    return x.reshape(1, channels // patch**2, rows * patch, columns * patch)


def _sampled_positions(old: int, size: int, sampling_mode) -> np.ndarray:
    """Returns where each place on a resized side reads the old side."""
    places = np.arange(size, dtype=np.float32)
    mode = str(sampling_mode)
    if mode == HALF_PIXEL:
        return np.clip((places + 0.5) * (old / size) - 0.5, 0, old - 1)
    if mode == ALIGN_CORNERS:
        return np.clip(places * ((old - 1) / max(size - 1, 1)), 0, old - 1)
    raise ValueError(f"Sampling {sampling_mode} is not supported.")


def _resize_side(x, axis: int, size: int, sampling_mode):
    """Interpolates linearly along an axis."""
    old = x.shape[axis]
    position = _sampled_positions(old, size, sampling_mode)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, old - 1)
    part = _along((position - low).astype(np.float32), axis, x)
    return x.take(low, axis) * (1 - part) + x.take(high, axis) * part


def _resize_bilinear(x, target_size_height, target_size_width, sampling_mode):
    x = _resize_side(x, 2, int(target_size_height), sampling_mode)
    return _resize_side(x, 3, int(target_size_width), sampling_mode)


def _resize(x, shape, resized_dims, interpolation_mode, sampling_mode):
    if str(interpolation_mode) != "LINEAR" or int(resized_dims) != 2:
        raise ValueError("Only maps are resized, and only linearly.")
    height, width = shape[-2:]
    return _resize_bilinear(x, height, width, sampling_mode)


def _reduce_argmax(x, axis, keep_dims, output_dtype="int32"):
    if str(output_dtype) != "int32":
        raise ValueError(f"Indices of type {output_dtype} are not supported.")
    return x.argmax(int(axis), keepdims=bool(keep_dims)).astype(np.int32)


def _slice(x, begin, end, begin_mask=None, end_mask=None):
    """Slices each axis; where a mask is true, from the start or to the end."""
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
        raise ValueError(f"Padding {mode} is not supported.")
    sides = [(0, 0)] * (x.ndim - len(pad) // 2) + list(np.reshape(pad, (-1, 2)))
    return np.pad(x, sides, constant_values=constant_val)


def _affine_dequantize(quantized_data, scale, zero_point, axis):
    data = quantized_data.astype(np.float32)
    scale, zero_point = (
        _along(np.asarray(values, np.float32), int(axis), data)
        for values in (scale, zero_point)
    )
    return (data - zero_point) * scale


def _lut_to_dense(indices, lut, shape=None):
    if shape is None:  # as iOS 18 and later have it
        *groups, entries, length = lut.shape
        if math.prod(groups) * length != 1:
            raise ValueError("Only one table of scalars per kernel is supported.")
        return lut.reshape(entries)[indices]
    count = math.prod(int(side) for side in shape)
    return lut[unpack_bits(indices, int(np.log2(len(lut))), count)].reshape(shape)


def _shift_scale(data, scale, offset=None):
    """Applies one scale to each block of the data; here, to each output channel."""
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
    "batch_norm": _batch_norm,
    "cast": lambda x, dtype: x,  # the evaluator rounds every output
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
    "linear": lambda x, weight, bias=0: x @ weight.T + bias,
    "matmul": _matmul,
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "reduce_argmax": _reduce_argmax,
    "reduce_mean": lambda x, axes, keep_dims: x.mean(
        tuple(axes), keepdims=bool(keep_dims)
    ),
    "reduce_sum": lambda x, axes, keep_dims: x.sum(
        tuple(axes), keepdims=bool(keep_dims)
    ),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "reshape": lambda x, shape: x.reshape([int(side) for side in shape]),
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


def round_to_half(x: np.ndarray) -> np.ndarray:
    """Rounds float32 to the nearest float16, ties to even, and returns float32.

    This takes a twentieth of the time of NumPy's conversion to float16 and back.
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    # float32 has 13 more bits. Adding half of their range rounds up; one less before
    # an even number sends ties down.
    rounded = (bits + (0xFFF + ((bits >> 13) & 1))) & 0xFFFFE000
    y = rounded.view(np.float32)
    size = np.abs(x)
    if size.size and not size.max() < OVERFLOW:  # too large, or NaN
        y = np.where(size < OVERFLOW, y, np.copysign(np.float32(np.inf), x))
        y = np.where(np.isnan(x), x, y)
    # Below its smallest normal number float16 has steps of 2**-24. float32 has the same
    # steps between 0.5 and 1.
    is_subnormal = size < np.float32(2**-14)
    return np.where(is_subnormal, (x + np.float32(0.75)) - np.float32(0.75), y)
