"""The flags of Core ML packages, and what they ask for, by task."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from absl import flags, logging

import keras_mobilevit
from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.configs import MIN_SIZE
from keras_mobilevit.files import read_text
from keras_mobilevit.preprocessing import decode_predictions
from keras_mobilevit.value_range import input_max
from tflite.formats.coreml.classifier import make_classifier
from tflite.formats.coreml.detector import (
    check_one_size,
    finalize_detector,
    make_program,
)
from tflite.formats.coreml.package import (
    VERSIONS,
    PackageSpec,
    check_labels,
    load_coremltools,
    split_input_scale,
)
from tflite.formats.coreml.segmenter import finalize_segmenter, make_segmenter
from tflite.graph.reader import read_model
from tflite.graph.rewrites import COREML_REWRITES, deployment_graph
from tflite.tasks.classification import output_name
from tflite.tasks.task import Task

FLAGS = ("sizes", "ios", "layout", "raw_outputs", "labels", "author", "license")
APPLE = "Sachin Mehta and Mohammad Rastegari, Apple"
PUBLISHED = {  # who made published weights
    "imagenet": f"{APPLE}; ported by Ross Wightman (timm)",
    "coco": APPLE,
    "voc": APPLE,
}
APPLE_LICENSE = "Apple's, see https://github.com/apple/ml-cvnets/blob/main/LICENSE"
NOT_STATED = "not stated"
IMAGENET_CLASSES = 1000  # a detector on that backbone has others


def define_flags() -> None:
    flags.DEFINE_list(
        "sizes", None, "Core ML: sides of the images, the default one first."
    )
    flags.DEFINE_enum(
        "ios",
        None,
        list(map(str, VERSIONS)),
        "Core ML: oldest iOS that shall run the package. By default the oldest that "
        "can: 16, or 17 where a package of several --sizes resizes maps.",
    )
    flags.DEFINE_enum(
        "layout",
        "tokens",
        ["tokens", "ane"],
        "Core ML: how the transformers' tokens lie in memory: channels last, or as "
        "Apple's guide for the Neural Engine has it, with a product for each head. "
        "Only a phone can tell which is faster.",
    )
    flags.DEFINE_bool(
        "raw_outputs",
        False,
        "Core ML: return the network's numbers, not class names; of a detector, the "
        "boxes and scores of every anchor, of a segmenter the logits at the output "
        "stride in place of the class of each pixel.",
    )
    flags.DEFINE_string(
        "labels",
        None,
        "Core ML: text file with a class name a line. By default labels.txt beside a "
        ".keras file, the published names for --weights=imagenet, coco or voc, else "
        "the numbers.",
    )
    flags.DEFINE_string("author", None, "Core ML: who made the model.")
    flags.DEFINE_string("license", None, "Core ML: under which licence it is.")


def check_flags(args, has_packages: bool) -> None:
    """Refuses what cannot work, before the network is loaded.

    Args:
        args: the parsed flags.
        has_packages: whether packages are to be made.
    """
    if not has_packages:
        given = [name for name in FLAGS if args[name].present]
        if given:
            raise ValueError(
                f"--{given[0]} is for Core ML: add coreml to --formats, or leave it "
                "away."
            )
        return
    load_coremltools()
    sizes = args.sizes or []
    if any(not size.isdecimal() or int(size) < MIN_SIZE for size in sizes):
        raise ValueError(
            f"--sizes must be integers of at least {MIN_SIZE}. Received: "
            f"{','.join(sizes)}."
        )
    if len(set(map(int, sizes))) != len(sizes):
        raise ValueError(f"--sizes has one more than once: {','.join(sizes)}.")
    if sizes and args.size not in (None, int(sizes[0])):
        raise ValueError(
            f"--size={args.size} is not the first of --sizes={','.join(sizes)}. Leave "
            "one of them away."
        )
    if args.raw_outputs and args.labels:
        raise ValueError("--raw_outputs returns no names: leave --labels away.")
    if args.labels:
        args.labels = str(Path(args.labels).expanduser())
    if args.labels and not Path(args.labels).is_file():
        raise ValueError(f"--labels: there is no file {args.labels}.")
    if args.no_rewrite:
        raise ValueError("Core ML packages hold the rewritten network: no --no_rewrite")


def package_sizes(args) -> tuple[int, ...]:
    """Returns the sides of the images that a package takes."""
    return tuple(map(int, args.sizes)) if args.sizes else (args.size,)


def name_parts(args) -> list[str]:
    """Returns what tells packages of one network and format apart by their names."""
    layout = [] if args.layout == "tokens" else [args.layout]
    return layout + ["raw"] * args.raw_outputs


def _imagenet_labels() -> list[str]:
    """Returns the names of ImageNet's classes; of equal ones also their WordNet id."""
    # Scores that fall from class to class put them into their own order.
    (found,) = decode_predictions(-np.arange(1000.0)[None], top=1000)
    names = [name for _, name, _ in found]
    return [
        f"{name} ({identity})" if names.count(name) > 1 else name
        for identity, name, _ in found
    ]


