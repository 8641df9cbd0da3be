"""Runs a `.tflite` file with LiteRT, on NumPy arrays."""

import lzma
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from keras_mobilevit.card_checks import checked_card
from keras_mobilevit.files import check_file, parse_json, read_json
from keras_mobilevit.tflite_structure import MAX_FILE_BYTES, check_structure

CARD_INSIDE = "keras_mobilevit.json"  # the part of the card that is in the file
LABELS_INSIDE = "labels.txt"
MAX_INSIDE_BYTES = 2**24  # of a card; 100,000 class names take a fifth of it
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    UnicodeDecodeError,
)


def read_card(path: str | os.PathLike) -> dict:
    """Reads the card of a `.tflite`: what it takes and returns, and what made it.

    A conversion writes it beside the file, and the part that a program needs to run the
    file into the file. What is inside counts: the file beside it may be of an earlier
    conversion. Files of other programs have labels at most. Raises a ValueError if the
    card cannot be read, or has other values than a conversion writes.
    """
    return checked_card(_card_beside(path) | read_inside(path), path)


def _names_of_archive(path: str | os.PathLike) -> bool:
    """Tells whether the end of a file once was the archive that a conversion adds."""
    return CARD_INSIDE.encode() in Path(path).read_bytes()


def _card_beside(path: str | os.PathLike) -> dict:
    file = Path(path).with_suffix(".json")
    if not file.is_file():
        return {}
    card = read_json(file, MAX_INSIDE_BYTES)
    if not isinstance(card, dict):
        raise ValueError(f"{file} is not the card of a conversion. Move it away.")
    return card


def _lines(text: str) -> list[str]:
    # As `keras_mobilevit.files.read_lines`, of a text that is in an archive.
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _check_inside(archive: zipfile.ZipFile, path: str | os.PathLike) -> None:
    """Refuses class names and a card that would take too much memory."""
    size = sum(member.file_size for member in archive.infolist())
    if size > MAX_INSIDE_BYTES:
        raise ValueError(
            f"{path} has class names and metadata of {size / 1e6:,.0f} MB inside. "
            f"Expected at most {MAX_INSIDE_BYTES / 1e6:,.0f} MB."
        )


