"""Runs a conversion: loads the model and the images, and converts to each format."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import keras
from absl import logging

from keras_mobilevit.files import read_lines
from keras_mobilevit.weights.hub import CLASSIFIER_WEIGHTS, PUBLISHED
from keras_mobilevit.weights.hub_repository import address_of
from tflite.checked_file import check_earlier, write_checked
from tflite.compare_with_keras import Reference, make_reference
from tflite.formats.conversion import Conversion, prepare
from tflite.formats.coreml.options import core_ml_from_options
from tflite.formats.qat import FineTuning
from tflite.formats.table import COREML, FORMATS, TFLITE, FileType, formats_of
from tflite.images import ImageSet, check_calibration_images, load_images
from tflite.metadata.origin import describe_origin, describe_preparation
from tflite.models import (
    IMAGENET_CLASSES,
    check_labels,
    check_size,
    default_size,
    fixed_size,
    imagenet_ids,
    imagenet_labels,
    labels_beside,
    load_model,
)
from tflite.options import Options, training_config
from tflite.tasks import registry
from tflite.tasks.task import Task
from train.cli.console import tell
from train.config import TrainConfig, make_config


def _load_model(options: Options) -> keras.Model:
    try:
        return load_model(options.model, options.weights)
    except OSError as error:  # of a download
        if options.weights not in PUBLISHED:
            raise
        raise ValueError(
            f"The published weights of {options.model} cannot be downloaded. Name "
            "their file with --weights=PATH, or use --weights=none for random weights, "
            f"to measure time only. {error}"
        ) from error


def settle_size(options: Options, model: keras.Model) -> Options:
    """Returns options with the image size filled in.

    It is the size of the flags, or the only one that the model takes, or that of the
    training's evaluation, or the default of the model's task.
    """
    size = options.size or next(iter(options.core_ml.sizes), None) or fixed_size(model)
    if size is None:
        config = training_config(options.model)
        size = config.eval_size if config else default_size(options.model, model)
    return dataclasses.replace(options, size=size)


def select_tasks(options: Options, model: keras.Model) -> dict[FileType, Task]:
    """Chooses the conversion task of each file type; rejects flags of other models."""
    row = registry.row_of(model)
    for name, variant in options.variants.items():
        if row.output_flag is None or name != row.output_flag.name:
            sharing = [f.models for f in registry.output_flags() if f.name == name]
            raise ValueError(f"--{name} is for {' and '.join(sharing)}: remove it.")
        if variant not in row.output_flag.choices:
            raise ValueError(
                f"--{name} of {row.output_flag.models} is one of: "
                f"{', '.join(row.output_flag.choices)}. Received: {variant}."
            )
        if TFLITE not in options.file_types:
            raise ValueError(
                f"--{name} is for .tflite files: remove it. --raw_outputs chooses "
                "what a Core ML package returns."
            )
    tasks = {
        file_type: registry.task_of(model, _variant(options, row, file_type))
        for file_type in options.file_types
    }
    for name in options.formats:
        available = formats_of(tasks[FORMATS[name].file_type])
        if name not in available:
            raise ValueError(
                f"There is no {name} of this model. Expected some of: "
                f"{', '.join(available)}."
            )
    if COREML in tasks and model.inputs[0].shape[-1] != 3:
        raise ValueError(
            "Core ML packages take RGB images; this model takes gray ones."
        )
    task = next(iter(tasks.values()))
    if options.check_gpu and tasks[TFLITE].cpu_part:
        raise ValueError(f"--check_gpu: no GPU runs {tasks[TFLITE].cpu_part}.")
    if options.labels and task.num_classes(model) is None:
        raise ValueError("--labels: this model returns no classes. Remove it.")
    if options.crop is not None and not task.crops:
        raise ValueError(f"For {task.name} the whole image is used: remove --crop.")
    return tasks


def _variant(options: Options, row: registry.TaskRow, file_type: FileType) -> str:
    flag = row.output_flag
    if flag is None:
        return ""
    if file_type is not COREML:
        return options.variants.get(flag.name, flag.choices[0])
    is_raw = options.core_ml.raw_outputs
    return flag.in_raw_package if is_raw else flag.in_package


def _provenance(options: Options, task: Task, model: keras.Model, crop: float) -> dict:
    """Returns the card's entries on the origin of the model, and on its classes."""
    classes = task.num_classes(model)
    class_names = [] if classes is None else _class_names(options, classes)
    labels = _given_labels(options, classes) if options.labels else class_names
    class_names = class_names or labels
    is_file = options.model.endswith(".keras")
    return {
        "model": address_of(options.model),
        **({} if is_file else {"weights": address_of(options.weights)}),
        **describe_origin(
            task.title, options.model, options.weights, options.author, options.license
        ),
        **({"labels": labels} if labels or is_file else {}),
        # The data knows the classes by the names of the training.
        **({"class_names": class_names} if class_names != labels else {}),
        "crop": crop,
    }