def class_labels(args, beside: list[str], classes: int) -> tuple[str, ...]:
    """Returns the labels of a package; none for the network's numbers.

    Args:
        args: the parsed flags.
        beside: names that come with the model.
        classes: how many the network has.
    """
    if args.raw_outputs:
        return ()
    if args.labels:
        labels = read_text(args.labels).splitlines()
    elif beside:
        labels = beside
    elif args.weights == "imagenet" and classes == IMAGENET_CLASSES:
        labels = _imagenet_labels()
    else:
        logging.warning("Classes are called by their numbers: name them with --labels.")
        labels = list(map(str, range(classes)))
    check_labels(labels, classes)
    return tuple(labels)


@dataclasses.dataclass(frozen=True)
class Kind:
    """The packages of a task.

    Attributes:
        title: what they are.
        preprocessing: from the sides of their images and the crop of the evaluation to
            what has to be done to an image before.
        make: from a model, its graph, an `PackageSpec` and the precision to a Core ML
            model.
        finish: from that model, perhaps with smaller weights, and the `PackageSpec` to the
            one that is saved.
        check_sizes: refuses sides of images that cannot be.
    """

    title: str
    preprocessing: Callable[[tuple[int, ...], float], str]
    make: Callable
    finish: Callable = lambda made, spec: made
    check_sizes: Callable[[tuple[int, ...]], None] = lambda sizes: None


def _cut(sizes: tuple[int, ...], crop: float) -> str:
    shorter = " or ".join(str(round(size / crop)) for size in sizes)
    return (
        f"the short side resized to {shorter} pixels, bilinearly, and the centre cut "
        "out"
    )


def _squeeze(sizes: tuple[int, ...], crop: float) -> str:
    sides = " or ".join(f"{size}x{size}" for size in sizes)
    return f"the whole image resized to {sides} pixels, bilinearly, whatever its aspect"


def _classifier(model, graph, spec: PackageSpec, precision: str):
    return make_classifier(graph, spec, precision, output_name(model))


def _detector(model, graph, spec: PackageSpec, precision: str):
    (size,) = spec.sizes
    return make_program(graph, anchor_boxes(size, size), spec, precision)


def _segmenter(model, graph, spec: PackageSpec, precision: str):
    return make_segmenter(graph, spec, precision)


KINDS = {  # by the name of the task
    "classification": Kind("MobileViT image classifier", _cut, _classifier),
    "detection": Kind(
        "SSDLite object detector",
        _squeeze,
        _detector,
        finalize_detector,
        check_one_size,
    ),
    "segmentation": Kind(
        "DeepLabv3 image segmenter", _squeeze, _segmenter, finalize_segmenter
    ),
}


def _metadata(args, what: str, preprocessing: str) -> dict[str, str]:
    is_published = args.weights in PUBLISHED
    name = Path(args.model).name
    return {
        "author": args.author or PUBLISHED.get(args.weights, NOT_STATED),
        "license": args.license or (APPLE_LICENSE if is_published else NOT_STATED),
        "version": f"keras_mobilevit {keras_mobilevit.__version__}",
        "short_description": f"{what}, from {name}",
        "preprocessing": f"RGB; {preprocessing}. The package scales the pixels itself.",
        "source": "MobileViT, https://arxiv.org/abs/2110.02178; weights: "
        f"{name if args.weights == 'none' else args.weights}",
        "layout": args.layout,
    }


def core_ml_from_flags(
    args, task: Task, model: keras.Model, labels: list[str], crop: float
):
    """Returns a function that makes the Core ML model of a precision.

    Args:
        args: the parsed flags.
        task: what the model is for.
        model: the network.
        labels: names of its classes, if they are known.
        crop: of a classifier, see `resize_and_center_crop`.

    Returns:
        A function of a precision, `float16` or `float32`, and of what makes its
        weights smaller, `int8_weights` or `palette_weights` of `tflite.formats.coreml.package`,
        or nothing.

    Raises:
        ValueError: if the labels do not fit the model, or a detector shall take images
            of several sizes.
    """
    kind, sizes = KINDS[task.name], package_sizes(args)
    kind.check_sizes(sizes)
    spec = PackageSpec(
        sizes=sizes,
        labels=class_labels(args, labels, task.num_classes(model)),
        layout=args.layout,
        ios=args.ios and int(args.ios),
        metadata=_metadata(args, kind.title, kind.preprocessing(sizes, crop)),
    )

    @functools.cache
    def program(precision: str):
        graph = read_model(model, sizes[0], sizes[0])
        graph = deployment_graph(graph, COREML_REWRITES)
        graph, scale = split_input_scale(graph, input_max(model))
        scaled = dataclasses.replace(spec, pixel_scale=scale)
        return kind.make(model, graph, scaled, precision)

    def core_ml(precision: str, compress=None):
        made = compress(program(precision)) if compress else program(precision)
        return kind.finish(made, spec)

    return core_ml
