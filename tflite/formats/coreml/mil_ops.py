"""The operations of a `Graph` in MIL, the language of Core ML's ML Programs.

Maps are channels first, `[1, channels, height, width]`. Operations on tokens depend on
the layout of the tokens in memory, see `LAYOUTS`. MobileViTv2's tokens have an axis for
the image and are a map in every layout, `[1, channels, pixels of a patch, patches]`. No
tensor has a rank above 4. The sides of maps are numbers, or symbols in a program for
images of several sizes.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb

from tflite.graph.graph import Node
from tflite.graph.rewrites import batch_norm_scale

SIDES = (2, 3)  # axes of a map's height and width
# How Core ML places the pixels of a resized map, by whether corners are aligned.
SAMPLING = {False: "UNALIGN_CORNERS", True: "STRICT_ALIGN_CORNERS"}


def _constant(values) -> np.ndarray:
    return np.asarray(values, np.float32)


def _bias(node: Node) -> np.ndarray | None:
    return _constant(node.weights["bias"]) if "bias" in node.weights else None


def _is_static(x) -> bool:
    return all(isinstance(side, (int, np.integer)) for side in x.shape)


def _channel_axis(x) -> int:
    return 1 if len(x.shape) == 4 else -1


def per_channel(x, values) -> np.ndarray:
    """Reshapes a scalar, or one number per channel, so that it broadcasts to `x`."""
    values = _constant(values)
    return values.reshape(-1, 1, 1) if values.ndim and len(x.shape) == 4 else values


def _scale_channels(x, scale, offset):
    if np.any(scale != 1):
        x = mb.mul(x=x, y=per_channel(x, scale))
    return mb.add(x=x, y=per_channel(x, offset)) if np.any(offset) else x


def _conv_padding(options: dict) -> dict:
    padding = options["padding"]
    if isinstance(padding, str):
        return {"pad_type": padding.lower()}
    return {"pad_type": "custom", "pad": np.ravel(padding)}


def _convolve(node: Node, x, weight, groups: int = 1):
    return mb.conv(
        x=x,
        weight=_constant(weight),
        bias=_bias(node),
        strides=node.options["strides"],
        dilations=node.options["dilations"],
        groups=groups,
        **_conv_padding(node.options),
        name=node.name,
    )


def _conv(node: Node, x):
    return _convolve(node, x, node.weights["kernel"].transpose(3, 2, 0, 1))


def _depthwise(node: Node, x):
    kernel = node.weights["kernel"]  # [height, width, channels, multiplier]
    channels = kernel.shape[2]
    weight = kernel.transpose(2, 3, 0, 1).reshape(-1, 1, *kernel.shape[:2])
    return _convolve(node, x, weight, channels)


def _linear(node: Node, x):
    weight = _constant(node.weights["kernel"].T)
    return mb.linear(x=x, weight=weight, bias=_bias(node), name=node.name)


def _dense(node: Node, x):
    """Combines the channels of each pixel or token: of a map, by a 1x1 convolution."""
    if len(x.shape) != 4:
        return _linear(node, x)
    options = {"strides": (1, 1), "padding": "VALID", "dilations": (1, 1)}
    kernel = Node(node.name, "conv", (), node.weights, options)
    return _convolve(kernel, x, node.weights["kernel"].T[:, :, None, None])


def _layer_norm(node: Node, x):
    weights = {name: _constant(values) for name, values in node.weights.items()}
    return mb.layer_norm(
        x=x,
        axes=[_channel_axis(x)],
        epsilon=np.float32(node.options["epsilon"]),
        **weights,
        name=node.name,
    )


def _image_norm(node: Node, x):
    """Normalizes all numbers of an image together.

    Core ML's gamma and beta would be as large as the map. So a scale and offset of
    channels, if the rewrites left them, are operations of their own.
    """
    y = mb.layer_norm(
        x=x,
        axes=list(range(1, len(x.shape))),
        epsilon=np.float32(node.options["epsilon"]),
        name=node.name,
    )
    weights = {"gamma": 1.0, "beta": 0.0} | node.weights
    return _scale_channels(y, weights["gamma"], weights["beta"])


def _context(node: Node, scores, tokens):
    """Averages tokens `[1, channels, P, N]`, weighted with their scores' softmax.

    The scores are `[1, 1, P, N]`, and the averages `[1, channels, P, 1]`.
    """
    weighted = mb.mul(x=tokens, y=mb.softmax(x=scores, axis=-1))
    return mb.reduce_sum(x=weighted, axes=[-1], keep_dims=True, name=node.name)


def _pad(node: Node, x):
    sides = np.ravel(node.options["padding"])
    return mb.pad(x=x, pad=[0, 0, 0, 0, *sides], mode="constant", constant_val=0.0)


def _reshape(node: Node, x):
    """Reshapes a map or rows to rows: `[1, rows, numbers]` or `[1, numbers]`.

    The numbers are in Keras's order, in which channels are last.
    """
    shape = node.options["shape"]
    if len(shape) > 2:
        raise ValueError(
            f"Layer {node.name!r} reshapes to a map of {shape}, which is not supported "
            "for Core ML. Expected rows of numbers: (rows, numbers) or (numbers,)."
        )
    if len(x.shape) == 4:
        x = mb.transpose(x=x, perm=(0, 2, 3, 1))
    return mb.reshape(x=x, shape=(1, *shape), name=node.name)


def _slice_channels(node: Node, x):
    """Slices the last axis of `[1, rows, numbers]`."""
    return mb.slice_by_index(
        x=x,
        begin=[0, 0, node.options["start"]],
        end=[0, 0, node.options["stop"]],
        begin_mask=[True, True, False],
        end_mask=[True, True, False],
        name=node.name,
    )


ACTIVATIONS = {
    "linear": lambda x, name: x,
    "relu": mb.relu,
    "relu6": mb.relu6,
    "sigmoid": mb.sigmoid,
    "silu": mb.silu,
}


def _activation(node: Node, x):
    function = node.options["function"]
    if function == "softmax":
        return mb.softmax(x=x, axis=_channel_axis(x), name=node.name)
    if function not in ACTIVATIONS:
        raise ValueError(
            f"Layer {node.name!r} has the activation {function!r}, which is not "
            "supported for Core ML. Expected one of: "
            f"{', '.join(ACTIVATIONS)}, softmax."
        )
    return ACTIVATIONS[function](x=x, name=node.name)


# Patches ------------------------------------------------------------------------------


def _sides(x):
    """Returns a map's `[height, width]` as numbers; a tensor if they are symbols."""
    if _is_static(x):
        return np.array(x.shape[2:], np.int32)
    return mb.slice_by_index(x=mb.shape(x=x), begin=[2], end=[4])


