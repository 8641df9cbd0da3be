"""Measures the values of a network's tensors on calibration images.

`measure_ranges` measures the tensors of a file, for the quantizer; `measure_channels`
measures the channels of a graph's nodes.
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tqdm import tqdm

from tflite.graph import tf_ops
from tflite.graph.graph import Graph, Node
from tflite.validation import tensors

Range = dict[str, np.ndarray]  # {"min": [1], "max": [1]}

# Fraction of the images whose least value is inside a tensor's range, and whose
# greatest value is. On MobileViT_XXS trained on clothing photos, int8 agreed with Keras
# on 97.4 % of the validation images with 0.9, on 95.6 % with 1.0.
IMAGES_IN_RANGE = 0.9

INT8_LIMIT, INT8_STEPS = 127, 128  # largest value, and number of values below zero

# Below this value swish is within 0.015 of 0, which 8 bits need not resolve. Beyond
# `SIGMOID_LIMIT` on both sides sigmoid is within 0.0004 of 0 or 1.
SWISH_FLOOR = -6.0
SIGMOID_LIMIT = 8.0

# XNNPACK refuses changes of scale by more than 256 (it takes 255, but not 257). The
# inputs of a concatenation get the scale of its output, which has the widest range.
LARGEST_RATIO = 256.0
WIDENED = 1.01  # safety margin for rounding

_REDUCTIONS = (tf.reduce_min, tf.reduce_max, tf.reduce_mean)


@dataclasses.dataclass(frozen=True)
class ChannelStats:
    """The values `[channels]` of a node's output on the calibration images.

    `low`, the least, is at least `SWISH_FLOOR` if only swish reads the node.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray


def is_swish(node: Node) -> bool:
    """Tells whether a node is a swish activation."""
    return node.op == "activation" and node.options["function"] == "silu"


def _progress(images: np.ndarray, name: str) -> Iterable[np.ndarray]:
    return tqdm(images, name, unit="img", disable=None, leave=False)


def swish_floors(graph: Graph) -> dict[str, np.ndarray]:
    """Returns the values below which a node's output makes no difference.

    They are `{node name: [channels]}`, or `[1]` if all channels have the same floor,
    for nodes that only swish reads: `SWISH_FLOOR` in the units of the channels.
    """
    floors = {}
    for node in graph.nodes.values():
        consumers = graph.consumers(node.name)
        if node.name in graph.outputs or not consumers:
            continue
        if all(is_swish(consumer) for consumer in consumers):
            scales = [c.weights.get("scale", np.ones(1)) for c in consumers]
            floors[node.name] = SWISH_FLOOR / functools.reduce(np.minimum, scales)
    return floors


def measure_channels(graph: Graph, images) -> dict[str, ChannelStats]:
    """Measures each channel of each node's output, and of the input.

    Raises a ValueError if an output is not finite for one of the `images`, `[images,
    height, width, channels]` in the graph's range.
    """

    @tf.function(autograph=False, reduce_retracing=True)
    def measure(image):
        found = {}
        for name, values in tf_ops.run_all(graph, image).items():
            axes = list(range(values.shape.rank - 1))  # all except the channels
            reduced = [reduce(values, axes) for reduce in _REDUCTIONS]
            found[name] = tf.stack(reduced)  # [3, channels]
        return found

    rows = []
    for image in _progress(images, "measuring channels"):
        rows.append({name: x.numpy() for name, x in measure(image[None]).items()})
        if not all(np.isfinite(rows[-1][name]).all() for name in graph.outputs):
            raise ValueError(
                f"The network's outputs are not finite for calibration image "
                f"{len(rows)} of {len(images)}. Check the weights and the images."
            )
    floors, found = swish_floors(graph), {}
    for name in rows[0]:
        low, high, mean = np.swapaxes([row[name] for row in rows], 0, 1)
        low = np.maximum(low.min(axis=0), floors.get(name, -np.inf))
        found[name] = ChannelStats(low, high.max(axis=0), mean.mean(axis=0))
    return found


def _interpreter(content: bytes) -> Interpreter:
    """Returns an interpreter that keeps the values of all tensors."""
    with warnings.catch_warnings():  # of the memory that it needs
        warnings.simplefilter("ignore", UserWarning)
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        return Interpreter(
            model_content=content,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=True,
        )


