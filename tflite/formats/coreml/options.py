"""The options of Core ML packages, and how a package of each task is made from them."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from absl import logging

import keras_mobilevit
from keras_mobilevit.anchors import anchor_boxes
from keras_mobilevit.configs import MIN_SIZE
from keras_mobilevit.files import read_text
from keras_mobilevit.preprocessing import decode_predictions
from keras_mobilevit.value_range import input_max
from tflite.formats.coreml import detector, segmenter
from tflite.formats.coreml import flags as coreml_flags
from tflite.formats.coreml.classifier import make_classifier
from tflite.formats.coreml.package import (
    PackageSpec,
    check_labels,
    load_coremltools,
    split_input_scale,
)
from tflite.graph.reader import read_model
from tflite.graph.rewrites import COREML_REWRITES, deployment_graph
from tflite.tasks.classification.task import output_name
from tflite.tasks.task import Task

_APPLE = "Sachin Mehta and Mohammad Rastegari, Apple"
AUTHORS = {  # of published weights
    "imagenet": f"{_APPLE}; ported by Ross Wightman (timm)",
    "coco": _APPLE,
    "voc": _APPLE,
}
APPLE_LICENSE = "Apple's, see https://github.com/apple/ml-cvnets/blob/main/LICENSE"
NOT_STATED = "not stated"
IMAGENET_CLASSES = 1000  # detectors on an ImageNet backbone have another number


@dataclasses.dataclass(frozen=True)
class PackageOptions:
    """The options of Core ML packages, like the flags of these names.

    Attributes:
        weights: published weights, a path, or `none`.
        sizes: sides of the images in pixels, the default first; empty for one size.
        ios: oldest iOS version that runs the package, `None` for the oldest possible.
        labels: path of a file of class names.
    """

    model: str
    weights: str
    sizes: tuple[int, ...] = ()
    ios: int | None = None
    layout: str = "tokens"
    raw_outputs: bool = False
    labels: str | None = None
    author: str | None = None
    license: str | None = None


def package_options(
    args, model: str, weights: str, has_packages: bool
) -> PackageOptions:
    """Checks the flags of Core ML packages; see `PackageOptions`.

    Raises a ValueError if flags contradict each other or have no valid value.
    """
    if not has_packages:
        given = [name for name in coreml_flags.NAMES if args[name].present]
        if given:
            raise ValueError(
                f"--{given[0]} is for Core ML: add coreml to --formats, or remove the "
                "flag."
            )
        return PackageOptions(model, weights)
    load_coremltools()
    sizes = _check_sizes(args.sizes or [], args.size)
    if args.raw_outputs and args.labels:
        raise ValueError("--raw_outputs returns no names: remove --labels.")
    labels = args.labels and str(Path(args.labels).expanduser())
    if labels and not Path(labels).is_file():
        raise ValueError(f"--labels: there is no file {labels}.")
    if args.no_rewrite:
        raise ValueError(
            "Core ML packages contain the rewritten network: remove --no_rewrite."
        )
    return PackageOptions(
        model=model,
        weights=weights,
        sizes=sizes,
        ios=int(args.ios) if args.ios else None,
        layout=args.layout,
        raw_outputs=args.raw_outputs,
        labels=labels,
        author=args.author,
        license=args.license,
    )


def _check_sizes(sizes: list[str], size: int | None) -> tuple[int, ...]:
    if any(not given.isdecimal() or int(given) < MIN_SIZE for given in sizes):
        raise ValueError(
            f"--sizes must be integers of at least {MIN_SIZE}. Received: "
            f"{','.join(sizes)}."
        )
    if len(set(map(int, sizes))) != len(sizes):
        raise ValueError(f"--sizes has one size more than once: {','.join(sizes)}.")
    if sizes and size not in (None, int(sizes[0])):
        raise ValueError(
            f"--size={size} is not the first of --sizes={','.join(sizes)}. Remove one "
            "of the two flags."
        )
    return tuple(map(int, sizes))


def _imagenet_labels() -> list[str]:
    """Returns the names of ImageNet's classes; equal names get their WordNet id."""
    # Decreasing scores return the classes in their own order.
    (found,) = decode_predictions(-np.arange(1000.0)[None], top=1000)
    names = [name for _, name, _ in found]
    return [
        f"{name} ({identity})" if names.count(name) > 1 else name
        for identity, name, _ in found
    ]


