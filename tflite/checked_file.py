"""Builds a file, checks it, and writes it with its card."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from absl import logging

from keras_mobilevit.classifier import output_activation
from keras_mobilevit.files import atomic_write, atomic_write_folder
from keras_mobilevit.litert import read_card
from tflite.compare_with_keras import Reference, compare_file
from tflite.formats.conversion import Conversion
from tflite.formats.table import FORMATS, FileType, Format
from tflite.graph.reader import fallback_layers
from tflite.validation import checks, tensor_errors
from train.cli.console import readable

MAX_GPU_RANK = 4  # of tensors that GPU delegates take


@contextlib.contextmanager
def only_conversion(folder: Path) -> Iterator[None]:
    """Locks a folder against other conversions. Raises a ValueError if it is locked."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(
            f"Another conversion writes into {folder}. Wait for it, or use another "
            "--output_dir."
        ) from error
    finally:
        os.close(handle)


def check_earlier(path: Path, provenance: dict) -> None:
    """Raises a ValueError if the file at `path` was made from another model."""
    card = read_card(path)
    if not path.exists() or "model" not in card:
        return
    earlier, new = (
        [str(x.get(key, "")) for key in ("model", "weights")]
        for x in (card, provenance)
    )
    if [Path(x).resolve() for x in earlier] != [Path(x).resolve() for x in new]:
        origin = " with the weights ".join(filter(None, earlier))
        raise ValueError(
            f"{path} was made from {origin}. Use another --output_dir, or remove the "
            "file first."
        )


def write_checked(
    conversion: Conversion,
    file_format: str,
    references: Sequence[Reference],
    output: Path,
    provenance: dict,
    allowed: Collection[str] = (),
    check_gpu: bool = False,
) -> dict:
    """Converts a model, checks the file, and writes it with its card.

    The card has the name of the file, ends in `.json` and contains `provenance`. There
    is a reference for each size of the images. Checks in `allowed` may fail.
    `check_gpu` runs a `.tflite` file on the GPU accelerator too.

    Raises:
        ValueError: if the file exceeds a limit of its format. Then nothing is written,
            and an earlier file of this name stays.
    """
    row = FORMATS[file_format]
    with tempfile.TemporaryDirectory() as folder:  # for files before their checks
        unchecked = Path(folder, output.name)
        described = provenance | _describe_model(conversion, references[0])
        row.file_type.save(row.build(conversion), unchecked, described, conversion)
        compared = [compare_file(unchecked, row.file_type, r) for r in references]
        card = {
            **described,
            "format": file_format,
            **_describe_file(conversion, row, unchecked, references[0], check_gpu),
            **compared[0],
            "limits": _limits(conversion, file_format, references[0]),
            "allowed": list(allowed),
        }
        if compared[1:]:
            card["other_sizes"] = compared[1:]
        try:
            for found in compared:
                checks.refuse_faults(card | found, card["limits"], allowed)
        except ValueError as error:
            if not output.exists():
                raise
            raise ValueError(f"{error} An earlier {output} stays as it was.") from error
        _write(unchecked, output, card, row.file_type)
    _warn_of_fallback_layers(card, output)
    return card


def _fallback_layers(conversion: Conversion) -> list[str]:
    return fallback_layers(conversion.graph) if conversion.graph else []


def _limits(
    conversion: Conversion, file_format: str, reference: Reference
) -> dict[str, float]:
    """Returns the limits of a format for a task and a network."""
    overrides = reference.task.limits
    limits: dict[str, float | None] = dict(FORMATS[file_format].limits)
    limits |= overrides.get("", {}) | overrides.get(file_format, {})
    if _fallback_layers(conversion):  # their operations may be slow on phones
        limits |= dict.fromkeys(("undelegated_ops", "rank"))
    return {name: limit for name, limit in limits.items() if limit is not None}


def _describe_model(conversion: Conversion, reference: Reference) -> dict:
    """Returns the card's entries on the model."""
    task, model = reference.task, reference.model
    described = {
        "task": task.name,
        "classes": task.num_classes(model),
        "rewritten": conversion.graph is not None,
        "kept_layers": _fallback_layers(conversion),
    }
    if task.name == "classification":
        described["activation"] = _activation(reference)
    return described


def _activation(reference: Reference) -> str:
    """Returns the last function of a classifier's file."""
    activation = output_activation(reference.model)
    if activation == "logits" and "probabilities" in reference.outputs:
        one_class = reference.outputs["probabilities"].shape[-1] == 1
        return "sigmoid" if one_class else "softmax"
    return activation


def _describe_file(
    conversion: Conversion,
    row: Format,
    path: Path,
    reference: Reference,
    check_gpu: bool,
) -> dict:
    """Returns the card's entries on the file, apart from its accuracy."""
    names = list(reference.outputs)
    described = row.file_type.describe(
        path, reference.task, names, conversion.input_max
    )
    pixels, images = reference.validation.images, reference.images
    described |= row.file_type.check_device(path, pixels, images, check_gpu)
    if row.compared_with and conversion.graph is not None:
        described["largest_errors"] = _largest_errors(
            row.compared_with(conversion), path, reference
        )
    return described


def _largest_errors(
    float_conversion: Conversion, path: Path, reference: Reference
) -> list[dict]:
    """Returns the layers whose errors grow most, compared with the float file."""
    if float_conversion.graph is None:
        return []
    try:
        return tensor_errors.largest_errors(
            float_conversion.graph,
            float_conversion.float32,
            path.read_bytes(),
            reference.images,
        )
    except (ValueError, RuntimeError) as error:  # the file itself may still be good
        logging.warning("The layers of %s cannot be compared: %s", path.name, error)
        return []


def _write(unchecked: Path, output: Path, card: dict, file_type: FileType) -> None:
    """Moves a checked file to its place, and writes its card beside it."""
    if file_type.is_folder:
        with atomic_write_folder(output) as temporary:
            shutil.copytree(unchecked, temporary)
    else:
        with atomic_write(output) as temporary:
            shutil.copyfile(unchecked, temporary)
    with atomic_write(output.with_suffix(".json")) as card_path:
        text = json.dumps(card, indent=2, allow_nan=False, ensure_ascii=False)
        card_path.write_text(readable(f"{text}\n"), "utf-8")


def _warn_of_fallback_layers(card: dict, output: Path) -> None:
    """Warns if layers without a rewrite have operations that are slow on phones."""
    undelegated = card.get("xnnpack", {}).get("ops_outside", {})
    slow = [f"{name} ({count})" for name, count in undelegated.items()]
    if card["max_rank"] > MAX_GPU_RANK:
        slow.append(f"tensors of rank {card['max_rank']}, which GPUs do not support")
    if card["kept_layers"] and slow:
        logging.warning(
            "%s has operations that XNNPACK leaves to slower kernels: %s. They come "
            "from layers without a rewrite, some of: %s.",
            output.name,
            ", ".join(slow),
            ", ".join(card["kept_layers"]),
        )
