"""Converts MobileViT to TFLite and Core ML, and proves that it gives the same numbers.

Examples:
  python tflite/convert.py --model=runs/demo/best.keras --size=48 --output_dir=out
  python tflite/convert.py --model=runs/photos/best.keras \\
      --formats=fp32,fp16,dynamic,int8-mixed,int8 --output_dir=out
  python tflite/convert.py --model=mobilevit_s --output_dir=out  # as published
  python tflite/convert.py --model=runs/cells/best.keras --nms=builtin --output_dir=out
  python tflite/convert.py --model=runs/roads/best.keras --output=classmap \\
      --output_dir=out
  python tflite/convert.py --model=runs/photos/best.keras \\
      --formats=coreml,coreml-int8 --output_dir=out

Writes <name>_<size>_<format>.tflite with batch 1 and TFLite's own operations only, or
.mlpackage, which takes an image and returns class names, boxes or a class map. The
network is first rewritten into a faster one with the same outputs: batch normalization
and scales folded, no tensor above rank 4, one piece on XNNPACK and on GPUs. Each file
is run beside Keras on validation images (a package in NumPy, on any machine); one that
misses a limit of its format is not written (--allow=NAME lets one limit pass). A JSON
card beside it says what it is: input, output, labels, operations, size, parity,
accuracy, versions.

Formats:

{formats}

"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whose converter this is
# Three times faster training for int8-qat; read once, when TensorFlow is loaded.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import contextlib
import dataclasses
import functools
import textwrap

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from keras_mobilevit.class_names import COCO_NAMES, VOC_NAMES
from keras_mobilevit.litert import read_card
from tflite import flags as convert_flags
from tflite.exporter import (
    Reference,
    check_size,
    convert,
    has_classes_of,
    make_reference,
    prepare,
)
from tflite.formats.coreml import options as coreml_options
from tflite.formats.coreml.options import IMAGENET_CLASSES
from tflite.formats.file_types import COREML, TFLITE
from tflite.formats.table import FORMATS, Conversion
from tflite.graph.reader import kept_layers
from tflite.images import ImageSet, check_calibration_images, load_images
from tflite.models import imagenet_ids, labels_beside, load_model, network_images
from tflite.tasks import classification
from tflite.tasks.task import Task
from train.config import load_config, make_config
from train.data.registry import load_source
from train.run.console import print_any_name

PUBLISHED_NAMES = {"coco": COCO_NAMES, "voc": VOC_NAMES}  # of published weights

__doc__ = __doc__.format(
    formats="\n".join(
        textwrap.fill(
            row.purpose,
            88,
            initial_indent=f"  {name:<16}",
            subsequent_indent=" " * 18,
        )
        for name, row in FORMATS.items()
    )
)


@contextlib.contextmanager
def _only_conversion(folder: Path):
    """Keeps others from converting into a folder at the same time."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(
            f"Another conversion writes into {folder}. Wait for it, or name another "
            "--output_dir."
        ) from error
    finally:
        os.close(handle)


def _load_model(args) -> keras.Model:
    try:
        return load_model(args.model, args.weights)
    except OSError as error:  # of a download
        if args.weights not in convert_flags.PUBLISHED_WEIGHTS.values():
            raise
        raise ValueError(
            f"The published weights of {args.model} are missing: name their file with "
            "--weights=PATH, or convert random weights, to measure time alone, with "
            f"--weights=none. {error}"
        ) from error


def _provenance(args, task: Task, model: keras.Model) -> dict:
    """Returns what the card says of the model's origin."""
    classes = task.num_classes(model)
    if args.model.endswith(".keras"):
        labels = [] if classes is None else labels_beside(args.model, classes)
        return {"model": args.model, "labels": labels}
    provenance = {"model": args.model, "weights": args.weights}
    if args.weights in PUBLISHED_NAMES:
        provenance["labels"] = list(PUBLISHED_NAMES[args.weights])
    elif Path(args.weights).is_file():
        provenance["labels"] = labels_beside(args.weights, classes)
    return provenance


def _class_names(args, labels: list[str], classes: int) -> list[str]:
    """Returns the names by which a data set's classes are compared with the model's."""
    is_published = args.weights == "imagenet" and classes == IMAGENET_CLASSES
    if labels or not is_published or not args.data:
        return labels
    try:
        return imagenet_ids()  # as data sets of ImageNet name its classes
    except OSError as error:
        logging.warning("%s", error)
        return []


