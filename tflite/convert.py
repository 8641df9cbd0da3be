"""Converts MobileViT to TFLite and Core ML, and proves that it gives the same numbers.

Examples:

  python tflite/convert.py --model=runs/demo/best.keras --size=48 --output_dir=out
  python tflite/convert.py --model=runs/photos/best.keras \\
      --formats=fp32,fp16,dynamic,int8-mixed,int8 --output_dir=out
  python tflite/convert.py --model=mobilevit_xxs --weights=none --output_dir=out
  python tflite/convert.py --model=runs/photos/best.keras \\
      --formats=coreml,coreml-int8 --output_dir=out

Writes <name>_<size>_<format>.tflite with batch 1 and TFLite's own operations only, or
.mlpackage, which takes an image and returns class names. The network is first rewritten
into a faster one with the same outputs: batch normalization and scales folded, no
tensor above rank 4, one piece on XNNPACK and on GPUs. Each file is run beside Keras on
validation images (a package in NumPy, on any machine); one that misses a limit of its
format is not written (--allow=NAME lets one limit pass). A JSON card beside it says
what it is: input, output, labels, operations, size, parity, accuracy, versions.

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
import tempfile
import textwrap

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from keras_mobilevit.classifier import DEFAULT_SIZE
from keras_mobilevit.configs import MIN_SIZE
from keras_mobilevit.preprocessing import largest_value
from tflite import card as cards
from tflite import gpu
from tflite.baselines import BASELINES
from tflite.conversion import (
    check_size,
    convert,
    has_classes_of,
    make_reference,
    prepare,
)
from tflite.converter import output_kind, trace_graph
from tflite.coreml import options as coreml_options
from tflite.file_types import COREML, TFLITE
from tflite.formats import FORMATS, Conversion
from tflite.images import check_calibration_images, load_images
from tflite.models import labels_beside, load_model
from train.config import load_config, make_config
from train.sources import load_source

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


def define_flags() -> None:
    flags.DEFINE_string(
        "model",
        None,
        "mobilevit_xxs, mobilevit_xs, mobilevit_s, a .keras file, or with --size=224 "
        f"one of {', '.join(BASELINES)}.",
    )
    flags.DEFINE_string(
        "weights", "none", "For a named model: none (random), imagenet, or a path."
    )
    flags.DEFINE_integer(
        "size",
        None,
        "Side of the input image in pixels. By default the first of --sizes, or that "
        "of the training's evaluation, if config.json is beside a .keras file, else "
        f"{DEFAULT_SIZE}.",
    )
    flags.DEFINE_list("formats", ["fp32"], f"One or more of: {', '.join(FORMATS)}.")
    flags.DEFINE_string("output_dir", None, "Where the files go; made if missing.")
    flags.DEFINE_string(
        "data",
        None,
        "Validation images for parity and accuracy: digits, folder:PATH or tfds:NAME. "
        "By default what a .keras file was trained on, if config.json is beside it, "
        "else digits.",
    )
    flags.DEFINE_integer(
        "eval_images",
        200,
        "About how many, from all over the split; 0 for all (held in memory).",
    )
    flags.DEFINE_string(
        "calibration",
        None,
        "Training images that set the ranges of the int8 formats: digits, folder:PATH "
        "or tfds:NAME. By default --data.",
    )
    flags.DEFINE_integer("calibration_images", 200, "About how many; 0 for all.")
    flags.DEFINE_integer(
        "qat_epochs", 2, "Epochs of int8-qat's training on --data.", lower_bound=1
    )
    flags.DEFINE_float(
        "qat_learning_rate", 1e-5, "Its learning rate at the start.", lower_bound=0
    )
    flags.DEFINE_integer("qat_batch_size", 32, "Its batch.", lower_bound=1)
    flags.DEFINE_float(
        "crop",
        None,
        "Part of their short side that is used, in (0, 1]. By default as at the "
        "training's evaluation, else 1.",
    )
    flags.DEFINE_list(
        "allow", [], f"Limits that may be missed: {', '.join(cards.CHECKS)}."
    )
    flags.DEFINE_bool(
        "no_rewrite", False, "Convert the model as it is, with any layers."
    )
    flags.DEFINE_bool(
        "check_gpu",
        False,
        "Run the files on LiteRT's GPU accelerator too: any GPU, or SwiftShader "
        "(apt install chromium libvulkan1).",
    )
    coreml_options.define_flags()
    flags.mark_flags_as_required(["model", "output_dir"])


def _config_file(model: str) -> Path | None:
    """Returns the configuration that a training left beside a `.keras` file."""
    file = Path(model).with_name("config.json")
    return file if model.endswith(".keras") and file.exists() else None


def _default_size(model: str) -> int:
    file = _config_file(model)
    return load_config(file).eval_size if file else DEFAULT_SIZE


def _check_names(flag: str, names: list[str], known) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"Unknown {flag}: {', '.join(unknown)}. Expected some of: "
            f"{', '.join(known)}."
        )


def _file_types(args) -> set:
    return {FORMATS[name].file_type for name in args.formats}


def _check_flags() -> Path:
    args = flags.FLAGS
    if not args.formats:
        raise ValueError(f"--formats needs one or more of: {', '.join(FORMATS)}.")
    _check_names("formats", args.formats, FORMATS)
    _check_names("limits in --allow", args.allow, cards.CHECKS)
    coreml_options.check_flags(args, COREML in _file_types(args))
    if args.size is None:
        args.size = int(args.sizes[0]) if args.sizes else _default_size(args.model)
    if args.size < MIN_SIZE:
        raise ValueError(f"--size must be at least {MIN_SIZE}. Received: {args.size}.")
    if args.crop is not None and not 0 < args.crop <= 1:
        raise ValueError(f"--crop must be in (0, 1]. Received: {args.crop}.")
    for name in ("eval_images", "calibration_images"):
        if args[name].value < 0:
            raise ValueError(f"--{name} must not be negative.")
    if args.check_gpu and TFLITE not in _file_types(args):
        raise ValueError("--check_gpu is for .tflite files: leave it away.")
    if args.check_gpu:
        gpu.require_driver()
    folder = Path(args.output_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write into --output_dir: {error}.") from error
    return folder


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


def _provenance(args, model: keras.Model) -> tuple[dict, str, float]:
    """Returns what the card says of the model, its data, and the evaluation's crop."""
    data, crop = "digits", 1.0
    if args.model.endswith(".keras"):
        labels = labels_beside(args.model, model.output_shape[-1])
        provenance = {"model": args.model, "labels": labels}
        config_file = _config_file(args.model)
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
    return provenance, args.data or data, args.crop or crop


