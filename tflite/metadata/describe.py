"""The metadata of a `.tflite` file, from the entries of its card."""

import dataclasses
import json

from keras_mobilevit.litert import CARD_INSIDE
from tflite.metadata import attach
from tflite.metadata.schema import (
    MODEL_IDENTIFIER,
    SEGMENTER_IDENTIFIER,
    Activation,
    AssociatedFile,
    BoundingBoxProperties,
    BoxType,
    ColorSpace,
    Content,
    CustomMetadata,
    FeatureProperties,
    FileType,
    ImageProperties,
    ImageSegmenterOptions,
    ImageSize,
    ModelMetadata,
    NormalizationOptions,
    ProcessUnit,
    Stats,
    SubGraphMetadata,
    TensorMetadata,
    encode,
)
from tflite.tasks.task import Output, OutputKind, Task

LABELS_FILE = "labels.txt"
# The entries of the card that a program needs to run the file, without paths.
_INSIDE = ("task", "classes", "activation", "crop", "class_names", "align_corners")
# MediaPipe's name of the metadata of a segmenter.
_SEGMENTER = "SEGMENTER_METADATA"
# Where an output has the names of the classes: along its last axis, or in its values.
_LABELS = {
    OutputKind.CLASS_SCORES: FileType.TENSOR_AXIS_LABELS,
    OutputKind.PIXEL_SCORES: FileType.TENSOR_AXIS_LABELS,
    OutputKind.CLASS_INDICES: FileType.TENSOR_VALUE_LABELS,
    OutputKind.CLASS_MAP: FileType.TENSOR_VALUE_LABELS,
}


def add_metadata(content: bytes, card: dict, task: Task, input_max: float) -> bytes:
    """Adds metadata and labels to the content of a `.tflite` file.

    Args:
        content: a file with a signature.
        card: entries of its card: `description`, `author`, `license`, `version`,
            `preprocessing`, and `labels`, as far as they are known.
        task: the task of the file, which has its outputs.
        input_max: largest value of the images, 255 or 1.
    """
    labels = names = card.get("labels", [])
    if len(labels) == 2 and card.get("classes") == 1:
        names = labels[1:]  # a single unit gives the probability of the second class
    outputs = task.outputs
    given = {name: outputs[name] for name in attach.output_names(content)}
    metadata = ModelMetadata(
        name=task.title,
        description=card.get("description", ""),
        version=card.get("version", ""),
        subgraph_metadata=(
            SubGraphMetadata(
                input_tensor_metadata=(_image(content, card, given, input_max),),
                output_tensor_metadata=tuple(
                    _output(name, output, bool(labels))
                    for name, output in given.items()
                ),
                custom_metadata=_custom_metadata(given),
            ),
        ),
        author=card.get("author", ""),
        license=card.get("license", ""),
    )
    entry = encode(metadata, MODEL_IDENTIFIER)
    content = attach.add_entry(content, attach.ENTRY, entry)
    known = card | task.metadata
    inside = {key: known[key] for key in _INSIDE if key in known}
    inside["input"] = {"largest_value": input_max}
    if names != labels:
        inside["labels"] = labels
    files = {CARD_INSIDE: json.dumps(inside, ensure_ascii=False)}
    if names:
        files[LABELS_FILE] = "\n".join(names) + "\n"
    return attach.append_files(content, files)


def _image(
    content: bytes, card: dict, outputs: dict[str, Output], input_max: float
) -> TensorMetadata:
    _, height, width, channels = attach.input_shape(content)
    is_gray = channels == 1
    size = ImageSize(width, height)
    color_space = ColorSpace.GRAYSCALE if is_gray else ColorSpace.RGB
    image = TensorMetadata(
        name="image",
        description=card.get("preprocessing", ""),
        content=Content(ImageProperties(color_space, size)),
        stats=Stats(max=(float(input_max),) * channels, min=(0.0,) * channels),
    )
    # MediaPipe reads the rows of a class map as channels. Without this step it refuses
    # the file.
    if any(output.kind is OutputKind.CLASS_MAP for output in outputs.values()):
        return image
    scale = NormalizationOptions(mean=(0.0,), std=(255 / input_max,))
    return dataclasses.replace(image, process_units=(ProcessUnit(scale),))


def _output(name: str, output: Output, has_labels: bool) -> TensorMetadata:
    properties: FeatureProperties | BoundingBoxProperties = FeatureProperties()
    if output.kind is OutputKind.BOXES:
        properties = BoundingBoxProperties((0, 1, 2, 3), BoxType.BOUNDARIES)
    labels: tuple[AssociatedFile, ...] = ()
    if has_labels and output.kind in _LABELS:
        kind = _LABELS[output.kind]
        labels = (AssociatedFile(LABELS_FILE, "names of the classes", kind),)
    return TensorMetadata(
        name=output.metadata_name or name,
        description=output.meaning,
        content=Content(properties),
        associated_files=labels,
    )


def _custom_metadata(outputs: dict[str, Output]) -> tuple[CustomMetadata, ...]:
    if all(output.kind is not OutputKind.PIXEL_SCORES for output in outputs.values()):
        return ()
    options = ImageSegmenterOptions(Activation.SOFTMAX)
    return (CustomMetadata(_SEGMENTER, encode(options, SEGMENTER_IDENTIFIER)),)
