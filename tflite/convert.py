"""Converts MobileViT to TFLite and Core ML, and proves that it gives the same numbers.

Examples:

  python tflite/convert.py --model=runs/demo/best.keras --size=48 --output_dir=out
  python tflite/convert.py --model=runs/photos/best.keras \\
      --formats=fp32,fp16,dynamic,int8-mixed,int8 --output_dir=out
  python tflite/convert.py --model=mobilevit_xxs --weights=none --output_dir=out
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

from keras_mobilevit.coco_names import COCO_NAMES
from keras_mobilevit.preprocessing import largest_value
from keras_mobilevit.voc_names import VOC_NAMES
from tflite import classification, convert_flags
from tflite.conversion import (
    check_size,
    convert,
    has_classes_of,
    make_reference,
    prepare,
)
from tflite.converter import trace_graph
from tflite.coreml import options as coreml_options
from tflite.file_types import COREML, TFLITE
from tflite.formats import FORMATS, Conversion
from tflite.images import check_calibration_images, load_images
from tflite.models import labels_beside, load_model
from tflite.task import Task
from train.config import load_config, make_config

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


def _provenance(args, task: Task, model: keras.Model) -> tuple[dict, str, float]:
    """Returns what the card says of the model, its data, and the evaluation's crop."""
    data, crop = "digits", 1.0
    if args.model.endswith(".keras"):
        labels = labels_beside(args.model, task.num_classes(model))
        provenance = {"model": args.model, "labels": labels}
        config_file = convert_flags.config_file(args.model)
        if config_file:
            config = load_config(config_file)
            data, crop = config.data, config.eval_crop
        elif args.data is None:
            logging.warning(
                "There is no config.json beside %s: comparing and calibrating on the "
                "digits. Name the model's own images with --data.",
                args.model,
            )
    else:
        provenance = {"model": args.model, "weights": args.weights}
        if args.weights in PUBLISHED_NAMES:
            provenance["labels"] = list(PUBLISHED_NAMES[args.weights])
    crop = (args.crop or crop) if task.crops else 1.0
    return provenance, args.data or data, crop


def _summary(path: Path, card: dict) -> str:
    accuracy = card["accuracy"]
    parts = [
        f"{card['bytes'] / 1e6:.2f} MB",
        *FORMATS[card["format"]].file_type.facts(card),
        _difference(card["parity"]),
        _accuracy(accuracy, card["parity"]),
        f"on {card['parity']['images']} images of {card['parity']['data']}",
    ]
    return f"{path}: {', '.join(parts)}"


def _difference(parity: dict) -> str:
    if "psnr_db" not in parity:  # classes, which are no amounts
        return f"{100 * parity['agreement']:.3f} % of the pixels of the same class"
    psnr = f", PSNR {parity['psnr_db']:.0f} dB"
    return f"max abs difference {parity['max_abs']:.1e}{psnr}"


def _accuracy(accuracy: dict | None, parity: dict) -> str:
    if accuracy:
        metric = accuracy["metric"]
        values = accuracy[metric], accuracy[f"keras_{metric}"]
        return "{} {:.2f} % (Keras {:.2f} %)".format(metric, *values)
    name = "agreement" if "agreement" in parity else "top1_agreement"
    return f"{name.replace('_', ' ')} {100 * parity[name]:.1f} %"


def _training_config(args, data: str):
    """Returns how the model was trained, with the schedule of the fine-tuning."""
    file = convert_flags.config_file(args.model)
    config = load_config(file) if file else make_config(data=data)
    return dataclasses.replace(
        config,
        epochs=args.qat_epochs,
        learning_rate=args.qat_learning_rate,
        min_learning_rate=0.0,
        warmup_steps=0,
        batch_size=args.qat_batch_size,
    )