def _summary(path: Path, card: dict) -> str:
    accuracy = card["accuracy"]
    parts = [
        f"{card['bytes'] / 1e6:.2f} MB",
        *FORMATS[card["format"]].file_type.facts(card),
        f"max abs difference {card['parity']['max_abs']:.1e}",
        f"PSNR {card['parity']['psnr_db']:.0f} dB",
        f"top-1 {accuracy['top1']:.2f} % (Keras {accuracy['keras_top1']:.2f} %)"
        if accuracy
        else f"top-1 agreement {100 * card['parity']['top1_agreement']:.1f} %",
        f"on {card['parity']['images']} images of {card['parity']['data']}",
    ]
    return f"{path}: {', '.join(parts)}"


def _training_config(args, data: str):
    """Returns how the model was trained, with the schedule of the fine-tuning."""
    file = _config_file(args.model)
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
    args, model, labels: list[str], data: str, crop: float, calibration: dict
) -> Conversion:
    """Prepares the conversion; `calibration` gets the number of images that it used."""
    scale = np.float32(largest_value(model) / 255)

    def calibration_images() -> np.ndarray:
        count = args.calibration_images
        found = load_images(calibration["data"], "train", count, args.size, crop)
        check_calibration_images(found)
        calibration["images"] = len(found.images)
        return found.images.astype(np.float32) * scale

    def fine_tuned() -> Conversion:
        from tflite import qat  # loads tf_keras

        if conversion.graph is None:
            raise ValueError("int8-qat trains the rewritten network: no --no_rewrite.")
        source = load_source(data)
        if not has_classes_of(model, labels, source.class_names):
            raise ValueError(
                f"int8-qat trains on {data}, which has other classes than the model. "
                "Name the model's data with --data."
            )
        name = output_kind(model)
        config = _training_config(args, data)
        graph = qat.fine_tune(
            conversion.graph, config, source, scale, gives_logits=name == "logits"
        )
        serve = trace_graph(graph, name)
        return Conversion(
            serve,
            graph,
            largest_value(model),
            calibration_images,
            fine_tuned=None,
            core_ml=None,
        )

    core_ml = None
    if COREML in _file_types(args):
        core_ml = coreml_options.core_ml_from_flags(
            args, model, labels, crop, output_kind(model)
        )
    conversion = prepare(  # which `fine_tuned` starts from
        model,
        args.size,
        not args.no_rewrite,
        calibration_images,
        fine_tuned,
        core_ml,
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
    provenance, data, crop = _provenance(args, model)
    labels = provenance.get("labels", [])
    calibration = {"data": args.calibration or data}
    conversion = _conversion_from_flags(args, model, labels, data, crop, calibration)
    sizes = {TFLITE: (args.size,), COREML: coreml_options.package_sizes(args)}
    for file_type in _file_types(args):
        for size in sizes[file_type]:
            check_size(model, size)

    @functools.cache
    def reference(size: int):
        validation = load_images(data, "validation", args.eval_images, size, crop)
        return make_reference(model, validation, labels)

    for name in dict.fromkeys(args.formats):
        file_type = FORMATS[name].file_type
        parts = [Path(args.model).stem, *sizes[file_type], name]
        if file_type is COREML:
            parts += coreml_options.name_parts(args)
        stem = "_".join(map(str, parts))
        path = folder / f"{stem}{file_type.suffix}"
        card = convert(
            conversion,
            name,
            [reference(size) for size in sizes[file_type]],
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
        folder = _check_flags()
        with _only_conversion(folder):
            _convert_all(flags.FLAGS, folder)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    # Warnings only: TensorFlow and the quantizer tell every step otherwise.
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    define_flags()
    app.run(main)
