"""Says what is on a picture: the quickest proof that an installation works.

Examples:
  python -m keras_mobilevit predict photo.jpg --model=mobilevit_s
  python -m keras_mobilevit predict photo.jpg --weights=runs/photos/best.keras
  python -m keras_mobilevit predict photo.jpg --model=ssdlite_mobilevit_s
  python -m keras_mobilevit predict photo.jpg --model=deeplabv3_mobilevit_s

A classifier's best classes are printed; one that ends in sigmoids gives each class a
probability by itself. A detector's boxes are printed and drawn into
photo_boxes.png, beside the picture or in --output. A segmenter's classes are printed
with their share of the pixels, and coloured in photo_classes.png.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

if importlib.util.find_spec("PIL") is None:  # which the imports below take
    sys.exit("error: `predict` reads pictures with Pillow. Run `pip install pillow`.")

import keras
import numpy as np
from keras import ops

from keras_mobilevit import classifier, deeplab, ssdlite
from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.class_names import COCO_NAMES, VOC_NAMES
from keras_mobilevit.classifier import (
    build_classifier,
    output_activation,
    returns_probabilities,
)
from keras_mobilevit.configs import MIN_SIZE, VARIANTS, get_variant
from keras_mobilevit.deeplab import DeepLabV3, is_segmenter, without_auxiliary
from keras_mobilevit.detection import detect
from keras_mobilevit.drawing import BACKGROUND, add_legend, draw_boxes, draw_classes
from keras_mobilevit.files import atomic_write, read_text
from keras_mobilevit.image_files import read_image
from keras_mobilevit.preprocessing import (
    CROP_FRACTION,
    decode_predictions,
    resize_and_center_crop,
)
from keras_mobilevit.segmentation import class_map
from keras_mobilevit.ssdlite import SSDLite, is_detector
from keras_mobilevit.value_range import input_max
from keras_mobilevit.weights.load import load_model_file

TOP = 5
SCORE = 0.3  # of a detector's boxes, at least
# What is read of the configuration that a training leaves beside a model.
EVALUATED = {
    "eval_size": lambda x: isinstance(x, int) and x >= MIN_SIZE,
    "eval_crop": lambda x: isinstance(x, int | float) and 0 < x <= 1,
}
SMALLEST_SHARE = 0.001  # of the pixels that is told as a number
DETECTOR, SEGMENTER = "ssdlite_", "deeplabv3_"  # before the name of a backbone
PUBLISHED = ("imagenet", "coco", "voc")  # weights that have no labels beside them


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keras_mobilevit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="predict")
    predict = commands.add_parser(
        "predict",
        help=f"print the {TOP} best classes, or draw the objects or regions found",
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    names = [kind + name for kind in ("", DETECTOR, SEGMENTER) for name in VARIANTS]
    predict.add_argument("--model", default="mobilevit_s", help=", ".join(names))
    predict.add_argument(
        "--weights",
        help="imagenet (of a classifier), coco (of a detector), voc (of a segmenter), "
        "or a file: .keras (a whole model), .safetensors, .pt or .weights.h5 (of "
        "--model)",
    )
    predict.add_argument(
        "--size",
        type=int,
        help="side in pixels; by default the model's own, that of its training's "
        "evaluation if config.json is beside a .keras file, or "
        f"{classifier.DEFAULT_SIZE}, {ssdlite.DEFAULT_SIZE} of a detector, "
        f"{deeplab.DEFAULT_SIZE} of a segmenter",
    )
    predict.add_argument(
        "--score",
        type=float,
        help=f"a detector's boxes that score less are left out (default: {SCORE})",
    )
    predict.add_argument(
        "--output", help="folder of the pictures drawn; by default the image's"
    )
    predict.add_argument(
        "--labels",
        help="text file of one class name a line; by default labels.txt beside "
        "--weights, else the 1,000 names of ImageNet, the 80 of COCO, the 21 of VOC",
    )
    return parser


def load_image(path: str) -> np.ndarray:
    """Reads an image file, upright.

    Args:
        path: of the file.

    Returns:
        float32 `[height, width, 3]`, RGB, values in [0, 255].

    Raises:
        ValueError: if the file is missing or cannot be decoded.
    """
    if not os.path.isfile(path):
        raise ValueError(f"There is no file {path}.")
    return read_image(path).astype(np.float32)


def _labels(args) -> list[str] | None:
    if args.labels:
        if not os.path.isfile(args.labels):
            raise ValueError(f"--labels: there is no file {args.labels}.")
        return read_text(args.labels).splitlines()
    beside = Path(args.weights or ".").parent / "labels.txt"
    if args.weights not in PUBLISHED and beside.exists():
        return read_text(beside).splitlines()
    return None


def load_model(args, labels: list[str] | None) -> keras.Model:
    """Loads the model that the arguments name."""
    if args.weights.endswith(".keras"):
        return load_model_file(args.weights)
    if args.weights.endswith((".tflite", ".mlpackage")):
        raise ValueError(
            f"{args.weights} is a converted file. `predict` takes what it was made of; "
            "train/main.py --mode=eval and tflite/benchmark.py run .tflite files."
        )
    if args.model.startswith(DETECTOR):
        return SSDLite(
            args.model.removeprefix(DETECTOR),
            classes=len(labels or COCO_NAMES),
            weights=args.weights,
            input_shape=(None, None, 3),
        )
    if args.model.startswith(SEGMENTER):
        return DeepLabV3(
            args.model.removeprefix(SEGMENTER),
            classes=len(labels or VOC_NAMES),
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
        raise ValueError(
            f"{error}\n{classes} classes were expected, by "
            + ("the class names given." if labels else "default; --labels changes it.")
        ) from error


def probabilities(model: keras.Model, image: np.ndarray) -> np.ndarray:
    """Runs a classifier, whatever its last activation.

    Args:
        model: takes values in [0, 255].
        image: `[height, width, 3]`.

    Returns:
        float32 `[classes]`: probabilities that sum to 1, or, of a model that ends in a
        sigmoid or has one unit, the probability of each class by itself.
    """
    image = image * (input_max(model) / 255)
    scores = model.predict(image[None], verbose=0)
    if not returns_probabilities(model):
        to_probabilities = ops.sigmoid if scores.shape[-1] == 1 else ops.softmax
        scores = ops.convert_to_numpy(to_probabilities(scores))
    return scores[0]


def _named_scores(scores: np.ndarray, labels: list[str] | None) -> list[tuple]:
    """Returns the names and probabilities of all classes, in the order of these."""
    if len(scores) == 1 and labels is not None and len(labels) == 2:
        # One unit that tells two classes apart: the probability of the second.
        scores = np.array([1 - scores[0], scores[0]])
    labels = labels or [f"class {i}" for i in range(len(scores))]
    if len(labels) != len(scores):
        raise ValueError(
            f"There are {len(labels)} class names for {len(scores)} classes."
        )
    return list(zip(labels, map(float, scores)))


def best_classes(scores: np.ndarray, labels: list[str] | None) -> list[tuple]:
    """Returns the best classes and their probabilities, the best first."""
    if labels is None and len(scores) == 1000:
        try:
            rows = decode_predictions(scores[None], top=TOP)[0]
            return [(name, float(score)) for _, name, score in rows]
        except OSError as error:
            print(f"warning: {error}", file=sys.stderr)
    rows = _named_scores(scores, labels)
    return sorted(rows, key=lambda row: row[1], reverse=True)[:TOP]


def print_classes(model: keras.Model, args, labels: list[str] | None) -> None:
    """Prints the best classes of each image."""
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(
            f"{args.weights} is no classifier, detector or segmenter: its output has "
            f"the shape {model.output_shape}. Expected (None, classes)."
        )
    size = _input_size(model, args, classifier.DEFAULT_SIZE)
    crop_fraction = _evaluated(args.weights, "eval_crop") or CROP_FRACTION
    for path in args.images:
        image = resize_and_center_crop(load_image(path), size, crop_fraction)
        scores = probabilities(model, ops.convert_to_numpy(image))
        best = best_classes(scores, labels)  # may download the names: before the path
        print(path)
        if is_multi_label(model):
            print("  each class by itself, yes or no:")
        for name, score in best:
            print(f"  {100 * score:5.1f} %  {name}")


def is_multi_label(model: keras.Model) -> bool:
    """Tells whether a classifier may find several classes at once, or none."""
    return model.output_shape[-1] > 1 and output_activation(model) == "sigmoid"


def draw_objects(model: keras.Model, args, labels: list[str] | None) -> None:
    """Prints the objects of each image, and draws them into a PNG."""
    _refuse_equal_names(args, "boxes")
    size = _input_size(model, args, ssdlite.DEFAULT_SIZE)
    classes = model.output["logits"].shape[-1] - 1
    labels = _class_names(labels, classes, COCO_NAMES)
    anchors = anchor_boxes(*size)
    score = SCORE if args.score is None else args.score
    scale = input_max(model) / 255
    for path in args.images:
        image = load_image(path)
        outputs = model.predict(_squeezed(image, size) * scale, verbose=0)
        found = detect(outputs, anchors, score_threshold=score)
        found = {name: ops.convert_to_numpy(x)[0] for name, x in found.items()}
        found = {name: x[found["classes"] >= 0] for name, x in found.items()}
        drawn = draw_boxes(image, **found, labels=labels)
        file = _save_picture(drawn, path, "boxes", args)
        seen = "x".join(map(str, size[::-1]))
        print(f"{path}: {len(found['boxes'])} objects at {seen}, drawn in {file}")
        height, width = image.shape[:2]
        for box, score, label in zip(found["boxes"], found["scores"], found["classes"]):
            corners = np.round(box * [width, height, width, height]).astype(int)
            print(f"  {100 * score:5.1f} %  {labels[label]}  {corners.tolist()}")


def color_classes(model: keras.Model, args, labels: list[str] | None) -> None:
    """Prints the classes on each image, and colours them in a PNG."""
    _refuse_equal_names(args, "classes")
    size = _input_size(model, args, deeplab.DEFAULT_SIZE)
    model = without_auxiliary(model)
    labels = _class_names(labels, model.output_shape[-1], VOC_NAMES)
    scale = input_max(model) / 255
    for path in args.images:
        image = load_image(path)
        logits = model.predict(_squeezed(image, size) * scale, verbose=0)[0]
        classes = class_map(logits, *image.shape[:2])
        shares = np.bincount(classes.ravel(), minlength=len(labels)) / classes.size
        present = [i for i in np.argsort(-shares, kind="stable") if shares[i]]
        legend = {i: labels[i] for i in present if labels[i] != BACKGROUND}
        drawn = add_legend(draw_classes(image, classes, labels), legend)
        file = _save_picture(drawn, path, "classes", args)
        seen = "x".join(map(str, size[::-1]))
        print(f"{path}: {len(present)} classes at {seen}, drawn in {file}")
        for label in present:
            print(f"  {_percent(shares[label])}  {labels[label]}")


def _percent(share: float) -> str:
    return f"{100 * share:5.1f} %" if share >= SMALLEST_SHARE else "< 0.1 %"


def _class_names(labels, classes: int, published: tuple[str, ...]) -> list[str]:
    """Returns the names given, else the published ones, else numbers."""
    if labels is None and classes == len(published):
        return list(published)
    labels = labels or [f"class {i}" for i in range(classes)]
    if len(labels) != classes:
        raise ValueError(f"There are {len(labels)} class names for {classes} classes.")
    return labels


def _squeezed(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a whole image, whatever its aspect: `[1, *size, 3]`."""
    resized = ops.image.resize(image[None], size, antialias=True)
    return ops.convert_to_numpy(resized)