def read_inside(path: str | os.PathLike) -> dict:
    """Reads the part of the card that is in a `.tflite`, with the class names.

    They are in a ZIP archive that follows the model. Raises a ValueError if they cannot
    be read.
    """
    if not Path(path).is_file():
        return {}
    check_file(path, MAX_FILE_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_inside(archive, path)
            texts = {name: archive.read(name) for name in archive.namelist()}
    # zlib and the names of members have errors of other types.
    except (OSError, RuntimeError, EOFError, *ARCHIVE_ERRORS) as error:
        if _names_of_archive(path):
            raise ValueError(
                f"{path} is damaged at its end, where its class names are: {error}. "
                "Copy it again."
            ) from error
        return {}  # nothing follows the model
    try:
        text = texts.get(CARD_INSIDE, b"{}").decode("utf-8")
        card = dict(parse_json(text, CARD_INSIDE))
        lists = [x for x in texts if "label" in x.lower() and x.endswith(".txt")]
        name = LABELS_INSIDE if LABELS_INSIDE in texts else "".join(lists[:1])
        if name and (name == LABELS_INSIDE or len(lists) == 1):
            card.setdefault("labels", _lines(texts[name].decode("utf-8-sig")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} has class names or metadata inside that cannot be read: {error}"
        ) from error
    return card


class LiteRTModel:
    """A `.tflite` file with one input.

    `input` and `outputs` are LiteRT's details, outputs by the names in the file's
    signature. Raises a ValueError if the file is missing or is not a TFLite model.
    Where the time of loading is measured, the file has been checked before, and
    `is_checked` says so.
    """

    def __init__(
        self, path: str | os.PathLike, num_threads: int = 1, is_checked: bool = False
    ):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ValueError(
                "Running a .tflite file takes LiteRT. Run `pip install ai-edge-litert`."
            ) from error
        if not Path(path).is_file():
            raise ValueError(f"There is no file {path}.")
        self.path = path
        if not is_checked:
            check_structure(path)
        try:
            # In the system's encoding: LiteRT would encode text as UTF-8.
            name = os.fsencode(path)
            self.interpreter = Interpreter(name, num_threads=num_threads)
            self.interpreter.allocate_tensors()
            inputs, self.outputs = (
                self.interpreter.get_input_details(),
                self._named_outputs(),
            )
        # TypeError and KeyError: of a signature that does not fit the graph.
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a TFLite model: {error}") from error
        if len(inputs) != 1:
            raise ValueError(f"{path} has {len(inputs)} inputs. Expected one.")
        (self.input,) = inputs

    def _named_outputs(self) -> dict[str, dict]:
        signatures = self.interpreter.get_signature_list()
        if not signatures:  # another converter made the file
            details = self.interpreter.get_output_details()
            return {output["name"]: output for output in details}
        key = next(iter(signatures))
        found = self.interpreter.get_signature_runner(key).get_output_details()
        return {name: found[name] for name in signatures[key]["outputs"]}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input, batch first: `(1, height, width, channels)`."""
        return tuple(int(side) for side in self.input["shape"])

    def quantize(self, image: np.ndarray) -> np.ndarray:
        """Converts real values to the input's type: rounded, and clipped to its range.

        A cast alone would wrap around: 128 becomes -128 in int8.
        """
        dtype = np.dtype(self.input["dtype"])
        if not np.issubdtype(dtype, np.integer):
            return np.asarray(image, dtype)
        scale, zero_point = self.input["quantization"]
        limits = np.iinfo(dtype)
        # Without a scale, the file takes integers as they are.
        steps = np.round(np.asarray(image) / (scale or 1)) + zero_point
        return np.clip(steps, limits.min, limits.max).astype(dtype)

    def dequantize(self, name: str, values: np.ndarray) -> np.ndarray:
        """Converts an output to real values; class indices stay as they are."""
        scale, zero_point = self.outputs[name]["quantization"]
        if not scale:
            return values
        return (values.astype(np.float32) - zero_point) * np.float32(scale)

    def invoke(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Runs one input, which must have the file's shape and type."""
        try:
            self.interpreter.set_tensor(self.input["index"], image)
            self.interpreter.invoke()
            return {
                name: self.interpreter.get_tensor(details["index"])
                for name, details in self.outputs.items()
            }
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"{self.path} cannot be run on an image of the shape "
                f"{tuple(image.shape)}: {error}"
            ) from error

    def predict(self, images: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """Runs float32 images `[images, height, width, channels]` one by one.

        Returns the outputs by name, `[images, ...]`, converted to real values.
        """
        rows = [self.invoke(self.quantize(image[None])) for image in images]
        return {
            name: np.concatenate([self.dequantize(name, row[name]) for row in rows])
            for name in self.outputs
        }

    def _nodes(self) -> tuple[list[dict], list[dict]]:
        """Returns the partitions that XNNPACK runs, and the file's operations."""
        # The interpreter has no public list of its nodes.
        nodes = self.interpreter._get_ops_details()
        partitions = [node for node in nodes if node["op_name"] == "DELEGATE"]
        return partitions, [node for node in nodes if node["op_name"] != "DELEGATE"]

    def xnnpack_partitions(self) -> int:
        """Counts the partitions of the graph that XNNPACK runs."""
        return len(self._nodes()[0])

    def ops_outside_xnnpack(self) -> dict[str, int]:
        """Counts the operations that XNNPACK leaves to TFLite's slower kernels.

        These are found backwards: they compute what the caller or a partition takes and
        no partition returns.
        """
        partitions, operations = self._nodes()
        inside = {tensor for part in partitions for tensor in part["outputs"]}
        wanted = {tensor for part in partitions for tensor in part["inputs"]}
        wanted |= {details["index"] for details in self.outputs.values()}
        wanted -= inside
        producers = {tensor: node for node in operations for tensor in node["outputs"]}
        found: dict[int, str] = {}
        while wanted:
            node = producers.get(wanted.pop())
            if node is not None and node["index"] not in found:
                found[node["index"]] = node["op_name"]
                wanted |= set(node["inputs"]) - inside
        return dict(Counter(found.values()).most_common())
