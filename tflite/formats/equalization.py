"""Equalizes the ranges of a tensor's channels, for files with 8-bit activations.

TFLite has one range for a whole tensor. In the expansions of pretrained MobileViTs the
range of a few channels is 26 to 54 times that of the median channel, so that 8 bits
leave a handful of steps for the others: an XXS falls from 95 to 9 % top-1. Therefore
each channel is divided by a constant, and later layers undo this; the outputs of the
network do not change:

    x / s = conv(...)                     kernel and bias divided by s, per output
    y / s = x / s * sigmoid(s * (x / s))  swish, with one more product; ReLU needs none
    next(y) = next'(y / s)                kernel multiplied by s, per input

This is cross-layer equalization (Nagel et al., arXiv 1906.04721), extended to swish.
Scales that widen the range of the next kernel get an exponent below 1, as in
SmoothQuant (Xiao et al., arXiv 2211.10438).
"""

import dataclasses

import numpy as np

from tflite.formats.calibration import ChannelStats, is_swish
from tflite.graph.graph import Graph, Node
from tflite.graph.rewrites import LINEAR, per_output

# A depthwise kernel has a range for each channel, so scales do not widen it. Other
# kernels have one range for all inputs: the square root balances input and kernel.
DEPTHWISE_EXPONENT, EXPONENT = 1.0, 0.5

# A network has outliers if scales make the channels of a tensor this much more even.
# Measured: 54 and 83 for two pretrained XXS, see docs/quantization.md; at most 2.4 for
# random networks.
OUTLIERS = 4.0
# In a network with outliers, the tensors that gain this much are scaled: 11 of 33
# swishes of a pretrained XXS. With 4 there were 8, and one more image in a hundred
# changed its class.
LEAST_GAIN = 2.0

# A channel that is near zero on the calibration images may be larger on others, so it
# is not amplified by more than the inverse of this.
LEAST_SCALE = 1 / 16

# If most channels are near zero, their median tells nothing: relative to it the others
# may be 1e40 times as large, and their scales would not fit in float32.
MOST_REACH = 4096.0

# The quantizer divides a constant without negative values into 255 steps. Scales that
# are whole steps are exact.
STEPS = 255

_HOMOGENEOUS = ("linear", "relu")  # functions with f(x / s) = f(x) / s
# Operations that keep the channels of their first input; the second input of `fold`
# and `resize_like` only determines a size.
_PASSES = (
    "crop_tokens",
    "fold",
    "global_average",
    "pad",
    "pad_tokens",
    "positions",
    "resize_like",
    "resize_to_multiple",
    "unfold",
)
_JOINED = ("add", "join_tokens")  # inputs whose channels must have the same scale
_FIXED = 0  # group of the channels that must not be scaled


class _Groups:
    """The groups of channels: the channels of a group have the same scale."""

    def __init__(self):
        self.of = np.array([_FIXED])  # the lowest channel of each channel's group

    def new(self, count: int) -> np.ndarray:
        """Adds channels, each in a group of its own, and returns them."""
        channels = np.arange(len(self.of), len(self.of) + count)
        self.of = np.concatenate([self.of, channels])
        return channels

    def join(self, first, second) -> None:
        """Unites the groups of channels, pair by pair."""
        for pair in zip(*np.broadcast_arrays(first, second)):
            lower, upper = sorted(self.of[list(pair)])
            self.of[self.of == upper] = lower


def _channels_of(node: Node, inputs: list, groups: _Groups, count: int) -> np.ndarray:
    """Returns the channels of a node's output; joins those that need one scale."""
    if node.op in LINEAR:
        return groups.new(count)
    function = node.options.get("function")
    if node.op in _PASSES or is_swish(node) or function in _HOMOGENEOUS:
        return inputs[0]
    if node.options.get("keeps_channels"):  # a reshaping
        return inputs[0]
    if node.op == "concat":
        return np.concatenate(inputs)
    if node.op == "slice_channels":
        return inputs[0][node.options["start"] : node.options["stop"]]
    if node.op in _JOINED and len({len(channels) for channels in inputs}) == 1:
        for channels in inputs[1:]:
            groups.join(inputs[0], channels)
        return inputs[0]
    if node.op == "multiply":  # by a gate, as in squeeze-and-excite
        scaled = [channels for channels in inputs if groups.of[channels].any()]
        if len(scaled) == 1 and len(scaled[0]) == count:
            return scaled[0]
    for channels in inputs:
        groups.join(channels, _FIXED)
    return np.full(count, _FIXED)


