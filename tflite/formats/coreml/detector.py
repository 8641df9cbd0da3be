"""Makes a Core ML model of an SSDLite detector's `Graph`.

With class names it is a pipeline that Vision takes for an object detector: the network,
which decodes its boxes, and after it Core ML's own non-maximum suppression. Without it
is the network alone.
"""

import functools

import numpy as np

from keras_mobilevit.boxes import CENTER_VARIANCE, SIZE_VARIANCE
from keras_mobilevit.detection import IOU_THRESHOLD, SCORE_THRESHOLD
from tflite.formats.coreml.flags import IOS_VERSIONS
from tflite.formats.coreml.package import (
    Interface,
    check_labels,
    convert_program,
    describe,
    image_type,
    load_coremltools,
    trace,
)
from tflite.formats.coreml.suppression import (
    CLASS_COUNT,
    CONFIDENCE,
    CONFIDENCE_INPUT,
    COORDINATES,
    IOU_INPUT,
    RAW,
    add_suppression,
    fill_up,
)
from tflite.graph.graph import Graph

# Begins the names of what turns offsets into boxes. It stays in 32 bits in a program of
# 16, in which neighbouring numbers near 1 are a sixth of a pixel of 320 apart; nor is
# there a cast more, since Core ML takes the boxes in 32 bits in any case.
DECODE = "decode_"
RAW_OUTPUTS = {
    "boxes": "Box of each anchor: corners x1, y1, x2, y2 as fractions of the image",
    "scores": "Probabilities of the classes at each anchor, without the background's",
}
OUTPUTS = {
    CONFIDENCE: "Boxes x probabilities of the classes",
    COORDINATES: "Boxes x [centre x, centre y, width, height], fractions of the image",
}
INPUTS = {
    IOU_INPUT: "Boxes of a class that overlap a better one by more are dropped "
    f"(optional, {IOU_THRESHOLD} by default)",
    CONFIDENCE_INPUT: "Boxes of which no class is as probable are dropped "
    f"(optional, {SCORE_THRESHOLD} by default)",
}


# The program --------------------------------------------------------------------------


def _decode(offsets, anchors: np.ndarray):
    """From offsets `[1, anchors, 4]` to the first and second corners, each `[.., 2]`.

    What `decode_outputs` of `keras_mobilevit.detection` does, which cuts off what lies
    beyond the image.
    """
    from coremltools.converters.mil import Builder as mb

    centers, halves = anchors[:, :2], anchors[:, 2:] / 2

    def named(operation, name: str, **inputs):
        return operation(**inputs, name=f"{DECODE}{name}")

    # Those of the centre are in units of the anchor's size; here, of half of it.
    variances = np.float32([2 * CENTER_VARIANCE] * 2 + [SIZE_VARIANCE] * 2)
    scaled = named(mb.mul, "scaled", x=offsets, y=variances)
    center, size = named(mb.split, "parts", x=scaled, split_sizes=[2, 2], axis=-1)
    center = named(mb.mul, "shift", x=center, y=halves)
    center = named(mb.add, "center", x=center, y=centers)
    half = named(mb.mul, "half", x=named(mb.exp, "ratio", x=size), y=halves)
    corners = (
        named(mb.sub, "first", x=center, y=half),
        named(mb.add, "second", x=center, y=half),
    )
    return [
        named(mb.clip, f"{name}_inside", x=corner, alpha=0.0, beta=1.0)
        for name, corner in zip(("first", "second"), corners)
    ]


def _without_background(logits):
    from coremltools.converters.mil import Builder as mb

    probabilities = mb.softmax(x=logits, axis=-1)
    return mb.slice_by_index(
        x=probabilities,
        begin=[0, 0, 1],
        end=[0, 0, 0],
        begin_mask=[True, True, False],
        end_mask=[True, True, True],
    )


def _raw_outputs(anchors: np.ndarray, offsets, logits):
    """Returns boxes as corners and scores, as in `RAW_OUTPUTS`."""
    from coremltools.converters.mil import Builder as mb

    corners = _decode(offsets, anchors)
    boxes = mb.concat(values=corners, axis=-1, name=f"{DECODE}boxes")
    return boxes, _without_background(logits)


def _outputs_for_suppression(anchors: np.ndarray, columns: int, offsets, logits):
    """Returns confidences `[anchors, columns]` and coordinates `[anchors, 4]`."""
    from coremltools.converters.mil import Builder as mb

    first, second = _decode(offsets, anchors)
    center = mb.add(x=first, y=second, name=f"{DECODE}sum")
    center = mb.mul(x=center, y=np.float32(0.5), name=f"{DECODE}center_inside")
    size = mb.sub(x=second, y=first, name=f"{DECODE}size_inside")
    boxes = mb.concat(values=[center, size], axis=-1, name=f"{DECODE}boxes")
    boxes = mb.squeeze(x=boxes, axes=[0], name=f"{DECODE}rows")
    scores = mb.squeeze(x=_without_background(logits), axes=[0])
    missing = columns - scores.shape[-1]
    if missing:
        scores = mb.pad(x=scores, pad=[0, missing], mode="constant", constant_val=0.0)
    return scores, boxes


