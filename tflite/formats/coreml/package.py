"""Makes a Core ML model of a `Graph`: its program, its input and its descriptions."""

import collections
import contextlib
import dataclasses
import importlib.metadata
import io
import logging
import math
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from tflite.formats.coreml.flags import IOS_VERSIONS
from tflite.graph.graph import Graph, Node
from tflite.graph.rewrites import fold_rescaling

if TYPE_CHECKING:
    from coremltools.models import MLModel

IMAGE_NAME = "image"
NEEDED_VERSION = 9  # of coremltools
# Smaller arrays are not compressed: the description would outweigh the gain.
MIN_COMPRESSED = 512
# Operations that resize a map which patches do not cover exactly; it is the last input.
RESIZING = ("fold", "resize_to_multiple", "unfold")
WEIGHT_OPS = {"conv", "layer_norm", "linear"}  # their constants are weights


def load_coremltools() -> ModuleType:
    """Imports coremltools without its warnings about other frameworks.

    Raises a ValueError if it is not installed or too old.
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
class PackageSpec:
    """The inputs, outputs and description of a package.

    Attributes:
        sizes: sides of the images in pixels, the default first.
        labels: names of the classes; empty to return the network's numbers.
        pixel_scale: the factor from pixels in [0, 255] to the network's input.
        layout: the layout of tokens, a key of `tflite.formats.coreml.mil_ops.LAYOUTS`.
        ios: the oldest version of iOS that runs it; `None` for the oldest possible.
        metadata: what Xcode shows: author, license, version, and further entries.
    """

    sizes: tuple[int, ...]
    labels: tuple[str, ...] = ()
    pixel_scale: float = 1.0
    layout: str = "tokens"
    ios: int | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def check_labels(labels, classes: int) -> None:
    """Raises a ValueError unless each class has a label of its own."""
    if len(labels) != classes:
        raise ValueError(
            f"The model has {classes} classes, but {len(labels)} labels. Give one "
            "line per class in the file of --labels, or in labels.txt beside the model."
        )
    if "" in labels:
        raise ValueError(f"Label {list(labels).index('') + 1} of the labels is empty.")
    repeated = [name for name, n in collections.Counter(labels).items() if n > 1]
    if repeated:
        raise ValueError(
            f"Labels must differ, but more than one class is called {repeated[0]!r}."
        )


def split_input_scale(graph: Graph, input_max: float) -> tuple[Graph, float]:
    """Splits the images' scale between the package's input and the first convolution.

    Pixels are integers below 256. Times a power of two they stay exact in float16;
    times 1/255 they would not. The input takes the power of two, which is returned
    beside the graph, and the weights take the rest, 256/255.
    """
    scale = input_max / 255
    first = graph.only_consumer(graph.input_name)
    if first is not None and first.op == "rescale":
        own, offset = first.weights["scale"], first.weights["offset"]
        if not own.ndim and own > 0 and not np.any(offset):
            graph, scale = graph.remove(first.name), scale * float(own)
    power = 2.0 ** round(math.log2(scale))
    weights = {"scale": np.array(scale / power), "offset": np.array(0.0)}
    rest = Node("rest_of_scale", "rescale", (graph.input_name,), weights)
    readers = graph.consumers(graph.input_name)
    moved = [node.rewire({graph.input_name: rest.name}) for node in readers]
    return fold_rescaling(graph.replace(*moved, rest), with_offsets=False), power


# The program --------------------------------------------------------------------------


def trace(
    graph: Graph, shape, layout: str, opset, postprocess: Callable | None = None
) -> tuple[Any, dict[str, Any]]:
    """Returns the MIL program of a graph, and its values by the names of the nodes.

    `shape` is the image's, and `opset` a `coremltools.target`. `postprocess` turns the
    network's outputs into the tuple that the program returns instead of them.
    """
    from coremltools.converters.mil import Builder as mb

    from tflite.formats.coreml.mil_ops import run_node

    values = {}

    @mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=opset)
    def program(image):
        values[graph.input_name] = image
        for node in graph.in_order():
            inputs = [values[name] for name in node.inputs]
            values[node.name] = run_node(layout, node, inputs)
        outputs = tuple(values[name] for name in graph.outputs)
        return postprocess(*outputs) if postprocess else outputs

    return program, values


def _resize_odd_maps(graph: Graph, spec: PackageSpec, opset) -> Graph:
    """Marks the nodes that must resize their map at one of the sizes."""
    odd = set()
    for size in spec.sizes:
        _, values = trace(graph, (1, 3, size, size), spec.layout, opset)
        for node in graph.nodes.values():
            if node.op in RESIZING:
                _, _, *sides = values[node.inputs[-1]].shape
                if np.any(np.array(sides) % node.options["patch_size"]):
                    odd.add(node.name)
    nodes = (graph.nodes[name] for name in odd)
    marked = (
        dataclasses.replace(node, options=node.options | {"resizes": True})
        for node in nodes
    )
    return graph.replace(*marked)


def _image_type(spec: PackageSpec, ct: ModuleType):
    shape, *others = [(1, 3, size, size) for size in spec.sizes]
    if others:
        shape = ct.EnumeratedShapes([shape, *others], default=shape)
    return ct.ImageType(
        name=IMAGE_NAME,
        shape=shape,
        scale=spec.pixel_scale,
        color_layout=ct.colorlayout.RGB,
    )


def convert_program(
    program, spec: PackageSpec, target, precision, classifier=None
) -> "MLModel":
    """Converts a traced program to a Core ML model.

    `target`, `precision` and `classifier` are a `coremltools.target`, a
    `coremltools.precision` and a classifier's labels, a `coremltools.ClassifierConfig`.
    """
    ct = load_coremltools()
    passes = ct.PassPipeline.DEFAULT
    # Otherwise each convolution stores its own strides, pads and so on: a tenth of a
    # file with 8-bit weights.
    passes.set_options("common::const_deduplication", {"const_threshold": 1})
    with _quietly():
        return ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            inputs=[_image_type(spec, ct)],
            classifier_config=classifier,
            minimum_deployment_target=target,
            compute_precision=precision,
            pass_pipeline=passes,
            skip_model_load=True,
        )


def make_model(
    graph: Graph, spec: PackageSpec, precision: str, name: str, classifier=None
) -> "MLModel":
    """Makes the Core ML model of a graph with one output.

    The graph is rewritten with `COREML_REWRITES`. The precision is `float16` or
    `float32`. `name` is the output's, except a classifier's, which has a
    `ClassifierConfig`. Raises a ValueError if `spec.ios` is too old for the image
    sizes.
    """
    ct = load_coremltools()
    size = spec.sizes[0]
    shape, needed = (1, 3, size, size), IOS_VERSIONS[0]
    if len(spec.sizes) > 1:
        from coremltools.converters.mil.mil import get_new_symbol

        graph = _resize_odd_maps(graph, spec, ct.target.iOS16)
        shape = (1, 3, get_new_symbol(), get_new_symbol())
        if any(
            node.op == "resize_like" or "resizes" in node.options
            for node in graph.nodes.values()
        ):
            needed = 17  # `resize` came with iOS 17
    ios = spec.ios or needed
    if ios < needed:
        raise ValueError(
            f"At the sizes {', '.join(map(str, spec.sizes))} feature maps are resized. "
            f"In a package of several sizes this needs an operation of iOS {needed}. "
            f"Received: --ios={ios}. Omit --ios, or give one size. A classifier "
            "resizes nothing at multiples of 64."
        )
    target = getattr(ct.target, f"iOS{ios}")
    program, _ = trace(graph, shape, spec.layout, target)
    if classifier is None:
        program.functions["main"].outputs[0].set_name(name)
    return convert_program(program, spec, target, ct.precision(precision), classifier)


@contextlib.contextmanager
def _quietly():
    """Hides the progress bars of coremltools' passes."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def describe(model, spec: PackageSpec, outputs: dict[str, str]) -> None:
    """Writes the descriptions that Xcode shows into a Core ML model."""
    known = ("author", "license", "version", "short_description")
    for name, text in spec.metadata.items():
        if name in known:
            setattr(model, name, text)
        else:
            model.user_defined_metadata[name] = text
    sizes = " or ".join(f"{size}x{size}" for size in spec.sizes)
    model.input_description[IMAGE_NAME] = f"RGB image of {sizes} pixels"
    for name, text in outputs.items():
        model.output_description[name] = text


