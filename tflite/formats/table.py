"""The table of the file formats. Importing it loads no Keras or TensorFlow.

To add a format, add a row to `FORMATS`. Its functions import what they need when they
are called.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tflite.formats.conversion import Conversion
    from tflite.options import Options
    from tflite.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class FileType:
    """The operations on files of one suffix, at any precision.

    Attributes:
        save: writes the result of `Format.build` to a path, with its metadata. Takes
            both, the card's entries on the model, and the `Conversion`.
        describe: takes a path, the `Task`, the names of the outputs and the images'
            largest value; returns entries of the card, at least `foreign_ops`,
            `max_rank`, `bytes` and `sha256`.
        run: takes a path, images (uint8 `[images, height, width, 3]`), the same images
            in the network's range in float32, and the names of the outputs; returns
            the outputs `{name: [images, ...]}`.
        check_device: takes a path, images as for `run`, and whether `--check_gpu` is
            given; returns entries of the card on other processors.
        summary: takes a card; returns words for the line that is printed.
        next_step: takes a path and the card; returns how to try the file, a command or
            a sentence.
        sizes: takes the options; returns the sides of the images that the files take.
        name_parts: more parts of the files' names.
    """

    suffix: str
    save: Callable[[Any, Path, dict, Conversion], object]
    describe: Callable[[Path, Task, list[str], float], dict]
    run: Callable[[Path, np.ndarray, np.ndarray, list[str]], dict[str, np.ndarray]]
    is_folder: bool = False
    check_device: Callable[..., dict] = lambda path, pixels, images, check_gpu: {}
    summary: Callable[[dict], list[str]] = lambda card: []
    next_step: Callable[[Path, dict], str] = lambda path, card: ""
    supports: Callable[[Task], bool] = lambda task: True
    sizes: Callable[[Options], tuple[int, ...]] = lambda options: (options.image_size,)
    name_parts: Callable[[Options, Task], list[str]] = lambda options, task: []


# TFLite -------------------------------------------------------------------------------


def _save_tflite(
    content: bytes, path: Path, card: dict, conversion: Conversion
) -> None:
    from tflite.metadata.describe import add_metadata

    metadata = add_metadata(content, card, conversion.task, conversion.input_max)
    path.write_bytes(metadata)


def _describe_tflite(path: Path, task: Task, names: list[str], input_max: float):
    from tflite.validation.card import describe_file

    meanings = {name: task.outputs[name].meaning for name in names}
    return task.metadata | describe_file(path, meanings, input_max)


def _run_tflite(path: Path, pixels, images, names: list[str]):
    from keras_mobilevit.litert import LiteRTModel

    return LiteRTModel(path, os.cpu_count() or 1).predict(images)


def _check_gpu(path: Path, pixels, images, check_gpu: bool) -> dict:
    if not check_gpu:
        return {"gpu": "not checked"}
    from keras_mobilevit.litert import LiteRTModel
    from tflite.validation import gpu

    litert = LiteRTModel(path)
    verdict = gpu.check_gpu(path, litert.quantize(images[:1]))
    # Integer outputs, which only classifiers have, are compared as floats.
    scale = max(x["quantization"][0] for x in litert.outputs.values()) or 1.0
    difference = verdict.max_abs and verdict.max_abs * scale
    return {"gpu": dataclasses.asdict(verdict) | {"max_abs": difference}}


def _tflite_summary(card: dict) -> list[str]:
    words = [f"{card['xnnpack']['partitions']} XNNPACK partitions"]
    if isinstance(card["gpu"], dict):
        part = "fully" if card["gpu"]["fully_accelerated"] else "not fully"
        words.append(f"{part} on the GPU")
    return words


def _try_tflite(path: Path, card: dict) -> str:
    file = shlex.quote(str(path))
    if card["task"] == "outputs":  # `predict` knows no meaning of them
        return f"python tflite/benchmark.py {file}"
    return f"python -m keras_mobilevit predict PHOTO --weights={file}"


TFLITE = FileType(
    ".tflite",
    save=_save_tflite,
    describe=_describe_tflite,
    run=_run_tflite,
    check_device=_check_gpu,
    summary=_tflite_summary,
    next_step=_try_tflite,
    name_parts=lambda options, task: [task.suffix] if task.suffix else [],
)


# Core ML ------------------------------------------------------------------------------


def _save_package(model, path: Path, card: dict, conversion: Conversion) -> None:
    model.save(str(path))
    for inside in path.rglob("*"):  # coremltools makes some files private
        inside.chmod(0o755 if inside.is_dir() else 0o644)


def _describe_package(path: Path, task: Task, names: list[str], input_max: float):
    from tflite.validation.card import describe_package

    meanings = {name: task.outputs[name].meaning for name in names}
    return describe_package(path, meanings, input_max)


def _run_package(path: Path, pixels, images, names: list[str]):
    from tflite.validation.mil_evaluator import Evaluator

    if len(names) > 1:
        return Evaluator(path).predict_outputs(pixels)
    (name,) = names
    return {name: Evaluator(path).predict(pixels, name == "logits")}


def _check_in_core_ml(path: Path, pixels, images, check_gpu: bool) -> dict:
    from absl import logging

    from tflite.validation.on_mac import ELSEWHERE, run_in_core_ml

    verdict = run_in_core_ml(path, pixels[0])
    reason = verdict.get("reason", ELSEWHERE)
    if reason != ELSEWHERE:
        logging.warning("%s: %s", path.name, reason)
    return {"core_ml": verdict}


def _has_packages(task: Task) -> bool:
    from tflite.formats.coreml.options import CORE_ML_TASKS

    return task.name in CORE_ML_TASKS


def _package_name_parts(options: Options, task: Task) -> list[str]:
    given = options.core_ml
    layout = [] if given.layout == "tokens" else [given.layout]
    return layout + ["raw"] * given.raw_outputs


COREML = FileType(
    ".mlpackage",
    save=_save_package,
    describe=_describe_package,
    run=_run_package,
    is_folder=True,
    check_device=_check_in_core_ml,
    summary=lambda card: [f"iOS {card['ios']}"],
    next_step=lambda path, card: f"open {path} in Xcode; drop a photo on its preview",
    supports=_has_packages,
    sizes=lambda options: options.core_ml.sizes or (options.image_size,),
    name_parts=_package_name_parts,
)


# The formats --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Format:
    """One format: a precision and a type of file.

    Attributes:
        build: takes a `Conversion`; returns what the file type saves.
        purpose: the hardware or use that it is for, in a line of help.
        limits: limits of the card, by the names of `tflite.validation.checks.CHECKS`.
        has_8_bits: whether it rounds to 8 bits or fewer, so that only images of the
            model's own kind show its loss.
        compared_with: for a format with 8-bit activations. Takes a `Conversion`;
            returns the one whose float file it is compared with, layer by layer.
    """

    build: Callable[[Conversion], object]
    purpose: str
    limits: dict[str, float]
    file_type: FileType = TFLITE
    has_8_bits: bool = False
    compared_with: Callable[[Conversion], Conversion] | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration images set its ranges."""
        return self.compared_with is not None