def _warn_of_no_accuracy(reference: Reference) -> None:
    names = reference.validation.class_names
    is_classifier = reference.task.name == "classification"
    if is_classifier and not reference.task.metric:
        logging.warning(
            "Accuracy is not measured: after a sigmoid any number of classes may be "
            "right, and images of %s have one each.",
            reference.validation.data,
        )
    elif names and reference.task.metric and not reference.has_labels:
        logging.warning(
            "Accuracy is not measured: the model's classes are not known to be those "
            "of %s (%s, ...). Name them in labels.txt beside the model, one a line.",
            reference.validation.data,
            ", ".join(names[:3]),
        )


def _summary(path: Path, card: dict) -> str:
    accuracy = card["accuracy"]
    parts = [
        f"{card['bytes'] / 1e6:.2f} MB",
        *FORMATS[card["format"]].file_type.facts(card),
        _difference(card["parity"]),
        *_accuracy(accuracy, card["parity"]),
        f"on {card['parity']['images']} images of {card['parity']['data']}",
    ]
    return f"{path}: {', '.join(parts)}"


def _difference(parity: dict) -> str:
    if "psnr_db" not in parity:  # classes, which are no amounts
        return f"{100 * parity['agreement']:.3f} % of the pixels of the same class"
    psnr = f", PSNR {parity['psnr_db']:.0f} dB"
    return f"max abs difference {parity['max_abs']:.1e}{psnr}"


def _accuracy(accuracy: dict | None, parity: dict) -> list[str]:
    if accuracy:
        metric = accuracy["metric"]
        values = accuracy[metric], accuracy[f"keras_{metric}"]
        return ["{} {:.2f} % (Keras {:.2f} %)".format(metric, *values)]
    names = [name for name in parity if name.endswith("agreement")]
    return [f"{n.replace('_', ' ')} {100 * parity[n]:.1f} %" for n in names[:1]]


def _training_config(args, data: str):
    """Returns how the model was trained, with the schedule of the fine-tuning."""
    file = convert_flags.config_file(args.model)
    config = load_config(file) if file else make_config(data=data)
    return dataclasses.replace(
        config,
        epochs=args.qat_epochs,
        learning_rate=args.qat_learning_rate,
        min_learning_rate=0.0,
        warmup_learning_rate=None,
        warmup_steps=0,
        batch_size=args.qat_batch_size,
    )


def _load_calibration(args, task: Task, data: convert_flags.Data) -> ImageSet:
    """Loads the images that set the ranges of the int8 formats."""
    wanted = args.calibration_images
    found = load_images(
        task, data.calibration, "train", wanted, args.size, _crop(task, data)
    )
    check_calibration_images(found, wanted if args["calibration_images"].present else 0)
    return found


def _crop(task: Task, data: convert_flags.Data) -> float:
    return data.crop if task.crops else 1.0


def _fine_tuned(args, conversion: Conversion, model, labels, data: str) -> Conversion:
    """Trains the equalized network with rounding, for int8-qat."""
    from tflite.formats import qat  # loads tf_keras

    if conversion.graph is None:
        raise ValueError("int8-qat trains the rewritten network: no --no_rewrite.")
    kept = kept_layers(conversion.graph)
    if kept:
        raise ValueError(
            f"int8-qat cannot train the layers {', '.join(kept)}, which no rewrite "
            "knows. Use int8-mixed."
        )
    source = load_source(conversion.task.training.name, data)
    if not has_classes_of(labels, source.class_names):
        raise ValueError(
            f"int8-qat trains on {data}, whose classes are not known to be the "
            "model's. Name the model's data with --data, and its classes in "
            "labels.txt beside the .keras file."
        )
    started = conversion.equalized
    scale = np.float32(conversion.largest_value / 255)
    is_logits = classification.output_name(model) == "logits"
    config = _training_config(args, data)
    graph = qat.fine_tune(started.graph, config, source, scale, is_logits)
    return started.with_graph(graph)


def _conversion_from_flags(
    args,
    task: Task,
    model,
    labels: list[str],
    data: convert_flags.Data,
    calibration: ImageSet | None,
) -> Conversion:
    """Prepares the conversion; nothing is computed until a format asks for it."""

    @functools.cache
    def fine_tuned() -> Conversion:
        return _fine_tuned(args, conversion, model, labels, data.validation)

    core_ml = None
    if COREML in convert_flags.file_types(args):
        core_ml = coreml_options.core_ml_from_flags(
            args, task, model, labels, _crop(task, data)
        )
    conversion = prepare(  # which `fine_tuned` starts from
        model,
        args.size,
        not args.no_rewrite,
        lambda: network_images(model, calibration.images),
        fine_tuned,
        core_ml,
        task,
    )
    return conversion