def _picture_file(path: str, ending: str, args) -> Path:
    folder = Path(args.output) if args.output else Path(path).parent
    return folder / f"{Path(path).stem}_{ending}.png"


def _refuse_equal_names(args, ending: str) -> None:
    files = [str(_picture_file(path, ending, args)) for path in args.images]
    twice = sorted({file for file in files if files.count(file) > 1})
    if twice:
        raise ValueError(
            f"Pictures of several images would all be called {', '.join(twice)}. Give "
            "these images in commands of their own, with another --output."
        )


def _save_picture(drawn: np.ndarray, path: str, ending: str, args) -> Path:
    file = _picture_file(path, ending, args)
    with atomic_write(file) as temporary:
        keras.utils.save_img(temporary, drawn, scale=False)
    return file


def _evaluated(weights: str, key: str):
    """Returns what a training left beside a file of how it evaluated it, or `None`."""
    file = Path(weights).with_name("config.json")
    if not weights.endswith(".keras") or not file.is_file():
        return None
    try:
        value = json.loads(read_text(file))[key]
    except (ValueError, KeyError, TypeError):
        return None  # another program's
    return value if EVALUATED[key](value) else None


def _input_size(model: keras.Model, args, default: int) -> tuple[int, int]:
    """Returns the height and width to which images are resized.

    Raises:
        ValueError: if --size is another one than the only one that a model takes.
    """
    own = model.input_shape[1:3]
    if args.size and any(side not in (None, args.size) for side in own):
        raise ValueError(
            f"{args.weights} takes images of {own[1]}x{own[0]} pixels alone. Leave "
            f"--size={args.size} away."
        )
    side = args.size or _evaluated(args.weights, "eval_size") or default
    return tuple(fixed or side for fixed in own)