def _fp16(conversion: Conversion) -> bytes:
    from tflite.formats import quantize

    content = quantize.allow_fp16_inference(conversion.float32)
    return quantize.quantize(content, quantize.fp16_recipe(content))


def _dynamic(conversion: Conversion) -> bytes:
    from tflite.formats import quantize

    return quantize.quantize(conversion.float32, quantize.dynamic_recipe())


def _int8_mixed(conversion: Conversion) -> bytes:
    from tflite.formats import quantize

    task = conversion.task
    scopes = (*task.float_scopes, *task.mixed_float_scopes)
    recipe = quantize.mixed_recipe(conversion.graph, scopes)
    return quantize.quantize(conversion.float32, recipe, conversion.ranges)


def _int8(conversion: Conversion) -> bytes:
    from tflite.formats import quantize
    from tflite.formats.uint8_ends import take_uint8

    scopes = conversion.task.float_scopes
    recipe = quantize.integer_recipe(conversion.graph, scopes)
    content = quantize.quantize(conversion.float32, recipe, conversion.ranges)
    return take_uint8(content)


def _package(precision: str, compress: str | None = None) -> Callable:
    """Makes the function that builds a package, with compressed weights if named."""

    def build(conversion: Conversion) -> object:
        from tflite.formats.coreml import package

        if conversion.core_ml is None:
            raise ValueError("The conversion was not prepared for Core ML packages.")
        if compress is None:
            return conversion.core_ml(precision)
        return conversion.core_ml(precision, getattr(package, compress))

    return build