def _patch_counts(x, patch: int):
    """Returns `[rows, columns]` of the patches that cover a map."""
    sides = _sides(x)
    if isinstance(sides, np.ndarray):
        return -(-sides // patch)
    return mb.floor_div(x=mb.add(x=sides, y=np.int32(patch - 1)), y=np.int32(patch))


def _times(counts, patch: int):
    if isinstance(counts, np.ndarray):
        return counts * patch
    return mb.mul(x=counts, y=np.int32(patch))


def _resize(x, sides, align_corners: bool = False):
    """Resizes a map bilinearly, as `tflite.graph.tf_ops` does."""
    if not isinstance(sides, np.ndarray):  # since iOS 17
        return mb.resize(
            x=x,
            shape=sides,
            resized_dims=np.uint32(2),
            interpolation_mode="LINEAR",
            sampling_mode=SAMPLING[align_corners],
        )
    if tuple(sides) == x.shape[2:]:
        return x
    return mb.resize_bilinear(
        x=x,
        target_size_height=sides[0],
        target_size_width=sides[1],
        sampling_mode=SAMPLING[align_corners],
    )


def _resizes(node: Node, features) -> bool:
    """Tells whether the map may need resizing; a node marks it if sides are symbols."""
    return _is_static(features) or "resizes" in node.options


def _resize_to_multiple(node: Node, x):
    if not _resizes(node, x):
        return x
    patch = node.options["patch_size"]
    return _resize(x, _times(_patch_counts(x, patch), patch), align_corners=True)


def _to_patches(node: Node, x, *batch: int):
    """Cuts a map into patches, `[*batch, channels, patch**2, patches]`."""
    patch, channels = node.options["patch_size"], x.shape[1]
    if _resizes(node, x):
        x = _resize(x, _times(_patch_counts(x, patch), patch))
    # [1, channels * patch**2, rows, columns]
    x = mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(patch))
    return mb.reshape(x=x, shape=(*batch, channels, patch**2, -1))


def _to_map(node: Node, x, features):
    """Puts the patches of `_to_patches` back into a map as large as `features`."""
    patch, channels = node.options["patch_size"], x.shape[-3]
    counts = _patch_counts(features, patch)
    if isinstance(counts, np.ndarray):
        shape = (1, channels * patch**2, *counts)
    else:
        x = mb.reshape(x=x, shape=(1, channels * patch**2, -1))
        start = np.array([1, channels * patch**2], np.int32)
        shape = mb.concat(values=[start, counts], axis=0)
    x = mb.reshape(x=x, shape=shape)  # [1, channels * patch**2, rows, columns]
    x = mb.pixel_shuffle(x=x, upscale_factor=np.int32(patch))
    return _resize(x, _sides(features)) if _resizes(node, features) else x


def _best_class(node: Node, x):
    """Returns the best class of each pixel of `[1, classes, height, width]`, int32."""
    # A squeeze after the argmax would cast the integers to 16 bits and back.
    x = mb.squeeze(x=x, axes=[0])
    return mb.reduce_argmax(x=x, axis=0, keep_dims=False, name=node.name)


# The layout "tokens": [pixels of a patch, patches, channels]. -------------------------


