"""Converts MobileViT to TFLite, and proves that it gives the same numbers.

Examples:

  python tflite/convert.py --model=runs/demo/best.keras --size=48 --output_dir=out
  python tflite/convert.py --model=runs/photos/best.keras --size=256 \\
      --formats=fp32,fp16,dynamic,int8-mixed,int8 --output_dir=out
  python tflite/convert.py --model=mobilevit_xxs --weights=none --output_dir=out

Writes <name>_<size>_<format>.tflite with batch 1 and TFLite's own operations only. The
network is first rewritten into a faster one with the same outputs: batch normalization
and scales folded, no tensor above rank 4, one piece on XNNPACK and on GPUs. Each file
is run beside Keras on validation images; if it misses a limit of its format, none is
left (--allow=NAME lets one pass). A JSON card beside it says what it is: input, output,
labels, operations, size, parity, accuracy, versions.

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

import dataclasses
import json
import tempfile
import textwrap

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from keras_mobilevit.classifier import build_classifier
from keras_mobilevit.configs import MIN_SIZE, get_config
from keras_mobilevit.files import whole_file
from keras_mobilevit.preprocessing import largest_value
from keras_mobilevit.weights import load_model_file
from tflite import card as cards
from tflite import gpu, parity
from tflite.converter import output_kind, trace_graph, trace_model
from tflite.formats import FORMATS, Conversion
from tflite.graph import UnknownLayer, read_model
from tflite.images import ImageSet, check_calibration_images, load_images
from tflite.rewrites import deployment_graph
from train.config import load_config
from train.litert import LiteRTModel

KERAS_BATCH = 32

__doc__ = __doc__.format(
    formats="\n".join(
        textwrap.fill(
            row.purpose,
            88,
            initial_indent=f"  {name:<12}",
            subsequent_indent=" " * 14,
        )
        for name, row in FORMATS.items()
    )
)


def load_model(model: str, weights: str = "none") -> keras.Model:
    """Loads a `.keras` file, or builds a variant that returns logits.

    Args:
        model: `mobilevit_xxs`, `mobilevit_xs`, `mobilevit_s`, or the path of a
            `.keras` file.
        weights: for a variant: `none` (random), `imagenet`, or a path.

    Returns:
        The model.

    Raises:
        ValueError: if there is no such model, or the file is something else.
    """
    if str(model).endswith(".keras"):
        if weights != "none":
            raise ValueError(f"{model} has its own weights; leave --weights away.")
        return _load_keras_file(model)
    try:
        config = get_config(model)
    except ValueError as error:
        raise ValueError(f"{error} Or the path of a `.keras` file.") from error
    return build_classifier(
        config,
        weights=None if weights == "none" else weights,
        input_shape=(None, None, 3),
        classifier_activation=None,
    )


def _load_keras_file(path: str) -> keras.Model:
    loaded = load_model_file(path)
    shapes = [tuple(tensor.shape) for tensor in loaded.inputs]
    if [(len(shape), shape[-1]) for shape in shapes] != [(4, 3)]:
        raise ValueError(
            f"{path} takes inputs of the shapes {shapes}. "
            "Expected RGB images: (None, height, width, 3)."
        )
    if [len(tensor.shape) for tensor in loaded.outputs] != [2]:
        raise ValueError(
            f"{path} gives outputs of the shapes "
            f"{[tuple(tensor.shape) for tensor in loaded.outputs]}. "
            "Expected those of a classifier: (None, classes)."
        )
    bad = [w.path for w in loaded.weights if not np.all(np.isfinite(w.numpy()))]
    if bad:
        raise ValueError(f"{path} has weights that are not finite: {bad[0]}.")
    return loaded


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


def prepare(
    model: keras.Model, size: int, rewrite: bool, calibration_images, fine_tuned
) -> Conversion:
    """Prepares the conversion of a model for square images.

    Args:
        model: an image classifier.
        size: side of the image in pixels.
        rewrite: whether to convert the deployment graph, not the model as it is.
        calibration_images, fine_tuned: see `Conversion`.

    Returns:
        The `Conversion`.

    Raises:
        ValueError: if the model takes images of another size, or has a layer that the
            rewriting does not know.
    """
    height, width, channels = model.inputs[0].shape[1:]
    if {height, width} - {None, size}:
        raise ValueError(
            f"{model.name} takes images of {height}x{width} pixels only. "
            f"Received: --size={size}."
        )
    graph, name = _deployment_graph(model, size, rewrite), output_kind(model)
    if graph is not None:
        serve = trace_graph(graph, name)
    else:
        shape = (size, size, channels)
        serve = trace_model(lambda x: model(x, training=False), shape, name)
    return Conversion(serve, graph, calibration_images, fine_tuned)


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


def make_reference(model: keras.Model, validation: ImageSet) -> Reference:
    """Runs the Keras model on the validation images."""
    images = validation.images.astype(np.float32)
    images *= np.float32(largest_value(model) / 255)
    outputs = model.predict(images, KERAS_BATCH, verbose=0)
    has_labels = outputs.shape[-1] == len(validation.class_names)
    return Reference(model, validation, images, outputs, has_labels)


def _compare(path, reference: Reference) -> dict:
    """Returns the parts of the card for which the file is run."""
    model = reference.model
    outputs = LiteRTModel(path, os.cpu_count()).predict(reference.images)
    agreement = parity.compare(
        reference.outputs,
        outputs,
        are_probabilities=output_kind(model) == "probabilities",
    )
    described = {
        "data": reference.validation.data,
        "split": "validation",
        "images": len(outputs),
    }
    accuracy = None
    if reference.has_labels:
        accuracy = described | {
            "top1": reference.top1(outputs),
            "keras_top1": reference.top1(reference.outputs),
        }
    return {"parity": agreement | described, "accuracy": accuracy}


def _gpu_verdict(path, reference: Reference) -> dict:
    image = LiteRTModel(path).quantize(reference.images[:1])
    return dataclasses.asdict(gpu.check_gpu(path, image))


def convert(
    conversion: Conversion,
    file_format: str,
    reference: Reference,
    output: Path,
    provenance: dict,
    allowed=(),
    check_gpu: bool = False,
) -> dict:
    """Converts a model, checks the file, and writes it with its card.

    Args:
        conversion: of the model.
        file_format: a key of `FORMATS`.
        reference: what its outputs must be.
        output: path of the `.tflite`; the card gets the ending `.json`.
        provenance: more entries of the card.
        allowed: names of checks that may fail, see `tflite.card.CHECKS`.
        check_gpu: whether to run the file on the GPU accelerator too.

    Returns:
        The card.

    Raises:
        ValueError: if the file misses a limit of its format; nothing is left behind
            then.
    """
    content = FORMATS[file_format].make(conversion)
    model = reference.model
    with whole_file(output) as temporary:
        temporary.write_bytes(content)
        described = cards.describe_file(
            temporary, output_kind(model), largest_value(model)
        )
        verdict = _gpu_verdict(temporary, reference) if check_gpu else "not checked"
        card = {
            **provenance,
            "format": file_format,
            "rewritten": conversion.graph is not None,
            **described,
            "gpu": verdict,
            **_compare(temporary, reference),
            "limits": FORMATS[file_format].limits,
            "allowed": list(allowed),
        }
        cards.refuse_faults(card, FORMATS[file_format].limits, allowed)
        with whole_file(output.with_suffix(".json")) as card_path:
            card_path.write_text(json.dumps(card, indent=2) + "\n")
    return card


def define_flags() -> None:
    flags.DEFINE_string(
        "model", None, "mobilevit_xxs, mobilevit_xs, mobilevit_s or a .keras file."
    )
    flags.DEFINE_string(
        "weights", "none", "For a named model: none (random), imagenet, or a path."
    )
    flags.DEFINE_integer("size", 256, "Side of the input image in pixels.")
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
        "eval_images", 200, "How many of them, from all over the split; 0 for all."
    )
    flags.DEFINE_string(
        "calibration",
        None,
        "Training images that set the ranges of the int8 formats: digits, folder:PATH "
        "or tfds:NAME. By default --data.",
    )
    flags.DEFINE_integer("calibration_images", 200, "How many of them; 0 for all.")
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
    flags.mark_flags_as_required(["model", "output_dir"])


def _check_names(flag: str, names: list[str], known) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"Unknown {flag}: {', '.join(unknown)}. Expected some of: "
            f"{', '.join(known)}."
        )


def _check_flags() -> Path:
    args = flags.FLAGS
    if not args.formats:
        raise ValueError(f"--formats needs one or more of: {', '.join(FORMATS)}.")
    _check_names("formats", args.formats, FORMATS)
    _check_names("limits in --allow", args.allow, cards.CHECKS)
    if args.size < MIN_SIZE:
        raise ValueError(f"--size must be at least {MIN_SIZE}. Received: {args.size}.")
    if args.crop is not None and not 0 < args.crop <= 1:
        raise ValueError(f"--crop must be in (0, 1]. Received: {args.crop}.")
    for name in ("eval_images", "calibration_images"):
        if args[name].value < 0:
            raise ValueError(f"--{name} must not be negative.")
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


def _labels_beside(path: str, classes: int) -> list[str]:
    """Reads the class names that a training run leaves beside its model."""
    file = Path(path).with_name("labels.txt")
    labels = file.read_text().splitlines() if file.exists() else []
    if labels and len(labels) != classes:
        raise ValueError(
            f"{file} names {len(labels)} classes, but {path} has {classes}. "
            "Move away the one that does not belong there."
        )
    return labels


def _provenance(args, model: keras.Model) -> tuple[dict, str, float]:
    """Returns what the card says of the model, its data, and the evaluation's crop."""
    data, crop = "digits", 1.0
    if args.model.endswith(".keras"):
        labels = _labels_beside(args.model, model.output_shape[-1])
        provenance = {"model": args.model, "labels": labels}
        config_file = Path(args.model).with_name("config.json")
        if config_file.exists():
            config = load_config(config_file)
            data, crop = config.data, config.eval_crop
    else:
        provenance = {"model": args.model, "weights": args.weights}
    return provenance, args.data or data, args.crop or crop


