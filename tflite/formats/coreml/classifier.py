"""Makes a Core ML model of an image classifier's `Graph`."""

import dataclasses

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

LABEL_NAME = "classLabel"
TEXTS = {  # of the outputs, by the last activation
    "softmax": {
        LABEL_NAME: "Name of the most likely class",
        f"{LABEL_NAME}_probs": "Probability of each class by name",
    },
    "sigmoid": {
        LABEL_NAME: "Name of the most likely class; others may be right as well",
        f"{LABEL_NAME}_probs": "Probability of each class by itself, by name",
    },
}


def _end_in_probabilities(graph: Graph, classes: int) -> Graph:
    """Adds a softmax to logits, and a sigmoid to a single one."""
    (output,) = graph.outputs
    node = graph.nodes[output]
    if node.op == "activation" and node.options["function"] in ("softmax", "sigmoid"):
        return graph
    function = "sigmoid" if classes == 1 else "softmax"
    last = Node("probabilities", "activation", (output,), {}, {"function": function})
    return dataclasses.replace(graph.replace(last), outputs=(last.name,))


def make_classifier(
    graph: Graph, interface: Interface, precision: str, output_name: str
):
    """Makes the Core ML model of a classifier.

    Args:
        graph: rewritten with `tflite.graph.rewrites.COREML_REWRITES`.
        interface: what an application sees of it.
        precision: `float16` or `float32`, of weights and maps.
        output_name: of what the network returns, without labels.

    Returns:
        A `coremltools.models.MLModel` that can be saved.

    Raises:
        ValueError: if coremltools cannot be used, or the target is too old.
    """
    ct = load_coremltools()
    if interface.labels:
        graph = _end_in_probabilities(graph, len(interface.labels))
    graph, shape, target = fit_sizes(graph, interface)
    program, _ = trace(graph, shape, interface.layout, target)
    texts, classifier = {}, None
    if interface.labels:
        classifier = ct.ClassifierConfig(list(interface.labels), LABEL_NAME)
        (last,) = graph.outputs
        texts = TEXTS[graph.nodes[last].options["function"]]
    else:
        program.functions["main"].outputs[0].set_name(output_name)
    model = convert_program(
        program, image_type(interface, ct), target, ct.precision(precision), classifier
    )
    describe(model, interface, texts)
    return model