def _measure_extremes(
    interpreter: Interpreter, content: bytes, images: np.ndarray, floors: dict
) -> dict[str, np.ndarray]:
    """Runs a float32 file on images and returns `{tensor: [images, 2]}`.

    These are the least value above the floor, see `swish_floors`, and the greatest
    value for each image.
    """
    interpreter.allocate_tensors()
    (image_input,) = interpreter.get_input_details()
    names = tensors.computed_tensors(content)  # by index
    nodes = {name: node for node, name in tensors.layer_outputs(content).items()}
    floor_of = {
        index: floors.get(nodes.get(name, ""), -np.inf) for index, name in names.items()
    }
    extremes: dict[str, list] = {name: [] for name in names.values()}
    for image in _progress(images, "calibrating"):
        interpreter.set_tensor(image_input["index"], image[None])
        interpreter.invoke()
        for index, name in names.items():
            values = interpreter.get_tensor(index)
            extremes[name].append((_least(values, floor_of[index]), values.max()))
    return {name: np.array(pairs, np.float32) for name, pairs in extremes.items()}


def measure_ranges(
    content: bytes,
    images: np.ndarray,
    input_max: float,
    floors: dict[str, np.ndarray] | None = None,
) -> dict[str, Range]:
    """Measures the ranges of a float32 file's tensors on images, for the quantizer.

    `images` are in the file's range, whose end is `input_max`: with 255, an int8 input
    is the pixel - 128. `floors` is what `swish_floors` returns, for a file of a graph.
    The second factors of products get symmetric ranges, because XNNPACK does not take
    others. Raises a ValueError if a tensor is not finite for an image.
    """
    interpreter = _interpreter(content)
    extremes = _measure_extremes(interpreter, content, images, floors or {})
    for name, pairs in extremes.items():
        if not np.all(np.isfinite(pairs[:, 1])):
            raise ValueError(
                f"The tensor {name} is not finite for a calibration image, so it has "
                "no range. Look for damaged images or weights."
            )
    (image_input,) = interpreter.get_input_details()
    outputs = {output["name"] for output in interpreter.get_output_details()}
    # The outputs of the network are never clipped.
    ranges = {
        name: _range(pairs, 1.0 if name in outputs else IMAGES_IN_RANGE)
        for name, pairs in extremes.items()
    }
    ranges[image_input["name"]] = _positive(input_max)
    return _for_xnnpack(content, ranges)


def _for_xnnpack(content: bytes, ranges: dict[str, Range]) -> dict[str, Range]:
    """Changes the ranges of a file's tensors to those that XNNPACK takes."""
    ranges = dict(ranges)
    for name in tensors.sigmoid_arguments(content):
        ranges[name] = {
            end: np.clip(limit, -SIGMOID_LIMIT, SIGMOID_LIMIT)
            for end, limit in ranges[name].items()
        }
    for names, output in tensors.concatenations(content):
        least = np.ptp(_ends(ranges[output])) * WIDENED / LARGEST_RATIO
        for name in names:
            if name in ranges:  # not a constant
                ranges[name] = _at_least_as_wide(ranges[name], least)
    for name in tensors.second_factors(content):
        ranges[name] = _symmetric(**ranges[name])
    return ranges


def _positive(limit: float) -> Range:
    return {"min": np.zeros(1, np.float32), "max": np.full(1, limit, np.float32)}


def _ends(limits: Range) -> np.ndarray:
    """Returns the ends of a range, widened to contain zero as the quantizer does."""
    return np.array([min(limits["min"][0], 0), max(limits["max"][0], 0)], np.float32)


def _at_least_as_wide(limits: Range, least: float) -> Range:
    """Widens a range to a width without moving its zero point."""
    width = np.ptp(_ends(limits))
    if width >= least:
        return limits
    if width == 0:
        return _positive(least)
    return {end: x * np.float32(least / width) for end, x in limits.items()}


def _least(values: np.ndarray, floor) -> np.float32:
    """Returns the least value, at least the floor (of each channel, or of all)."""
    if np.size(floor) > 1 and np.shape(floor) != values.shape[-1:]:
        floor = np.min(floor)  # the tensor's last axis is not the channels
    return np.maximum(values, floor).min()


def _range(pairs: np.ndarray, images_in_range: float) -> Range:
    low, high = pairs.T
    low = np.quantile(low, 1 - images_in_range)
    high = np.quantile(high, images_in_range)
    return {"min": np.reshape(low, 1), "max": np.reshape(high, 1)}


def _symmetric(min: np.ndarray, max: np.ndarray) -> Range:
    """Widens a range so that the zero point is 0."""
    limit = np.maximum(np.abs(min), np.abs(max))
    return {"min": -limit * np.float32(INT8_STEPS / INT8_LIMIT), "max": limit}
