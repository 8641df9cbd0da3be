"""Names what is on a picture: the quickest proof that an installation works.

Examples:

  python -m keras_mobilevit predict photo.jpg --model=mobilevit_s
  python -m keras_mobilevit predict photo.jpg --weights=runs/photos/best.keras
"""

import argparse
import os
import sys
from pathlib import Path

import keras
import numpy as np

from keras_mobilevit.classifier import (
    DEFAULT_SIZE,
    build_classifier,
    returns_probabilities,
)
from keras_mobilevit.configs import MIN_SIZE, VARIANTS, get_config
from keras_mobilevit.preprocessing import (
    decode_predictions,
    largest_value,
    resize_and_center_crop,
)
from keras_mobilevit.weights import load_model_file

TOP = 5


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keras_mobilevit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="predict")
    predict = commands.add_parser("predict", help=f"print the {TOP} best classes")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    predict.add_argument(
        "--model", default="mobilevit_s", help=f"{', '.join(VARIANTS)}"
    )
    predict.add_argument(
        "--weights",
        default="imagenet",
        help="imagenet, or a file: .keras (a whole model), .safetensors, .pt or "
        ".weights.h5 (of --model)",
    )
    predict.add_argument(
        "--size",
        type=int,
        help=f"side in pixels; by default the model's own, or {DEFAULT_SIZE}",
    )
    predict.add_argument(
        "--labels",
        help="text file of one class name a line; by default labels.txt beside "
        "--weights, else ImageNet's 1,000 names",
    )
    return parser


def load_image(path: str, size: int) -> np.ndarray:
    """Reads an image file as evaluation sees it.

    Args:
        path: of the file.
        size: side of the result.

    Returns:
        float32 `[size, size, 3]`, RGB, values in [0, 255].

    Raises:
        ValueError: if the file is missing or is no image.
    """
    if not os.path.isfile(path):
        raise ValueError(f"There is no file {path}.")
    try:
        image = keras.utils.img_to_array(keras.utils.load_img(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    return keras.ops.convert_to_numpy(resize_and_center_crop(image, (size, size)))


def _labels(args) -> list[str] | None:
    if args.labels:
        return Path(args.labels).read_text().splitlines()
    beside = Path(args.weights or ".").parent / "labels.txt"
    if args.weights != "imagenet" and beside.exists():
        return beside.read_text().splitlines()
    return None


def load_model(args, labels: list[str] | None) -> keras.Model:
    """Loads the model that the arguments name."""
    if args.weights.endswith(".keras"):
        model = load_model_file(args.weights)
        if len(model.output_shape) != 2:
            raise ValueError(
                f"{args.weights} is no classifier: its output has the shape "
                f"{model.output_shape}. Expected (None, classes)."
            )
        return model
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


def predict(args) -> None:
    labels = _labels(args)
    model = load_model(args, labels)
    size = args.size or model.input_shape[1] or DEFAULT_SIZE
    if size < MIN_SIZE:
        raise ValueError(f"--size must be at least {MIN_SIZE}. Received: {size}.")
    for path in args.images:
        scores = probabilities(model, load_image(path, size))
        best = best_classes(scores, labels)  # may download the names: before the path
        print(path)
        for name, score in best:
            print(f"  {100 * score:5.1f} %  {name}")


def main() -> None:
    args = make_parser().parse_args()
    try:
        predict(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
