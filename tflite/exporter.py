"""A conversion from the model to the file and its card, with all checks between."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np
from absl import logging

from keras_mobilevit.classifier import output_activation
from keras_mobilevit.files import atomic_write
from keras_mobilevit.litert import LiteRTModel
from keras_mobilevit.value_range import input_max
from tflite.formats.file_types import TFLITE, FileType
from tflite.formats.litert import trace_graph, trace_model
from tflite.formats.table import FORMATS, Conversion
from tflite.graph.reader import kept_layers, outputs_of, read_model
from tflite.graph.rewrites import deployment_graph
from tflite.images import ImageSet
from tflite.models import fixed_size, network_images
from tflite.tasks.registry import task_of
from tflite.tasks.task import Task
from tflite.validation import card as cards
from tflite.validation import gpu, tensor_errors
from train.run.console import readable

HIGHEST_RANK = 4  # of tensors that GPU delegates take
KERAS_BATCH = 8  # MobileViT_S at 256 takes 100 MB an image


def _deployment_graph(model: keras.Model, size: int, rewrite: bool):
    if not rewrite:
        return None
    return deployment_graph(read_model(model, size, size))


def check_size(model: keras.Model, size: int) -> None:
    """Raises a ValueError if a model does not take square images of a size."""
    own = fixed_size(model)
    if own not in (None, size):
        raise ValueError(
            f"{model.name} takes images of {own}x{own} pixels only. Received: {size}. "
            "Leave --size away."
        )


def prepare(
    model: keras.Model,
    size: int,
    rewrite: bool,
    calibration_images,
    fine_tuned,
    core_ml=None,
    task: Task | None = None,
) -> Conversion:
    """Prepares the conversion of a model for square images.

    Args:
        model: an image classifier, a detector or a segmenter.
        size: side of the image in pixels.
        rewrite: whether to convert the deployment graph, not the model as it is.
        calibration_images, fine_tuned, core_ml: see `Conversion`.
        task: what the model is for; by default what `task_of` says.

    Returns:
        The `Conversion`.

    Raises:
        ValueError: if the model takes images of another size, or has a layer that no
            file can express.
    """
    check_size(model, size)
    task = task or task_of(model)
    graph, finish = _deployment_graph(model, size, rewrite), task.finish(model, size)
    if graph is not None:
        serve = trace_graph(graph, finish)
    else:
        shape = (size, size, model.inputs[0].shape[-1])
        serve = trace_model(_as_list(model), shape, finish)
    return Conversion(
        task,
        serve,
        graph,
        finish,
        input_max(model),
        calibration_images,
        fine_tuned,
        core_ml,
    )


def _as_list(model: keras.Model):
    """Makes the function from images to what `outputs_of` lists."""
    functional = keras.Model(model.inputs, outputs_of(model))
    return lambda images: keras.tree.flatten(functional([images], training=False))


@dataclasses.dataclass(frozen=True)
class Reference:
    """What Keras says of the validation images.

    Attributes:
        task: what the model is for.
        model: the Keras model.
        validation: the images.
        images: float32, in the range that the model takes.
        outputs: `{name: [images, ...]}`, what a file has to return.
        has_labels: whether the model's classes are the data's.
    """

    task: Task
    model: keras.Model
    validation: ImageSet
    images: np.ndarray
    outputs: dict[str, np.ndarray]
    has_labels: bool


def has_classes_of(labels: list[str], class_names) -> bool:
    """Tells whether a model's classes are a data set's: by their names alone.

    As many classes of other names, or of unknown ones, are other classes.
    """
    return bool(labels) and list(labels) == list(class_names)


def make_reference(
    model: keras.Model,
    validation: ImageSet,
    labels: list[str] = (),
    task: Task | None = None,
) -> Reference:
    """Runs the Keras model on the validation images.

    Args:
        model: an image classifier, a detector or a segmenter.
        validation: the images.
        labels: names of the model's classes, if known; without them there is no
            accuracy.
        task: what the model is for; by default what `task_of` says.
    """
    task = task or task_of(model)
    images = network_images(model, validation.images)
    run, finish = _as_list(model), task.reference(model, images.shape[1])
    rows = []
    for start in range(0, len(images), KERAS_BATCH):
        found = finish(run(images[start : start + KERAS_BATCH]))
        rows.append({n: keras.ops.convert_to_numpy(x) for n, x in found.items()})
    outputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    if not all(np.all(np.isfinite(values)) for values in outputs.values()):
        raise ValueError(
            f"{model.name} returns numbers that are not finite for images of "
            f"{validation.data}."
        )
    has_labels = has_classes_of(labels, validation.class_names)
    return Reference(task, model, validation, images, outputs, has_labels)


def _warn_of_kept(kept: list[str], card: dict, output: Path) -> None:
    """Warns of layers that no rewrite knows, if they are slow on phones."""
    outside = card.get("xnnpack", {}).get("ops_outside", {})
    slow = [f"{name} ({count})" for name, count in outside.items()]
    if card["max_rank"] > HIGHEST_RANK:
        slow.append(f"tensors of rank {card['max_rank']}, which GPUs refuse")
    if kept and slow:
        logging.warning(
            "%s has what XNNPACK leaves to slower kernels: %s. It comes from layers "
            "that no rewrite knows, some of: %s.",
            output.name,
            ", ".join(slow),
            ", ".join(kept),
        )


def _compare(path, file_type: FileType, reference: Reference) -> dict:
    """Returns the parts of the card for which the file is run."""
    task, validation = reference.task, reference.validation
    names = list(reference.outputs)
    outputs = file_type.run(path, validation.images, reference.images, names)
    _refuse_bad_numbers(outputs)
    images = len(reference.images)
    described = {
        "data": validation.data,
        "split": "validation",
        "images": images,
        "size": reference.images.shape[1],
    }
    accuracy = None
    if reference.has_labels and task.metric:
        accuracy = described | {
            "metric": task.metric,
            task.metric: task.score(validation, outputs),
            f"keras_{task.metric}": task.score(validation, reference.outputs),
            "tolerance": task.tolerance(images),
        }
    agreement = task.compare(reference.outputs, outputs)
    return {"parity": agreement | described, "accuracy": accuracy}


def _refuse_bad_numbers(outputs: dict[str, np.ndarray]) -> None:
    for name, values in outputs.items():
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=-1)
        if bad.any():
            raise ValueError(
                f"The file's {name} are not finite for {bad.sum()} of {len(bad)} "
                "images; Keras's are."
            )


def _activation(task: Task, model: keras.Model) -> dict[str, str]:
    """Returns the card's entry on what a classifier's numbers are."""
    if task.name != "classification":
        return {}
    return {"activation": output_activation(model)}


def _gpu_verdict(path, reference: Reference) -> dict:
    litert = LiteRTModel(path)
    verdict = gpu.check_gpu(path, litert.quantize(reference.images[:1]))
    # Of an integer output, which a classifier alone has.
    scale = max(x["quantization"][0] for x in litert.outputs.values()) or 1.0
    difference = verdict.max_abs and verdict.max_abs * scale
    return dataclasses.asdict(dataclasses.replace(verdict, max_abs=difference))


def _core_ml_verdict(path, reference: Reference) -> dict:
    from tflite.validation.on_mac import ELSEWHERE, run_in_core_ml

    verdict = run_in_core_ml(path, reference.validation.images[0])
    reason = verdict.get("reason", ELSEWHERE)
    if reason != ELSEWHERE:
        logging.warning("%s: %s", path.name, reason)
    return verdict


def _largest_errors(source: Conversion, path: Path, reference: Reference) -> list[dict]:
    content, images = path.read_bytes(), reference.images
    try:
        return tensor_errors.largest_errors(
            source.graph, source.float32, content, images
        )
    except (ValueError, RuntimeError) as error:  # which says nothing of the file
        logging.warning("The layers of %s cannot be compared: %s", path.name, error)
        return []


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
        allowed: names of checks that may fail, see `tflite.validation.card.CHECKS`.
        check_gpu: whether to run a `.tflite` on the GPU accelerator too.

    Returns:
        The card.

    Raises:
        ValueError: if the file misses a limit of its format. It is not written then,
            and an earlier one of its name stays.
    """
    row, task = FORMATS[file_format], references[0].task
    limits = row.limits | task.limits.get("", {}) | task.limits.get(file_format, {})
    kept = kept_layers(conversion.graph) if conversion.graph else []
    if kept:  # of which nobody promised that phones have them
        limits |= dict.fromkeys(("outside", "rank"))
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    meanings = {name: task.meanings[name] for name in references[0].outputs}
    with tempfile.TemporaryDirectory() as folder:  # nothing unproven in its place
        unproven = Path(folder, output.name)
        row.file_type.save(row.make(conversion), unproven)
        described = row.file_type.describe(unproven, meanings, conversion.largest_value)
        if row.file_type is TFLITE:
            described["gpu"] = "not checked"
            if check_gpu:
                described["gpu"] = _gpu_verdict(unproven, references[0])
        else:
            described["core_ml"] = _core_ml_verdict(unproven, references[0])
        compared = [_compare(unproven, row.file_type, r) for r in references]
        if row.compared_with and conversion.graph is not None:
            described["largest_errors"] = _largest_errors(
                row.compared_with(conversion), unproven, references[0]
            )
        card = {
            **provenance,
            "task": task.name,
            "classes": task.num_classes(references[0].model),
            **_activation(task, references[0].model),
            **(task.facts if row.file_type is TFLITE else {}),
            "format": file_format,
            "rewritten": conversion.graph is not None,
            "kept_layers": kept,
            **described,
            **compared[0],
            "limits": limits,
            "allowed": list(allowed),
        }
        if compared[1:]:
            card["other_sizes"] = compared[1:]
        try:
            for found in compared:
                cards.refuse_faults(card | found, limits, allowed)
        except ValueError as error:
            if not output.exists():
                raise
            raise ValueError(f"{error} An earlier {output} stays as it was.") from error
        _write(unproven, output, card, row.file_type)
    _warn_of_kept(kept, card, output)
    return card


def _write(unproven: Path, output: Path, card: dict, file_type: FileType) -> None:
    """Puts a file that has been proven in its place, and its card beside it."""
    copy = shutil.copytree if unproven.is_dir() else shutil.copyfile
    with file_type.whole(output) as temporary:
        copy(unproven, temporary)
    with atomic_write(output.with_suffix(".json")) as card_path:
        text = json.dumps(card, indent=2, allow_nan=False, ensure_ascii=False)
        card_path.write_text(readable(f"{text}\n"), "utf-8")
