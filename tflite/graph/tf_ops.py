"""The operations of a `Graph` in TensorFlow, written for what TFLite makes of them.

No tensor has a rank above 4, shapes are static wherever the input's are, and XNNPACK
and GPU delegates take every operation but `keras`.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tflite.graph.graph import Graph, Node

MAX_JOINED = 4  # inputs of one concatenation


def constant(node: Node, name: str, like) -> tf.Tensor:
    """Returns a weight of a node in the type of another tensor."""
    return tf.constant(node.weights[name], like.dtype)


def _add(node: Node, name: str, x):
    """Adds a weight, if the node has it."""
    return x + constant(node, name, x) if name in node.weights else x


def _padded(x, kernel: np.ndarray, options: dict):
    """Returns a map and the padding type that together pad as the options say.

    At stride 2 TFLite's SAME pads an even map at its end only. To pad at the start, a
    padded copy of the map was faster than a kernel that is widened by zeros.
    """
    padding = options["padding"]
    if isinstance(padding, str):
        return x, padding
    sides = zip(x.shape[1:3], kernel.shape, options["strides"], options["dilations"])
    same = tuple(_same_padding(*side) for side in sides)
    if same == padding:
        return x, "SAME"
    return tf.pad(x, [(0, 0), *padding, (0, 0)]), "VALID"


def _same_padding(size: int, kernel: int, stride: int, dilation: int):
    """Returns the padding of SAME before and after one side of a map."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _convolve(function, node: Node, x):
    options, kernel = node.options, node.weights["kernel"]
    x, padding = _padded(x, kernel, options)
    x = function(
        x,
        tf.constant(kernel, x.dtype),
        (1, *options["strides"], 1),
        padding,
        dilations=options["dilations"],
    )
    return _add(node, "bias", x)


def _batch_norm(node: Node, x):
    gamma, beta, mean, variance = (
        constant(node, name, x) for name in ("gamma", "beta", "mean", "variance")
    )
    return (x - mean) * gamma / tf.sqrt(variance + node.options["epsilon"]) + beta


def _layer_norm(node: Node, x):
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    scale, offset = (
        constant(node, name, x) if name in node.weights else None
        for name in ("gamma", "beta")
    )
    epsilon = node.options["epsilon"]
    return tf.nn.batch_normalization(x, mean, variance, offset, scale, epsilon)


def _rms_norm(node: Node, x):
    mean_square = tf.reduce_mean(x * x, -1, keepdims=True)
    x = x * tf.math.rsqrt(mean_square + node.options["epsilon"])
    if "gamma" in node.weights:
        x *= constant(node, "gamma", x)
    return _add(node, "beta", x)


def _image_norm(node: Node, x):
    """Normalizes all numbers of an image together, `[batch, ..., channels]`."""
    axes = tuple(range(1, len(x.shape)))
    x -= tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(x * x, axes, keepdims=True)
    x *= tf.math.rsqrt(variance + node.options["epsilon"])
    if "gamma" in node.weights:
        x *= constant(node, "gamma", x)
    return _add(node, "beta", x)


def _static_batch(x, times: int = 1) -> int:
    """Returns a tensor's batch, multiplied, as a reshaping takes it."""
    return -1 if x.shape[0] is None else x.shape[0] * times


def _reshape(node: Node, x):
    # NumPy resolves a -1 in the options, so the batch can be the -1.
    shape = np.empty(x.shape[1:], np.bool_).reshape(node.options["shape"]).shape
    return tf.reshape(x, (_static_batch(x), *shape))


def _crop_tokens(node: Node, x):
    """Removes tokens from both ends of `[batch, tokens, channels]`."""
    before, after = node.options["cropping"]
    _, tokens, channels = x.shape
    sizes = (_static_batch(x), tokens - before - after, channels)
    return tf.slice(x, (0, before, 0), sizes)


def resize(x, height: int, width: int, align_corners: bool = False) -> tf.Tensor:
    """Resizes bilinearly, if the size differs; see `keras_mobilevit.backend`."""
    if (height, width) == tuple(x.shape[1:3]):
        return x
    resized = tf.raw_ops.ResizeBilinear(
        images=x,
        size=(height, width),
        align_corners=align_corners,
        half_pixel_centers=not align_corners,
    )
    return tf.cast(resized, x.dtype)


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _resize_to_multiple(node: Node, x):
    patch, (_, height, width, _) = node.options["patch_size"], x.shape
    return resize(x, _rounded_up(height, patch), _rounded_up(width, patch), True)


