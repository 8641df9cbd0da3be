"""Suites of models to measure side by side, with their published accuracies."""

import dataclasses
import subprocess
import sys
from pathlib import Path

from train.cli.networks import variant_names

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of a suite."""

    model: str  # a value of `--model` of `tflite/convert.py`
    title: str  # name for people
    size: int  # side of its image in pixels
    top1: float  # published ImageNet-1k accuracy in percent
    millions: float  # of parameters


@dataclasses.dataclass(frozen=True)
class Suite:
    """Models, and the formats that all of them are converted to."""

    entries: tuple[Entry, ...]  # the others are compared with the first
    formats: tuple[str, ...]  # keys of `tflite.formats.table.FORMATS`


# Accuracies and parameters of Table 3 of the paper (2110.02178), and two networks that
# are popular today (MobileNetV3 1905.02244, EfficientNet 1905.11946). MobileNetV2 has
# the accuracy of the paper's multi-scale training; its own paper (1801.04381) has 72.0.
# DeiT and PiT are trained without distillation. MobileViTv2 is later than the paper;
# its accuracies are from its authors' release (the model zoo of ml-cvnets 0.2), and its
# three widths are about as accurate as MobileViT. The training recipes differ.
PAPER = Suite(
    (
        Entry("mobilenet_v2", "MobileNetV2 1.0", 224, 73.3, 3.5),
        Entry("mobilenet_v3_large", "MobileNetV3-Large", 224, 75.2, 5.5),
        Entry("efficientnet_b0", "EfficientNet-B0", 224, 77.1, 5.3),
        Entry("deit_tiny", "DeiT-Tiny", 224, 72.2, 5.7),
        Entry("pit_tiny", "PiT-Tiny", 224, 73.0, 4.9),
        Entry("mobilevit_xxs", "MobileViT-XXS", 256, 69.0, 1.3),
        Entry("mobilevit_xs", "MobileViT-XS", 256, 74.8, 2.3),
        Entry("mobilevit_s", "MobileViT-S", 256, 78.4, 5.6),
        Entry("mobilevitv2_050", "MobileViTv2-0.5", 256, 70.2, 1.4),
        Entry("mobilevitv2_075", "MobileViTv2-0.75", 256, 75.6, 2.9),
        Entry("mobilevitv2_100", "MobileViTv2-1.0", 256, 78.1, 4.9),
    ),
    ("fp32", "int8-mixed"),
)
SUITES = {"paper": PAPER}
# The networks of `tflite/baselines.py`, by name: that module loads Keras.
BASELINE_NAMES = [
    entry.model for entry in PAPER.entries if entry.model not in variant_names()
]


def file_of(entry: Entry, name: str, folder: Path) -> Path:
    """Returns the path of a model's file in a format."""
    return folder / f"{entry.model}_{entry.size}_{name}.tflite"


def files_of(suite: str, folder: Path) -> list[Path]:
    """Returns the paths of the files of a suite, format by format."""
    row = SUITES[suite]
    return [file_of(e, name, folder) for name in row.formats for e in row.entries]


def prepare(suite: str, folder: Path) -> list[str]:
    """Converts the missing files of a suite, and returns the paths that exist then."""
    files = files_of(suite, folder)
    if not all(file.exists() for file in files):
        print(
            f"converting the suite {suite} into {folder}, with random weights: the "
            "files are good for measuring time only",
            file=sys.stderr,
        )
        # In another process, so that TensorFlow is not loaded while files are measured.
        command = [sys.executable, "-m", "tflite.suites.conversion", suite]
        subprocess.run([*command, str(folder.resolve())], cwd=ROOT)
    found = [str(file) for file in files if file.exists()]
    if not found:
        raise RuntimeError(f"The conversion of the suite {suite} failed.")
    return found


def missing(suite: str, paths: list[str]) -> str | None:
    """Returns an error that names the files of a suite that `paths` lacks, if any."""
    folder = Path(paths[0]).parent
    names = [file.name for file in files_of(suite, folder) if str(file) not in paths]
    if not names:
        return None
    return f"error: not converted (see above), so not measured: {', '.join(names)}."
