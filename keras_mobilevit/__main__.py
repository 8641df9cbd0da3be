"""Says what is on a picture: the quickest proof that an installation works.

Examples:

  python -m keras_mobilevit predict photo.jpg --model=mobilevit_s
  python -m keras_mobilevit predict photo.jpg --weights=runs/photos/best.keras
  python -m keras_mobilevit predict photo.jpg --model=ssdlite_mobilevit_s

A classifier's best classes are printed. A detector's boxes are printed and drawn into
photo_boxes.png, beside the picture or in --output.
"""

import argparse
import os
import sys
from pathlib import Path

import keras
import numpy as np

from keras_mobilevit import classifier, coco_names, ssdlite
from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.classifier import build_classifier, returns_probabilities
from keras_mobilevit.configs import MIN_SIZE, VARIANTS, get_config
from keras_mobilevit.detection import detect
from keras_mobilevit.drawing import draw_boxes
from keras_mobilevit.files import whole_file
from keras_mobilevit.preprocessing import (
    decode_predictions,
    largest_value,
    resize_and_center_crop,
)
from keras_mobilevit.ssdlite import SSDLite, is_detector
from keras_mobilevit.weights import load_model_file

TOP = 5
DETECTOR = "ssdlite_"  # before the name of a backbone


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keras_mobilevit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="predict")
    predict = commands.add_parser(
        "predict", help=f"print the {TOP} best classes, or draw the objects found"
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    names = [*VARIANTS, *(DETECTOR + name for name in VARIANTS)]
    predict.add_argument("--model", default="mobilevit_s", help=", ".join(names))
    predict.add_argument(
        "--weights",
        help="imagenet (of a classifier), coco (of a detector), or a file: .keras (a "
        "whole model), .safetensors, .pt or .weights.h5 (of --model)",
    )
    predict.add_argument(
        "--size",
        type=int,
        help="side in pixels; by default the model's own, or "
        f"{classifier.DEFAULT_SIZE}, or {ssdlite.DEFAULT_SIZE} of a detector",
    )
    predict.add_argument(
        "--score",
        type=float,
        default=0.3,
        help="a detector's boxes that score less are left out",
    )
    predict.add_argument(
        "--output", help="folder of the pictures with boxes; by default the image's"
    )
    predict.add_argument(
        "--labels",
        help="text file of one class name a line; by default labels.txt beside "
        "--weights, else the 1,000 names of ImageNet or the 80 of COCO",
    )
    return parser


def load_image(path: str) -> np.ndarray:
    """Reads an image file.

    Args:
        path: of the file.

    Returns:
        float32 `[height, width, 3]`, RGB, values in [0, 255].

    Raises:
        ValueError: if the file is missing or is no image.
    """
    if not os.path.isfile(path):
        raise ValueError(f"There is no file {path}.")
    try:
        return keras.utils.img_to_array(keras.utils.load_img(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _labels(args) -> list[str] | None:
    if args.labels:
        return Path(args.labels).read_text().splitlines()
    beside = Path(args.weights or ".").parent / "labels.txt"
    if args.weights not in ("imagenet", "coco") and beside.exists():
        return beside.read_text().splitlines()
    return None


def load_model(args, labels: list[str] | None) -> keras.Model:
    """Loads the model that the arguments name."""
    if args.weights.endswith(".keras"):
        return load_model_file(args.weights)
    if args.model.startswith(DETECTOR):
        return SSDLite(
            args.model.removeprefix(DETECTOR),
            classes=len(labels or coco_names.COCO_NAMES),
            weights=args.weights,
            input_shape=(None, None, 3),
        )
    classes = len(labels) if labels else 1000
    try:
        return build_classifier(
            get_config(args.model),
            weights=args.weights,
            input_shape=(None, None, 3),
            classes=classes,
        )
    except ValueError as error:
        raise ValueError(
            f"{error}\n{classes} classes were expected, by "
            + ("the class names given." if labels else "default; --labels changes it.")
        ) from error


def probabilities(model: keras.Model, image: np.ndarray) -> np.ndarray:
    """Runs a classifier, whether it ends in a softmax or not.

    Args:
        model: takes values in [0, 255].
        image: `[height, width, 3]`.

    Returns:
        float32 `[classes]`.
    """
    image = image * (largest_value(model) / 255)
    scores = model.predict(image[None], verbose=0)
    if not returns_probabilities(model):
        scores = keras.ops.convert_to_numpy(keras.ops.softmax(scores))
    return scores[0]


def best_classes(scores: np.ndarray, labels: list[str] | None) -> list[tuple]:
    """Returns the best classes and their probabilities, the best first."""
    if labels is None and len(scores) == 1000:
        try:
            rows = decode_predictions(scores[None], top=TOP)[0]
            return [(name, float(score)) for _, name, score in rows]
        except OSError as error:
            print(f"warning: {error}", file=sys.stderr)
    if labels is None:
        labels = [f"class {i}" for i in range(len(scores))]
    if len(labels) != len(scores):
        raise ValueError(
            f"There are {len(labels)} class names for {len(scores)} classes."
        )
    order = np.argsort(-scores)[:TOP]
    return [(labels[i], float(scores[i])) for i in order]


def print_classes(model: keras.Model, args, labels: list[str] | None) -> None:
    """Prints the best classes of each image."""
    if len(model.output_shape) != 2:
        raise ValueError(
            f"{args.weights} is neither a classifier nor a detector: its output has "
            f"the shape {model.output_shape}. Expected (None, classes)."
        )
    size = _side(model, args, classifier.DEFAULT_SIZE)
    for path in args.images:
        image = resize_and_center_crop(load_image(path), (size, size))
        scores = probabilities(model, keras.ops.convert_to_numpy(image))
        best = best_classes(scores, labels)  # may download the names: before the path
        print(path)
        for name, score in best:
            print(f"  {100 * score:5.1f} %  {name}")


def draw_objects(model: keras.Model, args, labels: list[str] | None) -> None:
    """Prints the objects of each image, and draws them into a PNG."""
    size = _side(model, args, ssdlite.DEFAULT_SIZE)
    classes = model.output["logits"].shape[-1] - 1
    if labels is None and classes == len(coco_names.COCO_NAMES):
        labels = coco_names.COCO_NAMES
    labels = labels or [f"class {i}" for i in range(classes)]
    if len(labels) != classes:
        raise ValueError(f"There are {len(labels)} class names for {classes} classes.")
    anchors = anchor_boxes(size, size)
    scale = largest_value(model) / 255
    for path in args.images:
        image = load_image(path)
        resized = keras.ops.image.resize(image[None], (size, size), antialias=True)
        outputs = model.predict(keras.ops.convert_to_numpy(resized) * scale, verbose=0)
        found = detect(outputs, anchors, score_threshold=args.score)
        found = {name: keras.ops.convert_to_numpy(x)[0] for name, x in found.items()}
        found = {name: x[found["classes"] >= 0] for name, x in found.items()}
        drawn = draw_boxes(image, **found, labels=labels)
        folder = Path(args.output) if args.output else Path(path).parent
        file = folder / f"{Path(path).stem}_boxes.png"
        with whole_file(file) as temporary:
            keras.utils.save_img(temporary, drawn, scale=False)
        print(f"{path}: {len(found['boxes'])} objects, drawn in {file}")
        height, width = image.shape[:2]
        for box, score, label in zip(found["boxes"], found["scores"], found["classes"]):
            corners = np.round(box * [width, height, width, height]).astype(int)
            print(f"  {100 * score:5.1f} %  {labels[label]}  {corners.tolist()}")


def _side(model: keras.Model, args, default: int) -> int:
    size = args.size or model.input_shape[1] or default
    if size < MIN_SIZE:
        raise ValueError(f"--size must be at least {MIN_SIZE}. Received: {size}.")
    return size


def predict(args) -> None:
    if args.weights is None:
        args.weights = "coco" if args.model.startswith(DETECTOR) else "imagenet"
    labels = _labels(args)
    model = load_model(args, labels)
    show = draw_objects if is_detector(model) else print_classes
    show(model, args, labels)


def main() -> None:
    args = make_parser().parse_args()
    try:
        predict(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
