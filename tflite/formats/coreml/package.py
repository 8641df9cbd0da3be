"""Makes a Core ML model of a `Graph`: its program, its interface and what it says."""

import collections
import contextlib
import dataclasses
import importlib.metadata
import io
import logging
import math

import numpy as np

from tflite.formats.coreml.flags import IOS_VERSIONS
from tflite.graph.graph import Graph, Node
from tflite.graph.rewrites import fold_rescaling

IMAGE_NAME = "image"
NEEDED_VERSION = 9  # of coremltools
# Smaller arrays stay as they are: what describes a compressed one outweighs its gain.
SMALLEST_COMPRESSED = 512
WEIGHED = {"conv", "layer_norm", "linear"}  # kinds of operations whose constants are


def load_coremltools():
    """Imports coremltools, without what it says of frameworks that are not used here.

    Raises:
        ValueError: if it is not installed, or too old.
    """
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    needed = f"Core ML packages need coremltools {NEEDED_VERSION}.0 or later: "
    needed += "pip install '.[coreml]'."
    try:
        version = importlib.metadata.version("coremltools")
        import coremltools
    except ImportError as error:
        raise ValueError(f"{needed} ({error})") from error
    if int(version.split(".")[0]) < NEEDED_VERSION:
        raise ValueError(f"{needed} Found: {version}.")
    return coremltools


@dataclasses.dataclass(frozen=True)
class Interface:
    """What an application sees of a package.

    Attributes:
        sizes: sides of the images in pixels, the default one first.
        labels: names of the classes; empty for the network's numbers alone.
        pixel_scale: what pixels, in [0, 255], are multiplied by for the network.
        layout: of tokens, a key of `tflite.formats.coreml.operations.LAYOUTS`.
        ios: oldest version of iOS that runs it; `None` for the oldest possible.
        metadata: author, license, version, short_description, and further entries, as
            Xcode shows them.
    """

    sizes: tuple[int, ...]
    labels: tuple[str, ...] = ()
    pixel_scale: float = 1.0
    layout: str = "tokens"
    ios: int | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def check_labels(labels, classes: int) -> None:
    """Refuses labels that do not name each class.

    Raises:
        ValueError: if their number is not that of the classes, one is empty, or two
            are equal.
    """
    if len(labels) != classes:
        raise ValueError(
            f"The model has {classes} classes, but {len(labels)} labels. Name each "
            "class in a line of --labels, or of labels.txt beside the model."
        )
    if "" in labels:
        raise ValueError(f"Label {list(labels).index('') + 1} of the labels is empty.")
    repeated = [name for name, n in collections.Counter(labels).items() if n > 1]
    if repeated:
        raise ValueError(
            "Classes are told apart by their labels, but more than one is called "
            f"{repeated[0]!r}."
        )


def share_scale(graph: Graph, largest_value: float) -> tuple[Graph, float]:
    """Shares the scale of the images between the input and the first convolution.

    Pixels are integers below 256: times a power of two they stay exact in float16, as
    they would not times 1/255. What remains, 256/255, goes into the weights.

    Args:
        graph: of a network.
        largest_value: of the images that it takes, 255 or 1.

    Returns:
        The graph, and the power of two that its input multiplies pixels by.
    """
    scale = largest_value / 255
    first = graph.only_consumer(graph.input_name)
    if first is not None and first.op == "rescale":
        own, offset = first.weights["scale"], first.weights["offset"]
        if not own.ndim and own > 0 and not np.any(offset):
            graph, scale = graph.remove(first.name), scale * float(own)
    power = 2.0 ** round(math.log2(scale))
    weights = {"scale": np.array(scale / power), "offset": np.array(0.0)}
    rest = Node("rest_of_scale", "rescale", (graph.input_name,), weights)
    moved = [
        dataclasses.replace(
            node,
            inputs=tuple(
                rest.name if name == graph.input_name else name for name in node.inputs
            ),
        )
        for node in graph.consumers(graph.input_name)
    ]
    return fold_rescaling(graph.replace(*moved, rest), with_offsets=False), power


# The program --------------------------------------------------------------------------


def trace(graph: Graph, shape, layout: str, opset, finish=None):
    """Traces the program of a graph.

    Args:
        graph: what to compute.
        shape: of the image.
        layout: of tokens, a key of `tflite.formats.coreml.operations.LAYOUTS`.
        opset: version of iOS whose operations may be used, as coremltools has it.
        finish: from the network's outputs to a tuple of what the program returns; by
            default these.

    Returns:
        The program, and its values by node.
    """
    from coremltools.converters.mil import Builder as mb

    from tflite.formats.coreml.operations import run_node

    values = {}

    @mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=opset)
    def program(image):
        values[graph.input_name] = image
        for node in graph.in_order():
            inputs = [values[name] for name in node.inputs]
            values[node.name] = run_node(layout, node, inputs)
        outputs = tuple(values[name] for name in graph.outputs)
        return finish(*outputs) if finish else outputs

    return program, values


def _resize_odd_maps(graph: Graph, interface: Interface, opset) -> Graph:
    """Marks what folds and unfolds maps that patches do not cover at some size."""
    odd = set()
    for size in interface.sizes:
        _, values = trace(graph, (1, 3, size, size), interface.layout, opset)
        for node in graph.nodes.values():
            if node.op in ("fold", "unfold"):
                _, _, *sides = values[node.inputs[-1]].shape
                if np.any(np.array(sides) % node.options["patch_size"]):
                    odd.add(node.name)
    nodes = (graph.nodes[name] for name in odd)
    return graph.replace(
        *(
            dataclasses.replace(node, options=node.options | {"resizes": True})
            for node in nodes
        )
    )


