"""Runs a model on image files, then prints and draws the results."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_mobilevit.backend import Tensor
from keras_mobilevit.card_checks import MAX_COUNT
from keras_mobilevit.class_names import COCO_NAMES, VOC_NAMES
from keras_mobilevit.classifier import build_classifier
from keras_mobilevit.command_line import (
    DETECTOR_PREFIX,
    MIN_SCORE,
    SEGMENTER_PREFIX,
    TOP_CLASSES,
)
from keras_mobilevit.configs import (
    CLASSIFIER_SIZE,
    DETECTOR_SIZE,
    MIN_SIZE,
    SEGMENTER_SIZE,
    get_variant,
)
from keras_mobilevit.deeplab import DeepLabV3
from keras_mobilevit.drawing import BACKGROUND, add_legend, draw_boxes, draw_classes
from keras_mobilevit.files import read_json, read_lines
from keras_mobilevit.image_files import read_header, read_image
from keras_mobilevit.image_models import (
    CLASSIFIER,
    DETECTOR,
    SEGMENTER,
    ImageModel,
    image_model_from_file,
    image_model_from_keras,
)
from keras_mobilevit.litert import read_card
from keras_mobilevit.picture_files import picture_files, save_picture
from keras_mobilevit.preprocessing import (
    CROP_FRACTION,
    decode_predictions,
    resize_and_center_crop,
)
from keras_mobilevit.segmentation import class_map
from keras_mobilevit.ssdlite import SSDLite
from keras_mobilevit.weights.file_formats import load_model_file
from keras_mobilevit.weights.hub import PUBLISHED
from keras_mobilevit.weights.hub_repository import fetch_model, is_address

# Attention of a MobileViT on larger images takes tens of gigabytes.
MAX_SIZE = 2048
# The keys of a training's config.json that say how it evaluated, with a check of each.
_EVALUATION_KEYS: dict[str, Callable] = {
    "eval_size": lambda x: isinstance(x, int) and MIN_SIZE <= x <= MAX_SIZE,
    "eval_crop": lambda x: isinstance(x, int | float) and 0 < x <= 1,
}
MOST_CLASSES = 1000  # that get numbers, if their number is unknown
# Of an image in memory, and of a drawing. Larger ones are shrunk: with all that is made
# of it, an image of the maximum of a file would take 7 GB.
MOST_PIXELS = 2**25


def predict(args: argparse.Namespace) -> None:
    """Runs the command `predict` with the arguments of `make_parser`."""
    if args.weights is None:
        published = {DETECTOR_PREFIX: "coco", SEGMENTER_PREFIX: "voc"}
        found = (published[x] for x in published if args.model.startswith(x))
        args.weights = next(found, "imagenet")
    _check(args)
    if is_address(args.weights):
        args.weights = str(fetch_model(args.weights))
    labels = _read_labels(args)
    min_score = MIN_SCORE if args.score is None else args.score
    if args.weights.endswith(".tflite"):
        image_model = image_model_from_file(args.weights, min_score)
    else:
        model = _load_model(args, labels)
        image_model = image_model_from_keras(model, args.weights, min_score)
    if args.score is not None and image_model.kind != DETECTOR:
        raise ValueError("--score applies only to detectors. Remove it.")
    show = {
        CLASSIFIER: _print_classes,
        DETECTOR: _draw_objects,
        SEGMENTER: _color_classes,
    }
    show[image_model.kind](image_model, args, labels)


def _check(args: argparse.Namespace) -> None:
    """Checks the arguments and creates the output folder."""
    if Path(args.model).suffix:
        raise ValueError(
            "--model expects the name of a network, such as mobilevit_s. To load a "
            f"file, use --weights={args.model}."
        )
    if args.weights.lower() == "none":
        raise ValueError(
            "--weights=none means random weights, which predict nothing. Name "
            "published weights or a file; see --help."
        )
    if args.size is not None and not MIN_SIZE <= args.size <= MAX_SIZE:
        raise ValueError(
            f"--size must be at least {MIN_SIZE} and at most {MAX_SIZE}. "
            f"Received: {args.size}."
        )
    if args.score is not None and not 0 <= args.score <= 1:
        raise ValueError(f"--score must be in [0, 1]. Received: {args.score}.")
    if args.output:
        Path(args.output).mkdir(parents=True, exist_ok=True)


def _read_labels(args: argparse.Namespace) -> list[str] | None:
    """Reads the class names, and refuses more than any network has."""
    labels = _find_labels(args)
    if labels is not None and len(labels) > MAX_COUNT:
        raise ValueError(
            f"The file of class names has {len(labels):,} lines. Expected one for each "
            f"class, at most {MAX_COUNT:,}."
        )
    return labels


def _find_labels(args: argparse.Namespace) -> list[str] | None:
    """Reads the class names from --labels, from --weights, or from beside it."""
    if args.labels:
        if not os.path.isfile(args.labels):
            raise ValueError(f"--labels: there is no file {args.labels}.")
        return read_lines(args.labels)
    if args.weights.endswith(".tflite"):
        return read_card(args.weights).get("labels")
    path = Path(args.weights).parent / "labels.txt"
    if args.weights not in PUBLISHED and path.exists():
        return read_lines(path)
    return None


def _load_model(args: argparse.Namespace, labels: list[str] | None) -> keras.Model:
    """Loads the file of --weights, or builds --model with these weights."""
    if args.weights.endswith(".keras"):
        return load_model_file(args.weights)
    if args.weights.endswith(".mlpackage"):
        raise ValueError(
            f"{args.weights} is a Core ML package, which only Apple's systems run. "
            "`predict` expects the .keras file that it was made from."
        )
    for prefix, build, names in (
        (DETECTOR_PREFIX, SSDLite, COCO_NAMES),
        (SEGMENTER_PREFIX, DeepLabV3, VOC_NAMES),
    ):
        if args.model.startswith(prefix):
            return build(
                args.model.removeprefix(prefix),
                classes=len(labels or names),
                weights=args.weights,
                input_shape=(None, None, 3),
            )
    classes = len(labels) if labels else 1000
    try:
        return build_classifier(
            get_variant(args.model),
            weights=args.weights,
            input_shape=(None, None, 3),
            classes=classes,
        )
    except ValueError as error:
        reason = "as many as class names" if labels else "the default; see --labels"
        raise ValueError(
            f"{error}\nThe model was built with {classes} classes: {reason}."
        ) from error


def load_image(path: str) -> np.ndarray:
    """Reads an image file: uint8 `[height, width, 3]`, RGB, at most `MOST_PIXELS`."""
    if not os.path.exists(path):
        raise ValueError(f"There is no file {path}.")
    return read_image(path, MOST_PIXELS)


def top_classes(
    scores: np.ndarray, labels: list[str] | None
) -> list[tuple[str, float]]:
    """Returns names and probabilities of the best `TOP_CLASSES`, the best first.

    If `labels` is `None`, 1,000 classes have ImageNet's names, and others numbers.
    """
    if labels is None and len(scores) == 1000:
        try:
            rows = decode_predictions(scores[None], top=TOP_CLASSES)[0]
            return [(name, float(score)) for _, name, score in rows]
        except OSError as error:
            print(f"warning: {error}", file=sys.stderr)
    if len(scores) == 1 and labels is not None and len(labels) == 2:
        # A single unit gives the probability of the second class.
        scores = np.array([1 - scores[0], scores[0]])
    names = _class_names(labels, len(scores))
    rows = list(zip(names, map(float, scores)))
    return sorted(rows, key=lambda row: row[1], reverse=True)[:TOP_CLASSES]


def _print_classes(
    image_model: ImageModel, args: argparse.Namespace, labels: list[str] | None
) -> None:
    """Prints the best classes of each image."""
    size = _input_size(image_model, args, CLASSIFIER_SIZE)
    # A file of its own is converted without a crop, and should give the same here.
    default = 1.0 if args.weights.endswith((".keras", ".tflite")) else CROP_FRACTION
    crop_fraction = _evaluation_value(args.weights, "eval_crop") or default
    for path in args.images:
        image = resize_and_center_crop(load_image(path), size, crop_fraction)
        scores = _run(image_model, args, path, image)["probabilities"]
        # A first call downloads the names and prints a progress bar: before the path.
        best = top_classes(scores, labels)
        print(path)
        if image_model.is_multi_label:
            print("  independent probability of each class:")
        for name, score in best:
            print(f"  {100 * score:5.1f} %  {name}")


def _draw_objects(
    image_model: ImageModel, args: argparse.Namespace, labels: list[str] | None
) -> None:
    """Prints the objects on each image and draws them in a PNG file."""
    files = picture_files(args.images, args.output, "boxes")
    size = _input_size(image_model, args, DETECTOR_SIZE)
    names = _class_names(labels, image_model.classes, COCO_NAMES)
    for file, (path, image, found) in zip(
        files, _outputs(image_model, args, size, len(names))
    ):
        save_picture(draw_boxes(image, **found, labels=names), file)
        count = len(found["boxes"])
        print(f"{path}: {count} objects at {_format_size(size)}, drawn in {file}")
        width, height = read_header(path).size
        for box, score, label in zip(found["boxes"], found["scores"], found["classes"]):
            corners = np.round(box * [width, height, width, height]).astype(int)
            print(f"  {100 * score:5.1f} %  {names[label]}  {corners.tolist()}")


def _color_classes(
    image_model: ImageModel, args: argparse.Namespace, labels: list[str] | None
) -> None:
    """Prints the classes on each image and colors them in a PNG file."""
    files = picture_files(args.images, args.output, "classes")
    size = _input_size(image_model, args, SEGMENTER_SIZE)
    names = _class_names(labels, image_model.classes, VOC_NAMES)
    for file, (path, image, found) in zip(
        files, _outputs(image_model, args, size, len(names))
    ):
        classes = _full_class_map(found, *image.shape[:2])
        shares = np.bincount(classes.ravel(), minlength=len(names)) / classes.size
        present = [i for i in np.argsort(-shares, kind="stable") if shares[i]]
        legend = {i: names[i] for i in present if names[i] != BACKGROUND}
        save_picture(add_legend(draw_classes(image, classes, names), legend), file)
        count = len(present)
        print(f"{path}: {count} classes at {_format_size(size)}, drawn in {file}")
        for label in present:
            share = 100 * shares[label]
            shown = f"{share:5.1f} %" if share >= 0.1 else "< 0.1 %"
            print(f"  {shown}  {names[label]}")


def _full_class_map(
    found: dict[str, np.ndarray], height: int, width: int
) -> np.ndarray:
    """Returns the class of each pixel of an image, `[height, width]`."""
    if "logits" in found:
        return class_map(found["logits"], height, width)
    classes = found["classes"]
    rows = np.arange(height) * classes.shape[0] // height
    columns = np.arange(width) * classes.shape[1] // width
    return classes[rows[:, None], columns]


def _format_size(size: tuple[int, int]) -> str:
    height, width = size
    return f"{width}x{height}"


def _class_names(
    labels: list[str] | None, classes: int | None, published: tuple[str, ...] = ()
) -> list[str]:
    """Returns `labels`, else the published names if they fit, else numbers.

    The number of classes is unknown of a file without labels and card.
    """
    if classes is None:
        classes = len(labels or range(MOST_CLASSES))
    if labels is None and classes == len(published):
        return list(published)
    names = labels or [f"class {i}" for i in range(classes)]
    if len(names) != classes:
        raise ValueError(
            f"There are {len(names)} class names for {classes} classes. Expected a "
            "name for each class, one in a line, in --labels or in the file's card."
        )
    return names


def _outputs(
    image_model: ImageModel,
    args: argparse.Namespace,
    size: tuple[int, int],
    classes: int,
) -> Iterator[tuple]:
    """Yields each path, its image, and the outputs for the whole image at `size`.

    `classes` is the number of class names.
    """
    for path in args.images:
        image = load_image(path)
        (width, height), drawn = read_header(path).size, image.shape[:2]
        if drawn != (height, width):
            print(f"{path}: {width}x{height} pixels, drawn as {_format_size(drawn)}")
        resized = ops.image.resize(
            ops.cast(image[None], "float32"), size, antialias=True
        )
        yield path, image, _run(image_model, args, path, resized[0], classes)


def _run(
    image_model: ImageModel,
    args: argparse.Namespace,
    path: str,
    image: Tensor,
    classes: int = 0,
) -> dict[str, np.ndarray]:
    """Returns the outputs for a resized image.

    Refuses numbers that are not finite, and those of classes that have no name.
    """
    outputs = image_model.run(ops.convert_to_numpy(image))
    if not all(np.all(np.isfinite(values)) for values in outputs.values()):
        raise ValueError(
            f"{args.weights} returns NaN or infinite values for {path}. Expected the "
            "weights of a training that has not diverged."
        )
    # Class maps have bytes, which cannot hold -1.
    found = np.asarray(outputs.get("classes", ()), np.int64)
    largest = int(found.max(initial=-1))
    if largest >= classes:
        raise ValueError(
            f"{args.weights} returns the class {largest}, but there are names of "
            f"{classes} classes. Expected the class names of its training in --labels."
        )
    return outputs


def _evaluation_value(weights: str, key: str) -> float | None:
    """Returns a valid value of config.json next to a .keras file, else `None`.

    Of a .tflite file it is a value of the card.
    """
    if weights.endswith(".tflite"):
        value = read_card(weights).get(key.removeprefix("eval_"))
        return value if value is not None and _EVALUATION_KEYS[key](value) else None
    file = Path(weights).with_name("config.json")
    if not weights.endswith(".keras") or not file.is_file():
        return None
    try:
        values = read_json(file)
    except ValueError as error:
        values, reason = {}, str(error)
    else:
        values = values if isinstance(values, dict) else {}
        reason = f"{key} is {values.get(key)!r}"
        if key not in values:
            return None  # another program wrote this file
    value = values.get(key)
    if _EVALUATION_KEYS[key](value):
        return value
    print(f"warning: {file} is not used: {reason}", file=sys.stderr)
    return None


def _input_size(
    image_model: ImageModel, args: argparse.Namespace, default: int
) -> tuple[int, int]:
    """Returns the height and width to which images are resized."""
    height, width = image_model.sides
    if args.size and any(side not in (None, args.size) for side in (height, width)):
        raise ValueError(
            f"{args.weights} accepts only images of {width}x{height} pixels. "
            f"Remove --size={args.size}."
        )
    side = int(args.size or _evaluation_value(args.weights, "eval_size") or default)
    height, width = height or side, width or side
    if max(height, width) > MAX_SIZE:
        raise ValueError(
            f"{args.weights} takes images of {width}x{height} pixels. Expected at most "
            f"{MAX_SIZE} in each direction."
        )
    return height, width