def _preprocessing(
    options: Options, file_type: FileType, task: Task, model: keras.Model, crop: float
) -> dict[str, str]:
    """Returns the card's entry on how applications prepare an image for a file."""
    colors = "gray" if model.inputs[0].shape[-1] == 1 else "RGB"
    sizes = file_type.sizes(options)
    preparation = describe_preparation(sizes, crop if task.crops else None)
    return {"preprocessing": f"{colors}; {preparation}"}


def _given_labels(options: Options, classes: int | None) -> list[str]:
    """Returns the class names of `--labels`."""
    labels = read_lines(str(options.labels))
    check_labels(labels, classes or 0, f"--labels: {options.labels}")
    return labels


def _class_names(options: Options, classes: int) -> list[str]:
    """Returns the names that the training gave the classes, [] if unknown."""
    is_keras = options.model.endswith(".keras")
    if is_keras or Path(options.weights).is_file():
        try:
            return labels_beside(
                options.model if is_keras else options.weights, classes
            )
        except ValueError as error:
            if not options.labels:
                raise
            logging.warning("Took the class names of --labels. %s", error)
            return []
    row, _ = registry.split_name(options.model)
    published = row.load().published_labels
    if options.weights == row.published_weights and len(published) == classes:
        return list(published)
    if _is_imagenet(options, classes):
        try:
            return imagenet_labels()
        except OSError as error:
            logging.warning("The files have no class names. %s", error)
    return []


def _is_imagenet(options: Options, classes: int | None) -> bool:
    return options.weights in CLASSIFIER_WEIGHTS and classes == IMAGENET_CLASSES


def _names_in_data(
    options: Options, names: list[str], classes: int | None, images: ImageSet
) -> list[str]:
    """Returns the class names to compare with those of the validation images."""
    copies_imagenet = len(images.class_names) == IMAGENET_CLASSES
    if not _is_imagenet(options, classes) or not copies_imagenet:
        return names
    try:
        return imagenet_ids()  # the names in copies of ImageNet
    except OSError as error:
        logging.warning("%s", error)
        return []


def _origin_of_format(
    options: Options, name: str, calibration: ImageSet | None
) -> dict:
    """Returns the card's entries on the images that a format was made with."""
    described: dict = {}
    if FORMATS[name].needs_calibration and calibration:
        images = len(calibration.images)
        described["calibration"] = {"data": calibration.data, "images": images}
    if name == "int8-qat":
        described["fine_tuning"] = {
            "data": options.data.validation,
            "epochs": options.qat_epochs,
            "learning_rate": options.qat_learning_rate,
            "batch_size": options.qat_batch_size,
        }
    return described


def _load_calibration(options: Options, task: Task, crop: float) -> ImageSet | None:
    """Loads the images that set the ranges of the int8 formats, if there are any."""
    data, count = options.data.calibration, options.calibration_images
    needs_images = any(FORMATS[name].needs_calibration for name in options.formats)
    if data is None or not needs_images:
        return None
    found = load_images(task, data, "train", count, options.image_size, crop)
    check_calibration_images(found, count if options.wants_calibration_images else 0)
    return found


def _training_config(options: Options) -> TrainConfig:
    """Returns the configuration of the training, with the schedule of int8-qat."""
    return dataclasses.replace(
        training_config(options.model) or make_config(data=options.data.validation),
        epochs=options.qat_epochs,
        learning_rate=options.qat_learning_rate,
        min_learning_rate=0.0,
        warmup_learning_rate=None,
        warmup_steps=0,
        batch_size=options.qat_batch_size,
    )


def _warn_of_no_accuracy(reference: Reference) -> None:
    names = reference.validation.class_names
    task, data = reference.task, reference.validation.data
    if task.name == "classification" and not task.metric:
        logging.warning(
            "Accuracy is not measured: after a sigmoid any number of classes may be "
            "right, but each image of %s has one class.",
            data,
        )
    elif data == "digits" and task.metric and not reference.has_labels:
        logging.warning(
            "No photos were given: the files are compared with Keras on pictures of "
            "digits, and the accuracy is not measured. Give --data to measure it."
        )
    elif names and task.metric and not reference.has_labels:
        logging.warning(
            "Accuracy is not measured: the model's classes are not known to be those "
            "of %s (%s, ...). Name them in labels.txt beside the model, one per line, "
            "or in the file of --labels.",
            data,
            ", ".join(names[:3]),
        )