def _unfold(node: Node, x):
    """Cuts `[batch, height, width, channels]` into patches `[batch * P, N, channels]`.

    P is the number of pixels in a patch and N the number of patches. With `per_image`,
    the patches are `[batch, P, N, channels]`.
    """
    patch = node.options["patch_size"]
    batch, (_, height, width, channels) = _static_batch(x, patch**2), x.shape
    x = resize(x, _rounded_up(height, patch), _rounded_up(width, patch))
    x = tf.nn.space_to_depth(x, patch)  # [B, rows, columns, P * channels]
    patches = x.shape[1] * x.shape[2]
    x = tf.reshape(x, (-1, patches, patch**2, channels))
    x = tf.transpose(x, (0, 2, 1, 3))  # [B, P, N, channels]
    if node.options["per_image"]:
        return x
    return tf.reshape(x, (batch, patches, channels))


def _slice_channels(node: Node, x):
    """Slices the last axis of `[batch, tokens, numbers]`."""
    start, stop = node.options["start"], node.options["stop"]
    _, tokens, _ = x.shape
    return tf.slice(x, (0, 0, start), (_static_batch(x), tokens, stop - start))


def _join_tokens(node: Node, *tensors):
    """Concatenates `[batch, tokens, channels]` along the tokens.

    XNNPACK takes at most five inputs at once, so many inputs are joined in groups. The
    last inputs have the fewest tokens; they are joined first, since they are copied
    again.
    """
    inputs = list(tensors)
    while len(inputs) > MAX_JOINED:
        inputs[-MAX_JOINED:] = [tf.concat(inputs[-MAX_JOINED:], 1)]
    return tf.concat(inputs, 1)


def _fold(node: Node, tokens, features):
    """Puts patches back into a map with the height and width of `features`."""
    patch = node.options["patch_size"]
    _, height, width, _ = features.shape
    rows, columns = (_rounded_up(side, patch) // patch for side in (height, width))
    batch, *_, channels = tokens.shape
    if batch is None:
        batch = -1
    elif len(tokens.shape) == 3:  # [B * P, N, channels]
        batch //= patch**2
    # DEPTH_TO_SPACE would do this at once, but stays float in an integer file.
    maps = -1 if batch == -1 else batch * patch
    x = tf.reshape(tokens, (maps, patch, rows * columns, channels))
    x = tf.transpose(x, (0, 2, 1, 3))  # [B * patch rows, N, patch column, channels]
    x = tf.reshape(x, (batch, patch, rows, columns * patch * channels))
    x = tf.transpose(x, (0, 2, 1, 3))  # [B, rows, patch row, W * channels]
    x = tf.reshape(x, (batch, rows * patch, columns * patch, channels))
    return resize(x, height, width)


def _attention(node: Node, query, key, value):
    """Computes attention between tokens `[batch, tokens, channels]`.

    Both products take their second factor transposed, so that the summed axis is
    contiguous in memory. int8 kernels need this, and float kernels lose nothing.
    """
    batch, (_, tokens, channels) = _static_batch(query), query.shape
    num_heads = node.options["num_heads"]
    head_dim = channels // num_heads

    def split_heads(x, order):
        return tf.transpose(tf.reshape(x, (batch, tokens, num_heads, head_dim)), order)

    if not node.options["scaled"]:
        query *= head_dim**-0.5
    query, key = (split_heads(x, (0, 2, 1, 3)) for x in (query, key))  # [B, h, N, d]
    value = split_heads(value, (0, 2, 3, 1))  # [B, h, d, N]
    weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True))  # [B, h, N, N]
    x = tf.matmul(weights, value, transpose_b=True)  # [B, h, N, d]
    return tf.reshape(tf.transpose(x, (0, 2, 1, 3)), (batch, tokens, channels))


