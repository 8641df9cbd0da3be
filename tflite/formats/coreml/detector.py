"""Makes a Core ML model of an SSDLite detector's `Graph`.

With class names the model is a pipeline that Vision recognizes as an object detector:
the network, which decodes its boxes, and Core ML's own non-maximum suppression. Without
class names it is the network alone.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np

from keras_mobilevit.boxes import CENTER_VARIANCE, SIZE_VARIANCE
from keras_mobilevit.detection import IOU_THRESHOLD, SCORE_THRESHOLD
from tflite.formats.coreml.flags import IOS_VERSIONS
from tflite.formats.coreml.nms import (
    CONFIDENCE,
    CONFIDENCE_INPUT,
    COORDINATES,
    IOU_INPUT,
    RAW,
    add_nms,
    pad_labels,
)
from tflite.formats.coreml.package import (
    PackageSpec,
    check_labels,
    convert_program,
    describe,
    load_coremltools,
    trace,
)
from tflite.graph.graph import Graph
from tflite.validation.metadata_keys import CLASS_COUNT

if TYPE_CHECKING:
    from coremltools.models import MLModel

# Prefix of the operations that turn offsets into boxes. They stay in float32 in a
# float16 program: near 1, the step of float16 is a sixth of a pixel of 320. This adds
# no cast, since Core ML takes boxes in float32 anyway.
DECODE = "decode_"
RAW_OUTPUTS = {
    "boxes": "Box of each anchor: corners x1, y1, x2, y2 as fractions of the image",
    "scores": "Probabilities of the classes at each anchor, without the background",
}
OUTPUTS = {
    CONFIDENCE: "Boxes x probabilities of the classes",
    COORDINATES: "Boxes x [center x, center y, width, height], fractions of the image",
}
INPUTS = {
    IOU_INPUT: "A box is dropped if its overlap with a better box of its class is "
    f"larger (optional, {IOU_THRESHOLD} by default)",
    CONFIDENCE_INPUT: "A box is dropped if the probability of its best class is "
    f"smaller (optional, {SCORE_THRESHOLD} by default)",
}


# The program --------------------------------------------------------------------------


def _decode(offsets, anchors: np.ndarray):
    """Decodes offsets `[1, anchors, 4]` to two corners, each `[1, anchors, 2]`.

    Like `keras_mobilevit.detection.decode_outputs`, it clips the corners to the image.
    """
    from coremltools.converters.mil import Builder as mb

    centers, halves = anchors[:, :2], anchors[:, 2:] / 2

    def named(operation, name: str, **inputs):
        return operation(**inputs, name=f"{DECODE}{name}")

    # The center's offsets are in units of the anchor's size. `halves` is half of it.
    variances = np.array([2 * CENTER_VARIANCE] * 2 + [SIZE_VARIANCE] * 2, np.float32)
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


def _class_scores(logits):
    """Returns the probabilities of the classes without the background."""
    from coremltools.converters.mil import Builder as mb

    probabilities = mb.softmax(x=logits, axis=-1)
    return mb.slice_by_index(
        x=probabilities,
        begin=[0, 0, 1],
        end=[0, 0, 0],
        begin_mask=[True, True, False],
        end_mask=[True, True, True],
    )


def _outputs_for_nms(anchors: np.ndarray, columns: int, offsets, logits):
    """Returns confidences `[anchors, columns]` and coordinates `[anchors, 4]`."""
    from coremltools.converters.mil import Builder as mb

    first, second = _decode(offsets, anchors)
    center = mb.add(x=first, y=second, name=f"{DECODE}sum")
    center = mb.mul(x=center, y=np.float32(0.5), name=f"{DECODE}center_inside")
    size = mb.sub(x=second, y=first, name=f"{DECODE}size_inside")
    boxes = mb.concat(values=[center, size], axis=-1, name=f"{DECODE}boxes")
    boxes = mb.squeeze(x=boxes, axes=[0], name=f"{DECODE}rows")
    scores = mb.squeeze(x=_class_scores(logits), axes=[0])
    missing = columns - scores.shape[-1]
    if missing:
        scores = mb.pad(x=scores, pad=[0, missing], mode="constant", constant_val=0.0)
    return scores, boxes


def check_one_size(sizes: tuple[int, ...]) -> None:
    """Raises a ValueError if a detector's package has several image sizes."""
    if len(sizes) > 1:
        raise ValueError(
            "A detector's anchors fit one size of image. Received: --sizes="
            f"{','.join(map(str, sizes))}. Give one size with --size, and make one "
            "package for each size."
        )