def class_labels(
    options: PackageOptions, model_labels: list[str], classes: int
) -> tuple[str, ...]:
    """Returns the labels of a package; none if it returns numbers.

    `model_labels` are the class names that come with the model.
    """
    if options.raw_outputs:
        return ()
    if options.labels:
        labels = read_text(options.labels).splitlines()
    elif model_labels:
        labels = model_labels
    elif options.weights == "imagenet" and classes == IMAGENET_CLASSES:
        labels = _imagenet_labels()
    else:
        logging.warning("The classes are named by numbers: name them with --labels.")
        labels = list(map(str, range(classes)))
    check_labels(labels, classes)
    return tuple(labels)


def _center_crop_text(sizes: tuple[int, ...], crop: float) -> str:
    shorter = " or ".join(str(round(size / crop)) for size in sizes)
    return f"the short side resized to {shorter} pixels, bilinearly; center crop"


def _whole_image_text(sizes: tuple[int, ...], crop: float) -> str:
    sides = " or ".join(f"{size}x{size}" for size in sizes)
    return f"the whole image resized to {sides} pixels, bilinearly, ignoring its aspect"


@dataclasses.dataclass(frozen=True)
class CoreMLTask:
    """The Core ML packages of a task.

    Attributes:
        preprocessing: from the sides of the images and the crop to a text on how
            applications prepare images.
        make: from a model, its graph, a `PackageSpec` and the precision to a Core ML
            model.
        postprocess: from that model, perhaps with compressed weights, and the
            `PackageSpec` to the model that is saved.
        check_sizes: refuses impossible sides of images.
    """

    title: str
    preprocessing: Callable[[tuple[int, ...], float], str]
    make: Callable
    postprocess: Callable = lambda made, spec: made
    check_sizes: Callable[[tuple[int, ...]], None] = lambda sizes: None


def _detector(model, graph, spec: PackageSpec, precision: str):
    (size,) = spec.sizes
    return detector.make_program(graph, anchor_boxes(size, size), spec, precision)


CORE_ML_TASKS = {  # by the name of the task
    "classification": CoreMLTask(
        "MobileViT image classifier",
        _center_crop_text,
        lambda model, graph, spec, precision: make_classifier(
            graph, spec, precision, output_name(model)
        ),
    ),
    "detection": CoreMLTask(
        "SSDLite object detector",
        _whole_image_text,
        _detector,
        detector.finalize_detector,
        detector.check_one_size,
    ),
    "segmentation": CoreMLTask(
        "DeepLabv3 image segmenter",
        _whole_image_text,
        lambda model, graph, spec, precision: segmenter.make_segmenter(
            graph, spec, precision
        ),
        segmenter.finalize_segmenter,
    ),
}


def _metadata(
    options: PackageOptions, title: str, preprocessing: str
) -> dict[str, str]:
    is_published = options.weights in AUTHORS
    name = Path(options.model).name
    return {
        "author": options.author or AUTHORS.get(options.weights, NOT_STATED),
        "license": options.license or (APPLE_LICENSE if is_published else NOT_STATED),
        "version": f"keras_mobilevit {keras_mobilevit.__version__}",
        "short_description": f"{title}, from {name}",
        "preprocessing": f"RGB; {preprocessing}. The package scales the pixels itself.",
        "source": "MobileViT, https://arxiv.org/abs/2110.02178; weights: "
        f"{name if options.weights == 'none' else options.weights}",
        "layout": options.layout,
    }


def core_ml_from_options(
    options: PackageOptions,
    task: Task,
    model: keras.Model,
    labels: list[str],
    crop: float,
) -> Callable[..., object]:
    """Returns a function that makes the Core ML model of a precision.

    It takes `float16` or `float32`, and optionally a function that compresses weights,
    `int8_weights` or `palette_weights` of `package.py`. The options have `sizes`;
    `crop` is a classifier's, see `resize_and_center_crop`. Raises a ValueError if the
    labels do not fit the model, or there are several sizes for a detector.
    """
    row, sizes = CORE_ML_TASKS[task.name], options.sizes
    row.check_sizes(sizes)
    spec = PackageSpec(
        sizes=sizes,
        labels=class_labels(options, labels, task.num_classes(model) or 0),
        layout=options.layout,
        ios=options.ios,
        metadata=_metadata(options, row.title, row.preprocessing(sizes, crop)),
    )

    @functools.cache
    def program(precision: str):
        graph = read_model(model, sizes[0], sizes[0])
        graph = deployment_graph(graph, COREML_REWRITES)
        graph, scale = split_input_scale(graph, input_max(model))
        scaled = dataclasses.replace(spec, pixel_scale=scale)
        return row.make(model, graph, scaled, precision)

    def core_ml(precision: str, compress=None):
        made = compress(program(precision)) if compress else program(precision)
        return row.postprocess(made, spec)

    return core_ml
