"""A conversion from the model to the file and its card, with all checks between."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_mobilevit.files import whole_file
from keras_mobilevit.preprocessing import largest_value
from tflite import card as cards
from tflite import gpu, parity
from tflite.converter import output_kind, trace_graph, trace_model
from tflite.file_types import TFLITE, FileType
from tflite.formats import FORMATS, Conversion
from tflite.graph import UnknownLayer, read_model
from tflite.images import ImageSet
from tflite.rewrites import deployment_graph
from train.litert import LiteRTModel

KERAS_BATCH = 8  # MobileViT_S at 256 takes 100 MB an image


def _deployment_graph(model: keras.Model, size: int, rewrite: bool):
    if not rewrite:
        return None
    try:
        return deployment_graph(read_model(model, size, size))
    except UnknownLayer as error:
        raise ValueError(
            f"{error} --no_rewrite converts the model as it is, slower on CPUs and "
            "perhaps not for GPUs."
        ) from error


def check_size(model: keras.Model, size: int) -> None:
    """Raises a ValueError if a model does not take square images of a size."""
    height, width, _ = model.inputs[0].shape[1:]
    if {height, width} - {None, size}:
        raise ValueError(
            f"{model.name} takes images of {height}x{width} pixels only. "
            f"Received: --size={size}."
        )


def prepare(
    model: keras.Model,
    size: int,
    rewrite: bool,
    calibration_images,
    fine_tuned,
    core_ml=None,
) -> Conversion:
    """Prepares the conversion of a model for square images.

    Args:
        model: an image classifier.
        size: side of the image in pixels.
        rewrite: whether to convert the deployment graph, not the model as it is.
        calibration_images, fine_tuned, core_ml: see `Conversion`.

    Returns:
        The `Conversion`.

    Raises:
        ValueError: if the model takes images of another size, or has a layer that the
            rewriting does not know.
    """
    check_size(model, size)
    channels = model.inputs[0].shape[-1]
    graph, name = _deployment_graph(model, size, rewrite), output_kind(model)
    if graph is not None:
        serve = trace_graph(graph, name)
    else:
        shape = (size, size, channels)
        serve = trace_model(lambda x: model(x, training=False), shape, name)
    return Conversion(
        serve, graph, largest_value(model), calibration_images, fine_tuned, core_ml
    )


@dataclasses.dataclass(frozen=True)
class Reference:
    """What Keras says of the validation images.

    Attributes:
        model: the Keras model.
        validation: the images.
        images: float32, in the range that the model takes.
        outputs: `[images, classes]`.
        has_labels: whether the model's classes are the data's.
    """

    model: keras.Model
    validation: ImageSet
    images: np.ndarray
    outputs: np.ndarray
    has_labels: bool

    def top1(self, outputs) -> float:
        """Returns the percentage of images whose best class is right."""
        return float(100 * np.mean(outputs.argmax(-1) == self.validation.labels))


def has_classes_of(model: keras.Model, labels: list[str], class_names) -> bool:
    """Tells whether a model's classes are a data set's.

    By their names, where its training left them; otherwise by their number.
    """
    if labels:
        return list(labels) == list(class_names)
    return model.output_shape[-1] == len(class_names)


def make_reference(
    model: keras.Model, validation: ImageSet, labels: list[str] = ()
) -> Reference:
    """Runs the Keras model on the validation images.

    Args:
        model: an image classifier.
        validation: the images.
        labels: names of the model's classes, if known.
    """
    images = validation.images.astype(np.float32)
    images *= np.float32(largest_value(model) / 255)
    outputs = model.predict(images, KERAS_BATCH, verbose=0)
    if not np.all(np.isfinite(outputs)):
        raise ValueError(
            f"{model.name} returns numbers that are not finite for images of "
            f"{validation.data}."
        )
    has_labels = has_classes_of(model, labels, validation.class_names)
    return Reference(model, validation, images, outputs, has_labels)


def _compare(path, file_type: FileType, reference: Reference) -> dict:
    """Returns the parts of the card for which the file is run."""
    kind = output_kind(reference.model)
    outputs = file_type.run(
        path, reference.validation.images, reference.images, kind == "logits"
    )
    bad = ~np.isfinite(outputs).all(axis=-1)
    if bad.any():
        raise ValueError(
            f"The file's outputs are not finite for {bad.sum()} of {len(bad)} images; "
            "Keras's are."
        )
    agreement = parity.compare(
        reference.outputs,
        outputs,
        are_probabilities=kind == "probabilities",
    )
    described = {
        "data": reference.validation.data,
        "split": "validation",
        "images": len(outputs),
        "size": reference.images.shape[1],
    }
    accuracy = None
    if reference.has_labels:
        accuracy = described | {
            "top1": reference.top1(outputs),
            "keras_top1": reference.top1(reference.outputs),
        }
    return {"parity": agreement | described, "accuracy": accuracy}


def _gpu_verdict(path, reference: Reference) -> dict:
    litert = LiteRTModel(path)
    verdict = gpu.check_gpu(path, litert.quantize(reference.images[:1]))
    scale = litert.output["quantization"][0] or 1.0  # of an integer output
    difference = verdict.max_abs and verdict.max_abs * scale
    return dataclasses.asdict(dataclasses.replace(verdict, max_abs=difference))


def convert(
    conversion: Conversion,
    file_format: str,
    references: list[Reference],
    output: Path,
    provenance: dict,
    allowed=(),
    check_gpu: bool = False,
) -> dict:
    """Converts a model, checks the file, and writes it with its card.

    Args:
        conversion: of the model.
        file_format: a key of `FORMATS`.
        references: what its outputs must be, at each size of its images.
        output: path of the file; the card gets the ending `.json`.
        provenance: more entries of the card.
        allowed: names of checks that may fail, see `tflite.card.CHECKS`.
        check_gpu: whether to run a `.tflite` on the GPU accelerator too.

    Returns:
        The card.

    Raises:
        ValueError: if the file misses a limit of its format. It is not written then,
            and an earlier one of its name stays.
    """
    row = FORMATS[file_format]
    model = references[0].model
    with tempfile.TemporaryDirectory() as folder:  # nothing unproven in its place
        unproven = Path(folder, output.name)
        row.file_type.save(row.make(conversion), unproven)
        described = row.file_type.describe(
            unproven, output_kind(model), largest_value(model)
        )
        if row.file_type is TFLITE:
            described["gpu"] = "not checked"
            if check_gpu:
                described["gpu"] = _gpu_verdict(unproven, references[0])
        compared = [_compare(unproven, row.file_type, r) for r in references]
        card = {
            **provenance,
            "format": file_format,
            "rewritten": conversion.graph is not None,
            **described,
            **compared[0],
            "limits": dict(row.limits),
            "allowed": list(allowed),
        }
        if compared[1:]:
            card["other_sizes"] = compared[1:]
        try:
            for found in compared:
                cards.refuse_faults(card | found, row.limits, allowed)
        except ValueError as error:
            if not output.exists():
                raise
            raise ValueError(f"{error} An earlier {output} stays as it was.") from error
        _write(unproven, output, card, row.file_type)
    return card


def _write(unproven: Path, output: Path, card: dict, file_type: FileType) -> None:
    """Puts a file that has been proven in its place, and its card beside it."""
    copy = shutil.copytree if unproven.is_dir() else shutil.copyfile
    with file_type.whole(output) as temporary:
        copy(unproven, temporary)
    with whole_file(output.with_suffix(".json")) as card_path:
        card_path.write_text(json.dumps(card, indent=2, allow_nan=False) + "\n")