def _context(node: Node, scores, tokens):
    """Averages tokens `[batch, P, N, channels]`, weighted with their scores' softmax.

    The scores are `[batch, P, N, 1]`, and the averages `[batch, P, 1, channels]`.
    """
    _, positions, patches, _ = scores.shape
    scores = tf.reshape(scores, (_static_batch(scores), positions, 1, patches))
    return tf.matmul(tf.nn.softmax(scores), tokens)


ACTIVATIONS = {
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "hard_sigmoid": lambda x: tf.nn.relu6(x + 3) * (1 / 6),
    "hard_silu": lambda x: x * tf.nn.relu6(x + 3) * (1 / 6),
    "linear": tf.identity,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "sigmoid": tf.sigmoid,
    "silu": lambda x: x * tf.sigmoid(x),
    "softmax": tf.nn.softmax,
}


def _activation(node: Node, x):
    if "scale" in node.weights:  # equalized swish: swish(scale * x) / scale
        return x * tf.sigmoid(x * constant(node, "scale", x))
    return ACTIVATIONS[node.options["function"]](x)


def _keras(node: Node, *inputs):
    """Calls Keras, which computes in float32."""
    run = node.options["run"]
    given = [tf.cast(x, dtype) for x, dtype in zip(inputs, node.options["dtypes"])]
    y = tf.convert_to_tensor(run(*given))
    is_static = all(x.shape.is_fully_defined() for x in given)
    if is_static and not y.shape.is_fully_defined():
        with tf.init_scope():  # an eager run knows every shape
            y.set_shape(run(*(tf.zeros(x.shape, x.dtype) for x in given)).shape)
    is_double = any(x.dtype == tf.float64 for x in inputs)
    return tf.cast(y, tf.float64) if is_double and y.dtype.is_floating else y


OPERATIONS: dict[str, Callable] = {
    "activation": _activation,
    "add": lambda node, *inputs: functools.reduce(tf.add, inputs),
    "attention": _attention,
    "batch_norm": _batch_norm,
    "concat": lambda node, *inputs: tf.concat(inputs, -1),
    "context": _context,
    "conv": functools.partial(_convolve, tf.nn.conv2d),
    "crop_tokens": _crop_tokens,
    "dense": lambda node, x: _add(
        node, "bias", tf.matmul(x, constant(node, "kernel", x))
    ),
    "depthwise": functools.partial(_convolve, tf.nn.depthwise_conv2d),
    "fold": _fold,
    "global_average": lambda node, x: tf.reduce_mean(x, (1, 2), **node.options),
    "image_norm": _image_norm,
    "join_tokens": _join_tokens,
    "keras": _keras,
    "layer_norm": _layer_norm,
    "multiply": lambda node, *inputs: functools.reduce(tf.multiply, inputs),
    "pad": lambda node, x: tf.pad(x, [(0, 0), *node.options["padding"], (0, 0)]),
    # Puts one token of zeros before those of `[batch, tokens, channels]`.
    "pad_tokens": lambda node, x: tf.pad(x, ((0, 0), (1, 0), (0, 0))),
    "positions": lambda node, x: _add(node, "positions", x),
    "rescale": lambda node, x: _add(node, "offset", x * constant(node, "scale", x)),
    "reshape": _reshape,
    "resize_like": lambda node, x, like: resize(
        x, like.shape[1], like.shape[2], node.options["align_corners"]
    ),
    "resize_to_multiple": _resize_to_multiple,
    "rms_norm": _rms_norm,
    "slice_channels": _slice_channels,
    "unfold": _unfold,
}


def run(graph: Graph, images) -> list[tf.Tensor]:
    """Computes a graph's outputs in the type of the images, eagerly or traced.

    `images` are `[batch, height, width, channels]`, in float32 or float64.
    """
    values = run_all(graph, images)
    return [values[name] for name in graph.outputs]


def run_all(graph: Graph, images) -> dict[str, tf.Tensor]:
    """Computes the output of every node, by the nodes' names; see `run`."""
    values = {graph.input_name: tf.convert_to_tensor(images)}
    for node in graph.in_order():
        inputs = [values[name] for name in node.inputs]
        with tf.name_scope(node.name):  # quantization selects operations by it
            values[node.name] = OPERATIONS[node.op](node, *inputs)
    return values
