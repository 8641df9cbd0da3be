"""Makes a Core ML model of a DeepLabv3 segmenter's `Graph`.

With class names it returns the class of every pixel, which Xcode's preview colours.
Without it returns the logits at the output stride.
"""

import dataclasses
import json

from keras_mobilevit.drawing import BACKGROUND, class_color
from tflite.formats.coreml.package import (
    Interface,
    convert_program,
    describe,
    fit_sizes,
    image_type,
    load_coremltools,
    trace,
)
from tflite.graph.graph import Graph, Node

OUTPUTS = {"classes": "Class of each pixel, [height, width], counted from 0"}
RAW_OUTPUTS = {
    "logits": "Logits of the classes, [1, classes, rows, columns]; one cell for each "
    "pixel of the output stride"
}
# Keys by which Xcode previews a model, and Apple's sample code finds its labels.
# Source: "Xcode Model Preview Types", coremltools' guide.
PREVIEW_TYPE = "com.apple.coreml.model.preview.type"
PREVIEW_LABELS = "com.apple.coreml.model.preview.params"


def _end_in_classes(graph: Graph) -> Graph:
    """Adds what makes the class of every pixel of the logits of cells."""
    (logits,) = graph.outputs
    resized = Node("class_map_logits", "resize_like", (logits, graph.input_name))
    classes = Node("class_map", "best_class", (resized.name,))
    return dataclasses.replace(graph.replace(resized, classes), outputs=(classes.name,))


def _hexadecimal_color(label: int, name: str) -> str:
    color = (0, 0, 0) if name == BACKGROUND else class_color(label)
    return "#{:02X}{:02X}{:02X}".format(*color)


def _describe_classes(model, labels: tuple[str, ...]) -> None:
    """Writes names and colours of the classes, which no output has."""
    colors = [_hexadecimal_color(*numbered) for numbered in enumerate(labels)]
    model.user_defined_metadata[PREVIEW_TYPE] = "imageSegmenter"
    model.user_defined_metadata[PREVIEW_LABELS] = json.dumps(
        {"labels": labels, "colors": colors}
    )


def make_segmenter(graph: Graph, interface: Interface, precision: str):
    """Makes the Core ML model of a segmenter.

    Args:
        graph: rewritten with `tflite.graph.rewrites.COREML_REWRITES`; its output is the
            logits at the output stride.
        interface: what an application sees of it; with labels for a class map, without
            for `RAW_OUTPUTS`.
        precision: `float16` or `float32`, of weights and maps.

    Returns:
        A `coremltools.models.MLModel`, whose weights can be made smaller.

    Raises:
        ValueError: if coremltools cannot be used, or the target is too old.
    """
    ct = load_coremltools()
    outputs = RAW_OUTPUTS
    if interface.labels:
        graph, outputs = _end_in_classes(graph), OUTPUTS
    graph, shape, target = fit_sizes(graph, interface)
    program, _ = trace(graph, shape, interface.layout, target)
    program.functions["main"].outputs[0].set_name(next(iter(outputs)))
    image = image_type(interface, ct)
    return convert_program(program, image, target, ct.precision(precision))


def finish_segmenter(model, interface: Interface):
    """Writes into a model of `make_segmenter` what Xcode shows of it.

    Args:
        model: perhaps with smaller weights.
        interface: as there.

    Returns:
        The model, that can be saved.
    """
    describe(model, interface, OUTPUTS if interface.labels else RAW_OUTPUTS)
    if interface.labels:
        _describe_classes(model, interface.labels)
    return model
