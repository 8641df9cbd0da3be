"""Makes a Core ML model of an image classifier's `Graph`."""

import dataclasses
from typing import TYPE_CHECKING

from tflite.formats.coreml.package import (
    PackageSpec,
    describe,
    load_coremltools,
    make_model,
)
from tflite.graph.graph import Graph, Node

if TYPE_CHECKING:
    from coremltools.models import MLModel

LABEL_NAME = "classLabel"
DESCRIPTIONS = {  # of the outputs, by the last activation
    "softmax": {
        LABEL_NAME: "Name of the most likely class",
        f"{LABEL_NAME}_probs": "Probability of each class by name",
    },
    "sigmoid": {
        LABEL_NAME: "Name of the most likely class; several may be right",
        f"{LABEL_NAME}_probs": "Independent probability of each class by name",
    },
}


def _end_in_probabilities(graph: Graph, classes: int) -> Graph:
    """Adds a softmax to logits, or a sigmoid to a single logit."""
    (output,) = graph.outputs
    node = graph.nodes[output]
    if node.op == "activation" and node.options["function"] in ("softmax", "sigmoid"):
        return graph
    function = "sigmoid" if classes == 1 else "softmax"
    last = Node("probabilities", "activation", (output,), {}, {"function": function})
    return dataclasses.replace(graph.replace(last), outputs=(last.name,))


def make_classifier(
    graph: Graph, spec: PackageSpec, precision: str, output_name: str
) -> "MLModel":
    """Makes the Core ML model of a classifier.

    The graph is rewritten with `COREML_REWRITES`. The precision is `float16` or
    `float32`. A package without labels returns `output_name`.
    """
    descriptions, classifier = {}, None
    if spec.labels:
        graph = _end_in_probabilities(graph, len(spec.labels))
        config = load_coremltools().ClassifierConfig
        classifier = config(list(spec.labels), LABEL_NAME)
        (last,) = graph.outputs
        descriptions = DESCRIPTIONS[graph.nodes[last].options["function"]]
    model = make_model(graph, spec, precision, output_name, classifier)
    describe(model, spec, descriptions)
    return model
