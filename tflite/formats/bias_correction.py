"""Corrects the biases of layers for the rounding of their kernels to 8 bits.

Rounding changes a kernel by a constant error, so the mean of the layer's output changes
by `mean(x) @ error`. Subtracting this from the bias costs nothing at run time. This is
the bias correction of Nagel et al. (arXiv 1906.04721, section 4.2), with means that are
measured on calibration images.
"""

import dataclasses

import numpy as np

from tflite.formats.calibration import INT8_LIMIT, ChannelStats
from tflite.graph.graph import Graph, Node
from tflite.graph.rewrites import LINEAR, kernel_and_bias


def rounding_error(node: Node) -> np.ndarray:
    """Returns a linear layer's kernel in 8 bits, by channel, minus the kernel."""
    kernel = node.weights["kernel"]
    outputs = (2, 3) if node.op == "depthwise" else (kernel.ndim - 1,)
    others = tuple(axis for axis in range(kernel.ndim) if axis not in outputs)
    step = np.abs(kernel).max(axis=others, keepdims=True) / INT8_LIMIT
    step = np.where(step > 0, step, 1.0)  # a kernel of zeros has no error
    return np.round(kernel / step) * step - kernel


def _mean_error(node: Node, mean: np.ndarray) -> np.ndarray:
    """Returns the mean error of each output of a rounded kernel, `[outputs]`."""
    error = rounding_error(node)
    if node.op == "depthwise":  # [height, width, inputs, multiplier]
        return (error.sum(axis=(0, 1)) * mean[:, None]).reshape(-1)
    if node.op == "conv":  # [height, width, inputs, outputs]
        return mean @ error.sum(axis=(0, 1))
    return mean @ error


def correct_biases(graph: Graph, stats: dict[str, ChannelStats]) -> Graph:
    """Corrects the biases of a graph for the rounding of its kernels to 8 bits.

    The 8-bit file of the result has layer outputs with the same means as `graph`,
    except at padded borders. `stats` is what `measure_channels` returns for the graph.
    """
    changed = []
    for node in graph.nodes.values():
        if node.op in LINEAR:
            kernel, bias = kernel_and_bias(node)
            bias = bias - _mean_error(node, stats[node.inputs[0]].mean)
            weights = {"kernel": kernel, "bias": bias}
            changed.append(dataclasses.replace(node, weights=weights))
    return graph.replace(*changed)