def _check_shapes(anchors, spec: PackageSpec, offsets, logits) -> None:
    """Raises a ValueError if anchors or labels do not fit the network's outputs."""
    size, rows = spec.sizes[0], [x.shape[1] for x in (offsets, logits)]
    if rows != [len(anchors)] * 2:
        raise ValueError(
            f"At {size}x{size} the network has {rows[0]} boxes and {rows[1]} rows of "
            f"scores, but there are {len(anchors)} anchors. Use the anchors of this "
            f"size: anchor_boxes({size}, {size})."
        )
    if spec.labels:
        check_labels(spec.labels, logits.shape[-1] - 1)


def _postprocess(anchors: np.ndarray, spec: PackageSpec, offsets, logits):
    from coremltools.converters.mil import Builder as mb

    _check_shapes(anchors, spec, offsets, logits)
    if not spec.labels:
        corners = _decode(offsets, anchors)
        boxes = mb.concat(values=corners, axis=-1, name=f"{DECODE}boxes")
        return boxes, _class_scores(logits)
    columns = len(pad_labels(spec.labels))
    return _outputs_for_nms(anchors, columns, offsets, logits)


def make_program(graph: Graph, anchors, spec: PackageSpec, precision: str) -> "MLModel":
    """Makes the Core ML model of a detector without non-maximum suppression.

    The graph is rewritten with `COREML_REWRITES`; it returns offsets and logits, in
    this order. `anchors` are `anchor_boxes(size, size)`. With labels the model returns
    the inputs of `add_nms`, without labels `RAW_OUTPUTS`. Raises a ValueError if there
    are several sizes, or the anchors or labels do not fit the network.
    """
    ct = load_coremltools()
    check_one_size(spec.sizes)
    size = spec.sizes[0]
    target = getattr(ct.target, f"iOS{spec.ios or IOS_VERSIONS[0]}")
    postprocess = functools.partial(_postprocess, np.asarray(anchors, np.float32), spec)
    program, _ = trace(graph, (1, 3, size, size), spec.layout, target, postprocess)
    names = [RAW[CONFIDENCE], RAW[COORDINATES]] if spec.labels else RAW_OUTPUTS
    for output, name in zip(program.functions["main"].outputs, names):
        output.set_name(name)
    compute = ct.precision(precision)
    if precision == "float16":
        compute = ct.transform.FP16ComputePrecision(
            lambda operation: not operation.name.startswith(DECODE)
        )
    return convert_program(program, spec, target, compute)


# The pipeline -------------------------------------------------------------------------


def finalize_detector(program: "MLModel", spec: PackageSpec) -> "MLModel":
    """Adds non-maximum suppression, if the package has labels, and descriptions."""
    ct = load_coremltools()
    if not spec.labels:
        describe(program, spec, RAW_OUTPUTS)
        return program
    # `ct.utils.make_pipeline` would leave a copy of the weights behind.
    model = ct.models.MLModel(
        add_nms(program.get_spec(), pad_labels(spec.labels)),
        weights_dir=program.weights_dir,
        skip_model_load=True,
    )
    describe(model, spec, OUTPUTS)
    model.user_defined_metadata[CLASS_COUNT] = str(len(spec.labels))
    for name, text in INPUTS.items():
        model.input_description[name] = text
    return model