def check_one_size(sizes: tuple[int, ...]) -> None:
    """Raises a ValueError if a detector shall take images of several sizes."""
    if len(sizes) > 1:
        raise ValueError(
            "A detector's anchors are those of one size of image. Received: --sizes="
            f"{','.join(map(str, sizes))}. Give one with --size, and make a package "
            "for each."
        )


def _check_shapes(anchors, interface: Interface, offsets, logits) -> None:
    """Raises a ValueError if the network has not the anchors or the labels given."""
    size, rows = interface.sizes[0], [x.shape[1] for x in (offsets, logits)]
    if rows != [len(anchors)] * 2:
        raise ValueError(
            f"At {size}x{size} the network has {rows[0]} boxes and {rows[1]} rows of "
            f"scores, but there are {len(anchors)} anchors. Take those of this size: "
            f"anchor_boxes({size}, {size})."
        )
    if interface.labels:
        check_labels(interface.labels, logits.shape[-1] - 1)


def _finish(anchors: np.ndarray, interface: Interface, offsets, logits):
    """Returns what the program shall return, from what the network does."""
    _check_shapes(anchors, interface, offsets, logits)
    if not interface.labels:
        return _raw_outputs(anchors, offsets, logits)
    columns = len(fill_up(interface.labels))
    return _outputs_for_suppression(anchors, columns, offsets, logits)


def make_program(graph: Graph, anchors, interface: Interface, precision: str):
    """Makes the Core ML model of a detector before non-maximum suppression.

    Args:
        graph: rewritten with `tflite.graph.rewrites.COREML_REWRITES`; its outputs are
            offsets and logits, in this order.
        anchors: `[anchors, 4]`, `anchor_boxes(size, size)`.
        interface: what an application sees of it; with labels for `finish_detector` to
            add the suppression, without for `RAW_OUTPUTS`.
        precision: `float16` or `float32`, of weights and maps.

    Returns:
        A `coremltools.models.MLModel`, whose weights can be made smaller.

    Raises:
        ValueError: if coremltools cannot be used, there are several sizes, or the
            anchors or labels do not fit the network.
    """
    ct = load_coremltools()
    check_one_size(interface.sizes)
    size = interface.sizes[0]
    target = getattr(ct.target, f"iOS{interface.ios or IOS_VERSIONS[0]}")
    finish = functools.partial(_finish, np.asarray(anchors, np.float32), interface)
    program, _ = trace(graph, (1, 3, size, size), interface.layout, target, finish)
    names = [RAW[CONFIDENCE], RAW[COORDINATES]] if interface.labels else RAW_OUTPUTS
    for output, name in zip(program.functions["main"].outputs, names):
        output.set_name(name)
    compute = ct.precision(precision)
    if precision == "float16":
        compute = ct.transform.FP16ComputePrecision(
            lambda operation: not operation.name.startswith(DECODE)
        )
    return convert_program(program, image_type(interface, ct), target, compute)


# The pipeline -------------------------------------------------------------------------


def finish_detector(program, interface: Interface):
    """Adds non-maximum suppression to a program, if it has class names.

    Args:
        program: of `make_program`, perhaps with smaller weights.
        interface: as there.

    Returns:
        A `coremltools.models.MLModel` that can be saved.
    """
    ct = load_coremltools()
    if not interface.labels:
        describe(program, interface, RAW_OUTPUTS)
        return program
    # Of its own, not `make_pipeline`'s, which leaves a copy of the weights behind.
    model = ct.models.MLModel(
        add_suppression(program.get_spec(), fill_up(interface.labels)),
        weights_dir=program.weights_dir,
        skip_model_load=True,
    )
    describe(model, interface, OUTPUTS)
    model.user_defined_metadata[CLASS_COUNT] = str(len(interface.labels))
    for name, text in INPUTS.items():
        model.input_description[name] = text
    return model


def make_detector(
    graph: Graph, anchors, interface: Interface, precision: str, compress=None
):
    """Makes the Core ML model of a detector.

    Args:
        graph, anchors, interface, precision: see `make_program`.
        compress: `int8_weights` or `palette_weights` of `tflite.formats.coreml.package`, or
            nothing.

    Returns:
        A `coremltools.models.MLModel` that can be saved.

    Raises:
        ValueError: as `make_program`.
    """
    program = make_program(graph, anchors, interface, precision)
    return finish_detector(compress(program) if compress else program, interface)