def _flexible(graph: Graph, interface: Interface, ct) -> tuple[Graph, tuple, int]:
    """Returns the graph for several sizes, its input shape and the iOS it needs."""
    from coremltools.converters.mil.mil import get_new_symbol

    marked = _resize_odd_maps(graph, interface, ct.target.iOS16)
    resizes = any(
        node.op == "resize_like" or "resizes" in node.options
        for node in marked.nodes.values()
    )
    needed = 17 if resizes else 16  # 17 brought `resize`
    return marked, (1, 3, get_new_symbol(), get_new_symbol()), needed


def image_type(interface: Interface, ct):
    """Returns the type of the image as coremltools has it."""
    shape, *others = [(1, 3, size, size) for size in interface.sizes]
    if others:
        shape = ct.EnumeratedShapes([shape, *others], default=shape)
    return ct.ImageType(
        name=IMAGE_NAME,
        shape=shape,
        scale=interface.pixel_scale,
        color_layout=ct.colorlayout.RGB,
    )


def convert_program(program, shape_type, target, precision, classifier=None):
    """Converts a traced program to a Core ML model.

    Args:
        program: of `trace`.
        shape_type: what coremltools calls the type of the image.
        target: oldest version of iOS that runs it, as coremltools has it.
        precision: of weights and maps, likewise.
        classifier: of a classifier, its labels, likewise.

    Returns:
        A `coremltools.models.MLModel`.
    """
    ct = load_coremltools()
    passes = ct.PassPipeline.DEFAULT
    # Each convolution would have strides, pads and so on of its own: a tenth of a file
    # with weights of 8 bits.
    passes.set_options("common::const_deduplication", {"const_threshold": 1})
    with _quietly():
        return ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            inputs=[shape_type],
            classifier_config=classifier,
            minimum_deployment_target=target,
            compute_precision=precision,
            pass_pipeline=passes,
            skip_model_load=True,
        )


def fit_sizes(graph: Graph, interface: Interface) -> tuple[Graph, tuple, object]:
    """Fits a graph to the sizes of an interface.

    Args:
        graph: of a network.
        interface: what an application sees of it.

    Returns:
        The graph, the shape of its images for `trace`, and the oldest version of iOS
        that shall run it, as coremltools has it.

    Raises:
        ValueError: if that version is too old for these sizes.
    """
    ct = load_coremltools()
    size = interface.sizes[0]
    shape, needed = (1, 3, size, size), IOS_VERSIONS[0]
    if len(interface.sizes) > 1:
        graph, shape, needed = _flexible(graph, interface, ct)
    ios = interface.ios or needed
    if ios < needed:
        raise ValueError(
            f"At the sizes {', '.join(map(str, interface.sizes))} maps are resized, "
            f"which in a package of several sizes takes an operation of iOS {needed}. "
            f"Received: --ios={ios}. Leave --ios away, or take one size; a classifier "
            "has nothing to resize at multiples of 64."
        )
    return graph, shape, getattr(ct.target, f"iOS{ios}")


@contextlib.contextmanager
def _quietly():
    """Keeps the progress of coremltools's passes, a bar each, off the terminal."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def describe(model, interface: Interface, outputs: dict[str, str]) -> None:
    """Writes what Xcode shows of a model into it.

    Args:
        model: a Core ML model.
        interface: what an application sees of it.
        outputs: what each output is, by name.
    """
    known = ("author", "license", "version", "short_description")
    for name, text in interface.metadata.items():
        if name in known:
            setattr(model, name, text)
        else:
            model.user_defined_metadata[name] = text
    sizes = " or ".join(f"{size}x{size}" for size in interface.sizes)
    model.input_description[IMAGE_NAME] = f"RGB image of {sizes} pixels"
    for name, text in outputs.items():
        model.output_description[name] = text


# Smaller weights ----------------------------------------------------------------------


def int8_weights(model):
    """Quantizes a model's weights to int8, with a scale for each output channel."""
    from coremltools.optimize import coreml as optimize

    with _quietly():
        known = optimize.get_weights_metadata(model, SMALLEST_COMPRESSED)
        return optimize.linear_quantize_weights(
            model,
            optimize.OptimizationConfig(
                optimize.OpLinearQuantizerConfig(
                    mode="linear_symmetric", weight_threshold=SMALLEST_COMPRESSED
                ),
                op_name_configs=dict.fromkeys(_other_constants(known)),
            ),
        )


def palette_weights(model, bits: int = 6):
    """Replaces a model's weights by indices into tables of 2**bits of their values.

    A table is for a whole kernel. Those of depthwise convolutions stay: the range of
    their channels differs most, since batch normalization is multiplied into them, and
    all of them together are less than a hundredth of the weights.
    """
    from coremltools.optimize import coreml as optimize

    with _quietly():
        known = optimize.get_weights_metadata(model, SMALLEST_COMPRESSED)
        depthwise = [name for name, found in known.items() if _is_depthwise(found.val)]
        return optimize.palettize_weights(
            model,
            optimize.OptimizationConfig(
                optimize.OpPalettizerConfig(
                    mode="kmeans", nbits=bits, weight_threshold=SMALLEST_COMPRESSED
                ),
                op_name_configs=dict.fromkeys(depthwise + _other_constants(known)),
            ),
        )


def _is_depthwise(weight: np.ndarray) -> bool:
    return weight.ndim == 4 and weight.shape[1] == 1


def _other_constants(known: dict) -> list[str]:
    """Returns the names of large constants that are no weights: anchors."""
    return [
        name
        for name, found in known.items()
        if not WEIGHED & {operation.op_type for operation in found.child_ops}
    ]
