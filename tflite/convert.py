"""Converts MobileViT to TFLite, and proves that it gives the same numbers.

Examples:

  python tflite/convert.py --model=runs/demo/best.keras --size=48 --output_dir=out
  python tflite/convert.py --model=mobilevit_xxs --weights=none --size=256 \\
      --output_dir=out

Writes <name>_<size>_<format>.tflite with batch 1 and TFLite's own operations only, runs
it beside Keras on real images, and leaves no file if the outputs differ beyond the
format's threshold. A JSON card beside it says what it is: inputs, outputs, labels,
operations, size, parity, versions.

Formats:

  fp32   32-bit floats: the reference, for any CPU or GPU.
"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # whose converter this is

import hashlib
import importlib.metadata
import json

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import keras_mobilevit
from keras_mobilevit.classifier import build_classifier, returns_probabilities
from keras_mobilevit.configs import MIN_SIZE, get_config
from keras_mobilevit.files import whole_file
from keras_mobilevit.preprocessing import largest_value
from keras_mobilevit.weights import load_model_file
from tflite import opcheck, parity
from train.config import load_config
from train.data import eval_batches
from train.litert import LiteRTModel
from train.sources import evenly_spaced, load_source

PARITY_IMAGES = 32


def _convert_fp32(converter) -> bytes:
    try:
        return converter.convert()
    except Exception as error:  # the converter's own kind has no public name
        raise ValueError(
            f"TFLite's own operations cannot express this model: {error}"
        ) from error


# From a converter to the bytes of a file.
FORMATS = {"fp32": _convert_fp32}


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


def output_kind(model: keras.Model) -> str:
    """Returns `"probabilities"` if the model ends in a softmax, else `"logits"`."""
    return "probabilities" if returns_probabilities(model) else "logits"


def make_converter(model: keras.Model, size: int) -> tf.lite.TFLiteConverter:
    """Makes a TFLite converter for one square image of a fixed size.

    A free batch dimension would leave the file full of shape arithmetic, which
    delegates refuse; so the function is traced at batch 1.
    """
    height, width, channels = model.inputs[0].shape[1:]
    if {height, width} - {None, size}:
        raise ValueError(
            f"{model.name} takes images of {height}x{width} pixels only. "
            f"Received: --size={size}."
        )

    @tf.function(
        input_signature=[tf.TensorSpec([1, size, size, channels], tf.float32, "images")]
    )
    def serve(images):
        return {output_kind(model): model(images, training=False)}

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()], serve
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return converter


def real_images(data: str, size: int, crop_fraction: float) -> np.ndarray:
    """Loads validation images from all over the split, as evaluation sees them.

    Args:
        data: `digits`, `folder:PATH` or `tfds:NAME`.
        size: side in pixels.
        crop_fraction: see `resize_and_center_crop`.

    Returns:
        float32 `[images, size, size, 3]`, values in [0, 255].

    Raises:
        ValueError: if there is no such data, or no image of it can be read.
    """
    source = evenly_spaced(load_source(data), "validation", PARITY_IMAGES)
    batches = eval_batches(source, "validation", size, PARITY_IMAGES, crop_fraction)
    batch = next(iter(batches))
    images = batch["image"].numpy()[batch["weight"].numpy() > 0]
    if not len(images):
        raise ValueError(f"None of the {PARITY_IMAGES} images of {data} can be read.")
    return images.astype(np.float32)


def _versions() -> dict[str, str]:
    packages = ("tensorflow", "keras", "ai-edge-litert", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"keras_mobilevit": keras_mobilevit.__version__, **versions}


def make_card(
    path: Path, file_format: str, model: keras.Model, agreement: dict
) -> dict:
    """Describes a converted file.

    Args:
        path: of the file.
        file_format: a key of `FORMATS`.
        model: what it was made of.
        agreement: what `parity.compare` returned.

    Returns:
        A dict for JSON.
    """
    litert = LiteRTModel(path)
    content = path.read_bytes()

    def describe(name: str, tensor, meaning: str) -> dict:
        return {
            "name": name,
            "shape": [int(side) for side in tensor["shape"]],
            "dtype": np.dtype(tensor["dtype"]).name,
            "meaning": meaning,
        }

    return {
        "format": file_format,
        "input": describe(
            "images", litert.input, f"RGB image, values in [0, {largest_value(model)}]"
        ),
        "output": describe(output_kind(model), litert.output, "one for each class"),
        "ops": opcheck.count_ops(path),
        "max_rank": opcheck.max_rank(path),
        "xnnpack_partitions": litert.xnnpack_partitions(),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "parity": {**agreement, "threshold": parity.THRESHOLDS[file_format]},
        "versions": _versions(),
    }


def convert(
    model: keras.Model,
    file_format: str,
    size: int,
    images,
    output: Path,
    provenance: dict,
) -> dict:
    """Converts a model, checks the file, and writes it with its card.

    Args:
        model: an image classifier.
        file_format: a key of `FORMATS`.
        size: side of the image in pixels.
        images: float32 `[images, size, size, channels]` with values in [0, 255], to
            compare the outputs on.
        output: path of the `.tflite`; the card gets the ending `.json`.
        provenance: more entries of the card.

    Returns:
        The card.

    Raises:
        ValueError: if the file needs foreign operations or its outputs differ too
            much; nothing is left behind then.
    """
    content = FORMATS[file_format](make_converter(model, size))
    images = images * (largest_value(model) / 255)
    reference = np.concatenate(
        [model(image[None], training=False).numpy() for image in images]
    )
    with whole_file(output) as temporary:
        temporary.write_bytes(content)
        opcheck.refuse_custom_ops(opcheck.count_ops(temporary))
        agreement = parity.compare(
            reference,
            LiteRTModel(temporary).predict(images),
            are_probabilities=output_kind(model) == "probabilities",
        )
        agreement["images"] = len(images)
        parity.refuse_difference(agreement, file_format)
        card = provenance | make_card(temporary, file_format, model, agreement)
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
        "Real images for the comparison: digits, folder:PATH or tfds:NAME. By default "
        "what a .keras file was trained on, if config.json is beside it, else digits.",
    )
    flags.DEFINE_float(
        "crop",
        None,
        "Part of their short side that is used, in (0, 1]. By default as at the "
        "training's evaluation, else 1.",
    )
    flags.mark_flags_as_required(["model", "output_dir"])


def _check_flags() -> Path:
    unknown = [name for name in flags.FLAGS.formats if name not in FORMATS]
    if unknown or not flags.FLAGS.formats:
        raise ValueError(
            f"Unknown formats: {', '.join(unknown) or 'none given'}. "
            f"Expected some of: {', '.join(FORMATS)}."
        )
    if flags.FLAGS.size < MIN_SIZE:
        raise ValueError(
            f"--size must be at least {MIN_SIZE}. Received: {flags.FLAGS.size}."
        )
    if flags.FLAGS.crop is not None and not 0 < flags.FLAGS.crop <= 1:
        raise ValueError(f"--crop must be in (0, 1]. Received: {flags.FLAGS.crop}.")
    folder = Path(flags.FLAGS.output_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
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


def _images_and_provenance(args, model: keras.Model) -> tuple[np.ndarray, dict]:
    """Returns the images to compare on, and what the card says of the model."""
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
    data, crop = args.data or data, args.crop or crop
    provenance["parity_data"] = data
    return real_images(data, args.size, crop), provenance


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    args = flags.FLAGS
    try:
        folder = _check_flags()
        model = load_model(args.model, args.weights)
        images, provenance = _images_and_provenance(args, model)
        for file_format in dict.fromkeys(args.formats):
            path = folder / f"{Path(args.model).stem}_{args.size}_{file_format}.tflite"
            card = convert(model, file_format, args.size, images, path, provenance)
            logging.info(
                "%s: %.2f MB, %d XNNPACK partitions, max abs difference %.1e on %d "
                "images",
                path,
                card["bytes"] / 1e6,
                card["xnnpack_partitions"],
                card["parity"]["max_abs"],
                len(images),
            )
    except (ValueError, OSError) as error:
        logging.debug("where it happened:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    define_flags()
    app.run(main)