_FLOAT_LIMITS = {"accuracy": 0.0, "rank": 4, "undelegated_ops": 0, "gpu": 1e-3}


FORMATS = {
    "fp32": Format(
        lambda conversion: conversion.float32,
        "the reference; any CPU or GPU",
        {"custom_ops": 0, "parity": 1e-4, "agreement": 0.999} | _FLOAT_LIMITS,
    ),
    "fp16": Format(
        _fp16,
        "half the size; GPUs, and ARM CPUs since 8.2, which compute in 16 bits",
        {"custom_ops": 0, "psnr": 50.0} | _FLOAT_LIMITS,
    ),
    "dynamic": Format(
        _dynamic,
        "a quarter of the size, no calibration; CPUs",
        {"psnr": 25.0, "accuracy": 0.6, "rank": 4, "undelegated_ops": 0},
        has_8_bits=True,
    ),
    "int8-mixed": Format(
        lambda conversion: _int8_mixed(conversion.bias_corrected),
        "a quarter of the size and the fastest on CPUs with int8 instructions; the "
        "transformers' norms and softmax stay float",
        {"psnr": 20.0, "accuracy": 1.0, "rank": 4, "undelegated_ops": 0},
        has_8_bits=True,
        compared_with=lambda conversion: conversion.equalized,
    ),
    "int8": Format(
        lambda conversion: _int8(conversion.bias_corrected),
        "8-bit pixels in, integers inside; NPUs and DSPs. Softmax over the classes, "
        "decoding of boxes and resizing stay float. Slower than int8-mixed on CPUs",
        {"psnr": 18.0, "accuracy": 2.0, "rank": 4, "float": 0},
        has_8_bits=True,
        compared_with=lambda conversion: conversion.equalized,
    ),
    "int8-qat": Format(
        lambda conversion: _int8_mixed(conversion.fine_tuned),
        "int8-mixed after some epochs of quantization-aware training; for networks "
        "that lose too much accuracy otherwise. No significant gain on a pretrained "
        "XXS",
        {"accuracy": 1.0, "rank": 4, "undelegated_ops": 0},
        has_8_bits=True,
        compared_with=lambda conversion: conversion.fine_tuned,
    ),
    "coreml": Format(
        _package("float16"),
        "an .mlpackage in 16 bits, for the Neural Engine of iPhones, iPads and Macs",
        {"max_relative_error": 5e-3, "accuracy": 0.0, "rank": 5, "internal_casts": 0},
        COREML,
    ),
    "coreml-fp32": Format(
        _package("float32"),
        "an .mlpackage in 32 bits, the reference; CPUs and GPUs of Apple devices",
        {"parity": 1e-4, "accuracy": 0.0, "rank": 5, "internal_casts": 0},
        COREML,
    ),
    "coreml-int8": Format(
        _package("float16", "int8_weights"),
        "coreml with 8-bit weights, half its size",
        {"psnr": 30.0, "accuracy": 0.5, "rank": 5, "internal_casts": 0},
        COREML,
        has_8_bits=True,
    ),
    "coreml-palette6": Format(
        _package("float16", "palette_weights"),
        "coreml with weights from tables of 64 values, two fifths of its size",
        {"psnr": 20.0, "accuracy": 0.5, "rank": 5, "internal_casts": 0},
        COREML,
        has_8_bits=True,
    ),
}


def formats_of(task: Task) -> list[str]:
    """Returns the formats that there are for a task."""
    return [
        name
        for name, row in FORMATS.items()
        if name not in task.excluded_formats and row.file_type.supports(task)
    ]