# Smaller weights ----------------------------------------------------------------------


def int8_weights(model: "MLModel") -> "MLModel":
    """Quantizes a model's weights to int8, with one scale per output channel."""
    from coremltools.optimize import coreml as optimize

    with _quietly():
        known = optimize.get_weights_metadata(model, MIN_COMPRESSED)
        return optimize.linear_quantize_weights(
            model,
            optimize.OptimizationConfig(
                optimize.OpLinearQuantizerConfig(
                    mode="linear_symmetric", weight_threshold=MIN_COMPRESSED
                ),
                op_name_configs=dict.fromkeys(_other_constants(known)),
            ),
        )


def palette_weights(model: "MLModel", bits: int = 6) -> "MLModel":
    """Replaces a model's weights by indices into tables of 2**bits values.

    Each kernel has one table. Depthwise kernels stay as they are: batch normalization
    is folded into them, so the ranges of their channels differ most, and together they
    are less than a hundredth of the weights.
    """
    from coremltools.optimize import coreml as optimize

    with _quietly():
        known = optimize.get_weights_metadata(model, MIN_COMPRESSED)
        depthwise = [
            name
            for name, found in known.items()
            if found.val.ndim == 4 and found.val.shape[1] == 1
        ]
        return optimize.palettize_weights(
            model,
            optimize.OptimizationConfig(
                optimize.OpPalettizerConfig(
                    mode="kmeans", nbits=bits, weight_threshold=MIN_COMPRESSED
                ),
                op_name_configs=dict.fromkeys(depthwise + _other_constants(known)),
            ),
        )


def _other_constants(known: dict) -> list[str]:
    """Returns the names of large constants that are not weights, such as anchors."""
    return [
        name
        for name, found in known.items()
        if not WEIGHT_OPS & {operation.op_type for operation in found.child_ops}
    ]