def _summary(path: Path, card: dict) -> str:
    accuracy = card["accuracy"]
    parts = [
        f"{card['bytes'] / 1e6:.2f} MB",
        f"{card['xnnpack']['partitions']} XNNPACK partitions",
        f"max abs difference {card['parity']['max_abs']:.1e}",
        f"PSNR {card['parity']['psnr_db']:.0f} dB",
        f"top-1 {accuracy['top1']:.2f} % (Keras {accuracy['keras_top1']:.2f} %)"
        if accuracy
        else f"top-1 agreement {100 * card['parity']['top1_agreement']:.1f} %",
        f"on {card['parity']['images']} images",
    ]
    return f"{path}: {', '.join(parts)}"


def _conversion_from_flags(args, model, data: str, crop: float) -> Conversion:
    calibration = args.calibration or data

    def calibration_images() -> np.ndarray:
        count = args.calibration_images
        found = load_images(calibration, "train", count, args.size, crop)
        check_calibration_images(found, count)
        scale = np.float32(largest_value(model) / 255)
        return found.images.astype(np.float32) * scale

    def fine_tuned():
        raise NotImplementedError

    return prepare(
        model, args.size, not args.no_rewrite, calibration_images, fine_tuned
    )


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    args = flags.FLAGS
    try:
        folder = _check_flags()
        model = load_model(args.model, args.weights)
        provenance, data, crop = _provenance(args, model)
        conversion = _conversion_from_flags(args, model, data, crop)
        validation = load_images(data, "validation", args.eval_images, args.size, crop)
        reference = make_reference(model, validation)
        for name in dict.fromkeys(args.formats):
            path = folder / f"{Path(args.model).stem}_{args.size}_{name}.tflite"
            card = convert(
                conversion,
                name,
                reference,
                path,
                provenance,
                args.allow,
                args.check_gpu,
            )
            print(_summary(path, card), flush=True)
    except (ValueError, OSError) as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    # Warnings only: TensorFlow and the quantizer tell every step otherwise.
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    define_flags()
    app.run(main)