def _unfold(node: Node, x):
    if node.options["per_image"]:
        return _ane_unfold(node, x)
    x = _to_patches(node, x)
    return mb.transpose(x=x, perm=(1, 2, 0), name=node.name)


def _fold(node: Node, tokens, features):
    if len(tokens.shape) == 3:
        tokens = mb.transpose(x=tokens, perm=(2, 0, 1))  # [channels, P, N]
    return _to_map(node, tokens, features)


def _attention(node: Node, query, key, value):
    pixels, _, channels = query.shape
    num_heads = node.options["num_heads"]
    head_dim = channels // num_heads

    def split_heads(x):
        x = mb.reshape(x=x, shape=(pixels, -1, num_heads, head_dim))
        return mb.transpose(x=x, perm=(0, 2, 1, 3))  # [P, heads, N, head_dim]

    if not node.options["scaled"]:
        query = mb.mul(x=query, y=np.float32(head_dim**-0.5))
    query, key, value = (split_heads(x) for x in (query, key, value))
    scores = mb.matmul(x=query, y=key, transpose_y=True)  # [P, heads, N, N]
    x = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=value)
    x = mb.transpose(x=x, perm=(0, 2, 1, 3))
    return mb.reshape(x=x, shape=(pixels, -1, channels), name=node.name)


# The layout "ane": [1, channels, pixels of a patch, patches]. -------------------------
# Apple, "Deploying Transformers on the Apple Neural Engine" (2022): channels are first
# and the longest axis is last, 1x1 convolutions replace linear layers, each head has a
# product of its own, and only the keys are transposed.


def _ane_unfold(node: Node, x):
    return _to_patches(node, x, 1)


def _ane_attention(node: Node, query, key, value):
    num_heads = node.options["num_heads"]
    if not node.options["scaled"]:
        scale = (query.shape[1] // num_heads) ** -0.5
        query = mb.mul(x=query, y=np.float32(scale))
    key = mb.transpose(x=key, perm=(0, 3, 2, 1))  # [1, N, P, channels]
    queries, values = (
        mb.split(x=x, num_splits=num_heads, axis=1) for x in (query, value)
    )
    keys = mb.split(x=key, num_splits=num_heads, axis=3)
    heads = []
    for query, key, value in zip(queries, keys, values):
        # Sums over channels for each pixel of a patch: [1, keys, P, queries].
        scores = mb.einsum(values=(key, query), equation="nchw,nwhu->nchu")
        weights = mb.softmax(x=scores, axis=1)
        heads.append(mb.einsum(values=(value, weights), equation="nchw,nwhu->nchu"))
    return mb.concat(values=heads, axis=1, name=node.name)


OPERATIONS: dict[str, Callable] = {
    "activation": _activation,
    "add": lambda node, *inputs: functools.reduce(
        lambda x, y: mb.add(x=x, y=y), inputs
    ),
    "batch_norm": lambda node, x: _scale_channels(
        x, *batch_norm_scale(**node.weights, **node.options)
    ),
    "best_class": _best_class,
    "concat": lambda node, *x: mb.concat(
        values=x, axis=_channel_axis(x[0]), name=node.name
    ),
    "context": _context,
    "conv": _conv,
    "dense": _dense,
    "depthwise": _depthwise,
    "global_average": lambda node, x: mb.reduce_mean(
        x=x, axes=SIDES, keep_dims=node.options["keepdims"], name=node.name
    ),
    "image_norm": _image_norm,
    "join_tokens": lambda node, *x: mb.concat(values=x, axis=1, name=node.name),
    "layer_norm": _layer_norm,
    "multiply": lambda node, *inputs: functools.reduce(
        lambda x, y: mb.mul(x=x, y=y), inputs
    ),
    "pad": _pad,
    "rescale": lambda node, x: _scale_channels(x, **node.weights),
    "reshape": _reshape,
    "resize_like": lambda node, x, like: _resize(
        x, _sides(like), node.options["align_corners"]
    ),
    "resize_to_multiple": _resize_to_multiple,
    "slice_channels": _slice_channels,
}
# By layout, the operations that depend on it.
_ON_TOKENS = ("attention", "fold", "unfold")
LAYOUTS: dict[str, dict[str, Callable]] = {
    "tokens": dict(zip(_ON_TOKENS, (_attention, _fold, _unfold))),
    "ane": dict(zip(_ON_TOKENS, (_ane_attention, _to_map, _ane_unfold))),
}


def run_node(layout: str, node: Node, inputs: list) -> Any:
    """Adds a node to the program that is being traced, and returns its output.

    Raises a ValueError if the operation is not supported; the message names it.
    """
    operations = OPERATIONS | LAYOUTS[layout]
    if node.op not in operations:
        raise ValueError(
            f"Layer {node.name!r} is the operation {node.op!r}, which is not supported "
            f"for Core ML. Expected one of: {', '.join(sorted(operations))}."
        )
    return operations[node.op](node, *inputs)
