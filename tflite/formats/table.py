"""The precisions that a network can be converted to, as one table."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from tflite.formats import quantize
from tflite.formats.bias_correction import correct_biases
from tflite.formats.calibration import measure_channels, measure_ranges, swish_floors
from tflite.formats.coreml import package
from tflite.formats.equalization import equalize
from tflite.formats.file_types import COREML, TFLITE, FileType
from tflite.formats.litert import tflite_content, trace_graph
from tflite.graph.graph import Graph
from tflite.tasks.task import Task


@dataclasses.dataclass
class Conversion:
    """What the formats are made from; made once where several need it.

    Attributes:
        task: what the network is for.
        serve: a traceable function of the network, of `tflite.formats.litert`.
        graph: the deployment graph, or `None` if the network is converted as it is.
        finish: from the graph's outputs to what the file returns, see
            `tflite.tasks.task.Task`.
        largest_value: of the images that the network takes, 255 or 1.
        calibration_images: a function that returns `[images, height, width, channels]`.
        fine_tuned: a function that returns the `Conversion` of the network after
            quantization-aware training.
        core_ml: a function that returns the Core ML model of a precision, `float16` or
            `float32`, and perhaps of what makes its weights smaller.
    """

    task: Task
    serve: Callable
    graph: Graph | None
    finish: Callable
    largest_value: float
    calibration_images: Callable[[], np.ndarray]
    fine_tuned: Callable[[], "Conversion"]
    core_ml: Callable[..., object]

    def with_graph(self, graph: Graph) -> "Conversion":
        """Returns the conversion of another graph with the same inputs and outputs."""
        serve = trace_graph(graph, self.finish)
        return dataclasses.replace(self, graph=graph, serve=serve)

    @functools.cached_property
    def float32(self) -> bytes:
        return tflite_content(self.serve)

    @functools.cached_property
    def ranges(self) -> dict:
        """Of the tensors of the float32 file, as the quantizer takes them."""
        floors = swish_floors(self.graph) if self.graph else {}
        images = self.calibration_images()
        return measure_ranges(self.float32, images, self.largest_value, floors)

    @functools.cached_property
    def equalized(self) -> "Conversion":
        """The same network with even ranges of channels: see `equalization.py`."""
        if self.graph is None:
            return self
        stats = measure_channels(self.graph, self.calibration_images())
        graph = equalize(self.graph, stats)
        return self if graph is self.graph else self.with_graph(graph)

    @functools.cached_property
    def rounded(self) -> "Conversion":
        """The network from which files of 8-bit activations are made."""
        graph = self.equalized.graph
        if graph is None:
            return self
        stats = measure_channels(graph, self.calibration_images())
        return self.with_graph(correct_biases(graph, stats))


@dataclasses.dataclass(frozen=True)
class Format:
    """One precision.

    Attributes:
        make: from a `Conversion` to what its file type saves.
        purpose: for which hardware, in a line.
        limits: what its card must not exceed, by the names of `tflite.validation.card.CHECKS`.
        file_type: what it is written as.
        has_8_bits: whether it rounds to 8 bits or fewer, so that only images of the
            model's own kind can show what it loses.
        compared_with: of a format of 8-bit activations, from a `Conversion` to that
            whose float file the 8-bit file is compared with, layer by layer.
    """

    make: Callable[[Conversion], object]
    purpose: str
    limits: dict[str, float]
    file_type: FileType = TFLITE
    has_8_bits: bool = False
    compared_with: Callable[[Conversion], Conversion] | None = None

    @property
    def needs_calibration(self) -> bool:
        return self.compared_with is not None


def _fp16(conversion: Conversion) -> bytes:
    content = quantize.allow_fp16_inference(conversion.float32)
    return quantize.quantize(content, quantize.half_recipe(content))


def _dynamic(conversion: Conversion) -> bytes:
    return quantize.quantize(conversion.float32, quantize.dynamic_recipe())


def _int8_mixed(conversion: Conversion) -> bytes:
    recipe = quantize.mixed_recipe(conversion.graph, conversion.task.float_scopes)
    return quantize.quantize(conversion.float32, recipe, conversion.ranges)


def _int8(conversion: Conversion) -> bytes:
    recipe = quantize.integer_recipe()
    return quantize.quantize(conversion.float32, recipe, conversion.ranges)


# `parity` is the largest difference of an output, `psnr` in dB, `accuracy` the points
# that may be lost on the validation images beyond chance's share, `agreement` the part
# of the objects or pixels for which Keras finds the same, `outside` the operations that
# XNNPACK may leave to slower kernels, `gpu` the largest difference between GPU and CPU,
# `float` the operations on floats, `casts` those within a program, `relative` the
# largest difference over the largest logit; of a class map a difference is a part of
# the pixels.
FORMATS = {
    "fp32": Format(
        lambda conversion: conversion.float32,
        "the reference; any CPU or GPU",
        {
            "foreign": 0,
            "parity": 1e-4,
            "agreement": 0.999,
            "accuracy": 0.0,
            "rank": 4,
            "outside": 0,
            "gpu": 1e-3,
        },
    ),
    "fp16": Format(
        _fp16,
        "half the size; GPUs, and ARM CPUs since 8.2, which compute in 16 bits",
        {
            "foreign": 0,
            "psnr": 50.0,
            "accuracy": 0.0,
            "rank": 4,
            "outside": 0,
            "gpu": 1e-3,
        },
    ),
    "dynamic": Format(
        _dynamic,
        "a quarter of the size, no calibration; CPUs",
        {"psnr": 25.0, "accuracy": 0.6, "rank": 4, "outside": 0},
        has_8_bits=True,
    ),
    "int8-mixed": Format(
        lambda conversion: _int8_mixed(conversion.rounded),
        "a quarter of the size and the fastest on CPUs with int8 instructions; the "
        "transformers' norms and softmax stay float",
        {"psnr": 20.0, "accuracy": 1.0, "rank": 4, "outside": 0},
        has_8_bits=True,
        compared_with=lambda conversion: conversion.equalized,
    ),
    "int8": Format(
        lambda conversion: _int8(conversion.rounded),
        "integers from input to output; NPUs and DSPs that have nothing else. Slower "
        "than int8-mixed on CPUs",
        {"psnr": 18.0, "accuracy": 2.0, "rank": 4, "float": 0},
        has_8_bits=True,
        compared_with=lambda conversion: conversion.equalized,
    ),
    "int8-qat": Format(
        lambda conversion: _int8_mixed(conversion.fine_tuned()),
        "int8-mixed after some epochs of training with rounding; for a network that "
        "loses too much without. On a pretrained XXS it gained no more than chance",
        {"accuracy": 1.0, "rank": 4, "outside": 0},
        has_8_bits=True,
        compared_with=lambda conversion: conversion.fine_tuned(),
    ),
    "coreml": Format(
        lambda conversion: conversion.core_ml("float16"),
        "an .mlpackage in 16 bits, for the Neural Engine of iPhones, iPads and Macs",
        {"relative": 5e-3, "accuracy": 0.0, "rank": 5, "casts": 0},
        COREML,
    ),
    "coreml-fp32": Format(
        lambda conversion: conversion.core_ml("float32"),
        "an .mlpackage in 32 bits, the reference; their CPUs and GPUs",
        {"parity": 1e-4, "accuracy": 0.0, "rank": 5, "casts": 0},
        COREML,
    ),
    "coreml-int8": Format(
        lambda conversion: conversion.core_ml("float16", package.int8_weights),
        "coreml with weights of 8 bits, half of its size",
        {"psnr": 30.0, "accuracy": 0.5, "rank": 5, "casts": 0},
        COREML,
        has_8_bits=True,
    ),
    "coreml-palette6": Format(
        lambda conversion: conversion.core_ml("float16", package.palette_weights),
        "coreml with weights out of tables of 64 values, two fifths of its size",
        {"psnr": 20.0, "accuracy": 0.5, "rank": 5, "casts": 0},
        COREML,
        has_8_bits=True,
    ),
}