def _conversion_from_flags(
    args,
    task: Task,
    model,
    labels: list[str],
    data: str,
    crop: float,
    calibration: dict,
) -> Conversion:
    """Prepares the conversion; `calibration` gets the number of images that it used."""
    scale = np.float32(largest_value(model) / 255)

    def calibration_images() -> np.ndarray:
        count = args.calibration_images
        found = load_images(
            task.training, calibration["data"], "train", count, args.size, crop
        )
        check_calibration_images(found)
        calibration["images"] = len(found.images)
        return found.images.astype(np.float32) * scale

    def fine_tuned() -> Conversion:
        from tflite import qat  # loads tf_keras

        if conversion.graph is None:
            raise ValueError("int8-qat trains the rewritten network: no --no_rewrite.")
        source = task.training.load_source(data)
        if not has_classes_of(task.num_classes(model), labels, source.class_names):
            raise ValueError(
                f"int8-qat trains on {data}, which has other classes than the model. "
                "Name the model's data with --data."
            )
        config = _training_config(args, data)
        is_logits = classification.output_name(model) == "logits"
        graph = qat.fine_tune(conversion.graph, config, source, scale, is_logits)
        serve = trace_graph(graph, task.finish(model, args.size))
        return Conversion(
            task,
            serve,
            graph,
            largest_value(model),
            calibration_images,
            fine_tuned=None,
            core_ml=None,
        )

    core_ml = None
    if COREML in convert_flags.file_types(args):
        core_ml = coreml_options.core_ml_from_flags(args, task, model, labels, crop)
    conversion = prepare(  # which `fine_tuned` starts from
        model,
        args.size,
        not args.no_rewrite,
        calibration_images,
        fine_tuned,
        core_ml,
        task,
    )
    return conversion


def _how_made(args, name: str, data: str, calibration: dict) -> dict:
    """Returns what the card of a format says of the data that it was made with."""
    made = {}
    if name.startswith("int8"):
        made["calibration"] = calibration
    if name == "int8-qat":
        made["fine_tuning"] = {
            "data": data,
            "epochs": args.qat_epochs,
            "learning_rate": args.qat_learning_rate,
            "batch_size": args.qat_batch_size,
        }
    return made


def _convert_all(args, folder: Path) -> None:
    model = load_model(args.model, args.weights)
    tasks = convert_flags.tasks_from_flags(args, model)
    task = next(iter(tasks.values()))
    provenance, data, crop = _provenance(args, task, model)
    labels = provenance.get("labels", [])
    calibration = {"data": args.calibration or data}
    conversion = _conversion_from_flags(
        args, task, model, labels, data, crop, calibration
    )
    sizes = {TFLITE: (args.size,), COREML: coreml_options.package_sizes(args)}
    for file_type in tasks:
        for size in sizes[file_type]:
            check_size(model, size)

    @functools.cache
    def validation(size: int):
        return load_images(
            task.training, data, "validation", args.eval_images, size, crop
        )

    @functools.cache
    def reference(task: Task, size: int):
        return make_reference(model, validation(size), labels, task)

    for name in dict.fromkeys(args.formats):
        file_type = FORMATS[name].file_type
        parts = [Path(args.model).stem, *sizes[file_type], name]
        if tasks[file_type].suffix and file_type is TFLITE:
            parts.append(tasks[file_type].suffix)
        if file_type is COREML:
            parts += coreml_options.name_parts(args)
        stem = "_".join(map(str, parts))
        path = folder / f"{stem}{file_type.suffix}"
        card = convert(
            conversion,
            name,
            [reference(tasks[file_type], size) for size in sizes[file_type]],
            path,
            provenance | {"crop": crop} | _how_made(args, name, data, calibration),
            args.allow,
            args.check_gpu,
        )
        print(_summary(path, card), flush=True)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    try:
        folder = convert_flags.check_flags()
        with _only_conversion(folder):
            _convert_all(flags.FLAGS, folder)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    # Warnings only: TensorFlow and the quantizer tell every step otherwise.
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    convert_flags.define_flags()
    for module in (convert_flags, coreml_options):
        flags.adopt_module_key_flags(module)  # so that --help shows them
    app.run(main)