def _make_references(
    options: Options,
    tasks: dict[FileType, Task],
    model: keras.Model,
    class_names: list[str],
    crop: float,
) -> dict[tuple[Task, int], Reference]:
    """Returns the expected outputs for each task and size."""
    images: dict[int, ImageSet] = {}
    found: dict[tuple[Task, int], Reference] = {}
    for file_type, task in tasks.items():
        for size in file_type.sizes(options):
            if (task, size) in found:
                continue
            if size not in images:
                data, count = options.data.validation, options.validation_images
                images[size] = load_images(task, data, "validation", count, size, crop)
            classes = task.num_classes(model)
            names = _names_in_data(options, class_names, classes, images[size])
            found[task, size] = make_reference(model, images[size], names, task)
    return found


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of the conversion to one format."""

    name: str  # a key of `FORMATS`
    path: Path
    card: dict | None = None  # `None` if the file was not written
    error: str = ""  # why it was not written


def _prepare(
    options: Options,
    tasks: dict[FileType, Task],
    model: keras.Model,
    provenance: dict,
    calibration: ImageSet | None,
) -> Conversion:
    core_ml = fine_tuning = None
    if COREML in options.file_types:
        sizes = COREML.sizes(options)
        package = dataclasses.replace(options.core_ml, sizes=sizes)
        card = {
            "weights": Path(options.model).name,
            **provenance,
            **_preprocessing(options, COREML, tasks[COREML], model, provenance["crop"]),
        }
        core_ml = core_ml_from_options(package, tasks[COREML], model, card)
    if "int8-qat" in options.formats:
        config = _training_config(options)
        names = provenance.get("class_names", provenance.get("labels", []))
        fine_tuning = FineTuning(config, options.data.validation, tuple(names))
    return prepare(
        model,
        options.image_size,
        task=tasks.get(TFLITE),
        rewrite=options.rewrite,
        calibration=calibration.images if calibration else None,
        fine_tuning=fine_tuning,
        core_ml=core_ml,
    )


def _path(options: Options, name: str, task: Task) -> Path:
    file_type = FORMATS[name].file_type
    sizes = file_type.sizes(options)
    more = file_type.name_parts(options, task)
    parts = [Path(options.model).stem, *map(str, sizes), name, *more]
    return options.output_dir / f"{'_'.join(parts)}{file_type.suffix}"


def convert_all(options: Options) -> Iterator[Result]:
    """Converts a model to each format, and yields what became of each."""
    model = _load_model(options)
    options = settle_size(options, model)
    tasks = select_tasks(options, model)
    task = next(iter(tasks.values()))
    for file_type in tasks:
        for size in file_type.sizes(options):
            check_size(model, size)
    crop = options.data.crop if task.crops else 1.0
    provenance = _provenance(options, task, model, crop)
    calibration = _load_calibration(options, task, crop)
    paths = {
        name: _path(options, name, tasks[FORMATS[name].file_type])
        for name in options.formats
    }
    for path in paths.values():
        check_earlier(path, provenance)
    tell(f"running {options.model} on the validation images")
    conversion = _prepare(options, tasks, model, provenance, calibration)
    class_names = provenance.get("class_names", provenance.get("labels", []))
    references = _make_references(options, tasks, model, class_names, crop)
    _warn_of_no_accuracy(next(iter(references.values())))
    for name, path in paths.items():
        file_type = FORMATS[name].file_type
        origin = {
            **provenance,
            **_preprocessing(options, file_type, tasks[file_type], model, crop),
            **_origin_of_format(options, name, calibration),
        }
        expected = [
            references[tasks[file_type], size] for size in file_type.sizes(options)
        ]
        tell(f"converting and checking {path.name}")
        try:
            card = write_checked(
                conversion,
                name,
                expected,
                path,
                origin,
                options.allowed,
                options.check_gpu,
            )
        except (ValueError, FloatingPointError, RuntimeError) as error:
            logging.debug("Traceback:", exc_info=True)  # with --verbosity=1
            yield Result(name, path, error=str(error))
        else:
            yield Result(name, path, card)