def _group_channels(
    graph: Graph, stats: dict[str, ChannelStats]
) -> dict[str, np.ndarray]:
    groups = _Groups()
    channels = {graph.input_name: np.full(graph.input_shape[-1], _FIXED)}
    for node in graph.in_order():
        inputs = [channels[name] for name in node.inputs]
        count = len(stats[node.name].high)
        channels[node.name] = _channels_of(node, inputs, groups, count)
    for name in graph.outputs:
        groups.join(channels[name], _FIXED)
    return {name: groups.of[found] for name, found in channels.items()}


def _reach(stats: ChannelStats) -> np.ndarray:
    """Returns the largest magnitude of each channel, relative to the median channel."""
    reach = np.maximum(stats.high, -stats.low)
    typical = max(np.median(reach), reach.max() / MOST_REACH)
    return reach / typical if typical > 0 else np.ones_like(reach)


def _unevenness(reach: np.ndarray) -> float:
    return reach.max() / np.median(reach) if np.median(reach) else 1.0


def _wanted_scales(graph: Graph, channels: dict, reaches: dict) -> np.ndarray:
    """Returns the scale of each group that would equalize its channels."""
    count = 1 + max(groups.max() for groups in channels.values())
    reach, exponent = np.zeros(count), np.full(count, DEPTHWISE_EXPONENT)
    for name, groups in channels.items():
        np.maximum.at(reach, groups, reaches[name])
    for node in graph.nodes.values():
        if node.op in ("conv", "dense"):
            exponent[channels[node.inputs[0]]] = EXPONENT
    return np.maximum(np.where(reach > 0, reach, 1.0) ** exponent, LEAST_SCALE)


def _gains(scales, channels: dict, reaches: dict) -> np.ndarray:
    """Returns the largest gain in evenness that each group's scale gives a tensor."""
    gains = np.zeros(len(scales))
    for name, groups in channels.items():
        before, after = reaches[name], reaches[name] / scales[groups]
        gain = _unevenness(before) / _unevenness(after)
        gains[groups] = np.maximum(gains[groups], gain)
    gains[_FIXED] = 0.0
    return gains


def _in_steps(graph: Graph, scales: np.ndarray, channels: dict) -> np.ndarray:
    """Rounds the scales of each swish to values that are exact in 8 bits."""
    scales = scales.copy()
    for node in graph.nodes.values():
        groups = channels[node.name]
        if is_swish(node) and np.any(scales[groups] != 1):
            step = scales[groups].max() / STEPS
            free = groups[groups != _FIXED]
            scales[free] = np.maximum(np.round(scales[free] / step), 1) * step
    return scales


def channel_scales(
    graph: Graph, stats: dict[str, ChannelStats]
) -> dict[str, np.ndarray]:
    """Returns the divisor of each channel of each node, `{node name: [channels]}`.

    It is 1 for channels that do not change. `stats` is what `measure_channels` returns.
    """
    channels = _group_channels(graph, stats)
    reaches = {name: _reach(found) for name, found in stats.items()}
    wanted = _wanted_scales(graph, channels, reaches)
    wanted[_FIXED] = 1.0
    gains = _gains(wanted, channels, reaches)
    is_scaled = (gains >= LEAST_GAIN) & (gains.max() >= OUTLIERS)
    scales = np.where(is_scaled, wanted, 1.0)
    scales = _in_steps(graph, scales, channels)
    return {name: scales[groups] for name, groups in channels.items()}


def _scale_linear(node: Node, given: np.ndarray, returned: np.ndarray) -> Node:
    kernel = node.weights["kernel"] * given[:, None] / per_output(node, returned)
    weights = {**node.weights, "kernel": kernel}
    if "bias" in weights:
        weights["bias"] = weights["bias"] / returned
    return dataclasses.replace(node, weights=weights)


def _scale_node(node: Node, given: np.ndarray, returned: np.ndarray) -> Node:
    """Returns a node from x / given to y / returned."""
    if node.op in LINEAR:
        return _scale_linear(node, given, returned)
    if node.op == "positions":
        weights = {"positions": node.weights["positions"] / returned}
        return dataclasses.replace(node, weights=weights)
    if is_swish(node):
        before = node.weights.get("scale", np.ones(1))
        return dataclasses.replace(node, weights={"scale": before * returned})
    return node


def equalize(graph: Graph, stats: dict[str, ChannelStats]) -> Graph:
    """Equalizes the ranges of channels if a few are much larger than the others.

    Returns a graph with the same outputs; the same graph if no channels are so uneven.
    """
    scales = channel_scales(graph, stats)
    changed = []
    for node in graph.nodes.values():
        given, returned = scales[node.inputs[0]], scales[node.name]
        if np.any(given != 1) or np.any(returned != 1):
            changed.append(_scale_node(node, given, returned))
    return graph.replace(*changed) if changed else graph
