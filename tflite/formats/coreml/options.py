"""The options of Core ML packages, and how a package of each task is made from them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import keras
from absl import logging

from keras_mobilevit.anchors import anchors_of_count
from keras_mobilevit.configs import MIN_SIZE
from keras_mobilevit.deeplab import aligns_corners
from keras_mobilevit.value_range import input_max
from keras_mobilevit.weights.pytorch_layout import family_of
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


@dataclasses.dataclass(frozen=True)
class PackageOptions:
    """The options of Core ML packages, like the flags of these names.

    Attributes:
        sizes: sides of the images in pixels, the default first; empty for one size.
        ios: oldest iOS version that runs the package, `None` for the oldest possible.
    """

    sizes: tuple[int, ...] = ()
    ios: int | None = None
    layout: str = "tokens"
    raw_outputs: bool = False


def package_options(args, has_packages: bool) -> PackageOptions:
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
        return PackageOptions()
    load_coremltools()
    if args.no_rewrite:
        raise ValueError(
            "Core ML packages contain the rewritten network: remove --no_rewrite."
        )
    return PackageOptions(
        sizes=_check_sizes(args.sizes or [], args.size),
        ios=int(args.ios) if args.ios else None,
        layout=args.layout,
        raw_outputs=args.raw_outputs,
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


def class_labels(
    options: PackageOptions, model_labels: Sequence[str], classes: int
) -> tuple[str, ...]:
    """Returns the labels of a package; none if it returns numbers.

    `model_labels` are the class names that come with the model.
    """
    if options.raw_outputs:
        return ()
    labels = list(model_labels)
    if not labels:
        logging.warning("The classes are named by numbers: name them with --labels.")
        labels = list(map(str, range(classes)))
    if (len(labels), classes) == (2, 1):  # a single unit, of the second class
        labels = labels[1:]
    check_labels(labels, classes)
    return tuple(labels)


@dataclasses.dataclass(frozen=True)
class CoreMLTask:
    """The Core ML packages of a task.

    Attributes:
        make: from a model, its graph, a `PackageSpec` and the precision to a Core ML
            model.
        postprocess: from that model, perhaps with compressed weights, and the
            `PackageSpec` to the model that is saved.
        check_sizes: refuses impossible sides of images.
    """

    make: Callable
    postprocess: Callable = lambda made, spec: made
    check_sizes: Callable[[tuple[int, ...]], None] = lambda sizes: None


def _detector(model, graph, spec: PackageSpec, precision: str):
    (size,) = spec.sizes
    shapes = model.compute_output_shape((1, size, size, 3))
    anchors = anchors_of_count(size, size, shapes["offsets"][1])
    return detector.make_program(graph, anchors, spec, precision)


def _segmenter(model, graph, spec: PackageSpec, precision: str):
    return segmenter.make_segmenter(graph, spec, precision, aligns_corners(model))


CORE_ML_TASKS = {  # by the name of the task
    "classification": CoreMLTask(
        lambda model, graph, spec, precision: make_classifier(
            graph, spec, precision, output_name(model)
        ),
    ),
    "detection": CoreMLTask(
        _detector,
        detector.finalize_detector,
        detector.check_one_size,
    ),
    "segmentation": CoreMLTask(
        _segmenter,
        segmenter.finalize_segmenter,
    ),
}


def _network(model: keras.Model) -> str:
    """Returns the name and the paper of a model's network; nothing for an own one."""
    family = family_of(model)
    return f"{family.title}: {family.paper}; " if family else ""


def _metadata(
    options: PackageOptions, model: keras.Model, card: dict
) -> dict[str, str]:
    return {
        "author": card["author"],
        "license": card["license"],
        "version": card["version"],
        "short_description": card["description"],
        "preprocessing": f"{card['preprocessing']}. The package scales the pixels "
        "itself.",
        "source": f"{_network(model)}weights: {card['weights']}",
        "layout": options.layout,
    }


def core_ml_from_options(
    options: PackageOptions, task: Task, model: keras.Model, card: dict
) -> Callable[..., object]:
    """Returns a function that makes the Core ML model of a precision.

    It takes `float16` or `float32`, and optionally a function that compresses weights,
    `int8_weights` or `palette_weights` of `package.py`. The options have `sizes`; the
    card has the entries of `describe_origin`, `preprocessing` and `labels`. Raises a
    ValueError if the labels do not fit the model, or there are several sizes for a
    detector.
    """
    row, sizes = CORE_ML_TASKS[task.name], options.sizes
    row.check_sizes(sizes)
    labels = card.get("labels", [])
    spec = PackageSpec(
        sizes=sizes,
        labels=class_labels(options, labels, task.num_classes(model) or 0),
        layout=options.layout,
        ios=options.ios,
        metadata=_metadata(options, model, card),
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
