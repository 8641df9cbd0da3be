"""Makes a Core ML model of a DeepLabv3 segmenter's `Graph`.

With class names the model returns the class of every pixel, which Xcode's preview
colors. Without class names it returns the logits at the output stride.
"""

import dataclasses
import json
from typing import TYPE_CHECKING

from keras_mobilevit.drawing import BACKGROUND, class_color
from tflite.formats.coreml.package import PackageSpec, describe, make_model
from tflite.graph.graph import Graph, Node
from tflite.validation.metadata_keys import PREVIEW_LABELS

if TYPE_CHECKING:
    from coremltools.models import MLModel

OUTPUTS = {"classes": "Class of each pixel, [height, width], counted from 0"}
RAW_OUTPUTS = {
    "logits": "Logits of the classes, [1, classes, rows, columns], at the output stride"
}
# With this key and `PREVIEW_LABELS`, Xcode previews a model, and Apple's sample code
# finds its labels. Source: "Xcode Model Preview Types", coremltools' guide.
PREVIEW_TYPE = "com.apple.coreml.model.preview.type"


def _end_in_classes(graph: Graph, align_corners: bool) -> Graph:
    """Adds the resizing of the logits to the image and the choice of the best class."""
    (logits,) = graph.outputs
    inputs, options = (logits, graph.input_name), {"align_corners": align_corners}
    resized = Node("class_map_logits", "resize_like", inputs, {}, options)
    classes = Node("class_map", "best_class", (resized.name,))
    return dataclasses.replace(graph.replace(resized, classes), outputs=(classes.name,))


def _hexadecimal_color(label: int, name: str) -> str:
    color = (0, 0, 0) if name == BACKGROUND else class_color(label)
    return "#{:02X}{:02X}{:02X}".format(*color)


def make_segmenter(
    graph: Graph, spec: PackageSpec, precision: str, align_corners: bool = False
) -> "MLModel":
    """Makes the Core ML model of a segmenter.

    The graph is rewritten with `COREML_REWRITES`; it returns the logits at the output
    stride. With labels the package returns a class map, without `RAW_OUTPUTS`.
    `align_corners` is that of the model's last `ResizeLike`.
    """
    outputs = RAW_OUTPUTS
    if spec.labels:
        graph, outputs = _end_in_classes(graph, align_corners), OUTPUTS
    return make_model(graph, spec, precision, *outputs)


def finalize_segmenter(model: "MLModel", spec: PackageSpec) -> "MLModel":
    """Writes the descriptions that Xcode shows into a segmenter."""
    describe(model, spec, OUTPUTS if spec.labels else RAW_OUTPUTS)
    if spec.labels:  # the names and colors of the classes
        colors = [_hexadecimal_color(*numbered) for numbered in enumerate(spec.labels)]
        model.user_defined_metadata[PREVIEW_TYPE] = "imageSegmenter"
        model.user_defined_metadata[PREVIEW_LABELS] = json.dumps(
            {"labels": spec.labels, "colors": colors}
        )
    return model