def _how_made(args, name: str, data: str, calibration: ImageSet | None) -> dict:
    """Returns what the card of a format says of the data that it was made with."""
    made = {}
    if FORMATS[name].needs_calibration:
        images = len(calibration.images)
        made["calibration"] = {"data": calibration.data, "images": images}
    if name == "int8-qat":
        made["fine_tuning"] = {
            "data": data,
            "epochs": args.qat_epochs,
            "learning_rate": args.qat_learning_rate,
            "batch_size": args.qat_batch_size,
        }
    return made


def _file_name(args, name: str, task: Task, sizes: tuple[int, ...]) -> str:
    """Returns the name of the file of a format."""
    file_type = FORMATS[name].file_type
    parts = [Path(args.model).stem, *sizes, name]
    if task.suffix and file_type is TFLITE:
        parts.append(task.suffix)
    if file_type is COREML:
        parts += coreml_options.name_parts(args)
    return "_".join(map(str, parts)) + file_type.suffix


def _paths(args, folder: Path, tasks: dict, sizes: dict) -> dict[str, Path]:
    """Returns where the file of each format goes."""
    paths = {}
    for name in args.formats:
        kind = FORMATS[name].file_type
        paths[name] = folder / _file_name(args, name, tasks[kind], sizes[kind])
    return paths


def _check_earlier(path: Path, provenance: dict) -> None:
    """Refuses to replace the file of another model, which may have the same name."""
    card = read_card(path)
    if not path.exists() or "model" not in card:
        return
    origins = [
        [str(x.get(key, "")) for key in ("model", "weights")]
        for x in (card, provenance)
    ]
    was, now = ([Path(name).absolute() for name in names] for names in origins)
    if was != now:
        earlier = " with the weights ".join(filter(None, origins[0]))
        raise ValueError(
            f"{path} was made of {earlier}. Name another --output_dir, or remove it "
            "first."
        )


def _convert_all(args, folder: Path, data: convert_flags.Data) -> list[str]:
    """Converts to every format; returns those that were refused."""
    model = _load_model(args)
    convert_flags.settle_size(args, model)
    tasks = convert_flags.tasks_from_flags(args, model)
    task = next(iter(tasks.values()))
    crop = _crop(task, data)
    sizes = {TFLITE: (args.size,), COREML: coreml_options.package_sizes(args)}
    for file_type in tasks:
        for size in sizes[file_type]:
            check_size(model, size)
    calibration = None
    if any(FORMATS[name].needs_calibration for name in args.formats):
        calibration = _load_calibration(args, task, data)
    provenance = _provenance(args, task, model) | {"crop": crop}
    paths = _paths(args, folder, tasks, sizes)
    for path in paths.values():
        _check_earlier(path, provenance)
    labels = provenance.get("labels", [])
    names = _class_names(args, labels, task.num_classes(model))
    conversion = _conversion_from_flags(args, task, model, labels, data, calibration)

    @functools.cache
    def validation(size: int):
        return load_images(
            task, data.validation, "validation", args.eval_images, size, crop
        )

    @functools.cache
    def reference(task: Task, size: int):
        return make_reference(model, validation(size), names, task)

    _warn_of_no_accuracy(reference(task, sizes[next(iter(tasks))][0]))
    refused = []
    for name, path in paths.items():
        file_type = FORMATS[name].file_type
        origin = provenance | _how_made(args, name, data.validation, calibration)
        references = [reference(tasks[file_type], size) for size in sizes[file_type]]
        if not _convert_one(args, conversion, name, references, path, origin):
            refused.append(name)
    return refused


def _convert_one(args, conversion, name, references, path: Path, provenance) -> bool:
    """Converts to one format; tells whether it was written."""
    try:
        card = convert(
            conversion, name, references, path, provenance, args.allow, args.check_gpu
        )
    except (ValueError, FloatingPointError, RuntimeError) as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        print(f"error: {path.name} was not written: {error}", file=sys.stderr)
        return False
    print(_summary(path, card), flush=True)
    return True


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    print_any_name()
    try:
        folder, data = convert_flags.check_flags()
        with _only_conversion(folder):
            refused = _convert_all(flags.FLAGS, folder, data)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {error}")
    if refused:
        count = len(set(flags.FLAGS.formats))
        sys.exit(f"{len(refused)} of {count} formats refused: {', '.join(refused)}.")


if __name__ == "__main__":
    # Warnings only: TensorFlow and the quantizer tell every step otherwise.
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    convert_flags.define_flags()
    for module in (convert_flags, coreml_options):
        flags.adopt_module_key_flags(module)  # so that --help shows them
    app.run(main)