def _check(args) -> None:
    """Refuses values that mean nothing, and makes the folder of the pictures."""
    if Path(args.model).suffix:
        raise ValueError(
            f"--model names a network, such as mobilevit_s. A file is given by "
            f"--weights={args.model}."
        )
    if args.size is not None and args.size < MIN_SIZE:
        raise ValueError(f"--size must be at least {MIN_SIZE}. Received: {args.size}.")
    if args.score is not None and not 0 <= args.score <= 1:
        raise ValueError(f"--score must be in [0, 1]. Received: {args.score}.")
    if args.output:
        Path(args.output).mkdir(parents=True, exist_ok=True)


def predict(args) -> None:
    if args.weights is None:
        kind = args.model.partition("mobilevit")[0]
        args.weights = {DETECTOR: "coco", SEGMENTER: "voc"}.get(kind, "imagenet")
    _check(args)
    labels = _labels(args)
    model = load_model(args, labels)
    if args.score is not None and not is_detector(model):
        raise ValueError("--score is of a detector's boxes: remove it.")
    if is_detector(model):
        draw_objects(model, args, labels)
    elif is_segmenter(model):
        color_classes(model, args, labels)
    else:
        print_classes(model, args, labels)


def main() -> None:
    args = make_parser().parse_args()
    if hasattr(sys.stdout, "reconfigure"):  # not where it was replaced
        # A terminal may lack the letters of a class's name.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        predict(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
