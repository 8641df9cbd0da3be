"""Classifies a photo, or finds its objects or regions.

Also a quick test of the installation.

Examples:
  python -m keras_mobilevit predict photo.jpg --model=mobilevit_s
  python -m keras_mobilevit predict photo.jpg --weights=runs/photos/best.keras
  python -m keras_mobilevit predict photo.jpg --weights=hf://owner/name
  python -m keras_mobilevit predict photo.jpg --model=ssdlite_mobilevit_s
  python -m keras_mobilevit predict photo.jpg --model=deeplabv3_mobilevit_s

For a classifier, the command prints the most probable classes. If the classifier ends
in sigmoids, each class has a probability of its own. For a detector, the command prints
the boxes and draws them in photo_boxes.png, next to the photo or in --output. For a
segmenter, it prints each class's share of the pixels and colors the classes in
photo_classes.png.
"""

# This module parses the arguments before Keras loads, so it must not import Keras.

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from keras_mobilevit.configs import (
    CLASSIFIER_SIZE,
    DETECTOR_SIZE,
    SEGMENTER_SIZE,
    VARIANTS,
)

INTERRUPTED = 130  # exit code of a shell after Ctrl-C
TOP_CLASSES = 5
MIN_SCORE = 0.3  # boxes of a lower score are not drawn
# Model names are one of these prefixes, or none, and the name of a backbone.
DETECTOR_PREFIX, SEGMENTER_PREFIX = "ssdlite_", "deeplabv3_"


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m keras_mobilevit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="predict")
    predict = commands.add_parser(
        "predict",
        help=f"print the {TOP_CLASSES} best classes, or draw boxes or regions",
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    predict.add_argument(
        "--model",
        default="mobilevit_s",
        help=f"a classifier: {', '.join(VARIANTS)} (default: mobilevit_s). With "
        f"{DETECTOR_PREFIX} before its name it is a detector, with {SEGMENTER_PREFIX} "
        "a segmenter",
    )
    predict.add_argument(
        "--weights",
        help="published weights: imagenet (classifiers), coco (detectors) or voc "
        "(segmenters); or a file: .keras (a whole model), .tflite (of "
        "tflite/convert.py), .safetensors, .pt or .weights.h5 (weights of --model); or "
        "such a file on the Hugging Face Hub: hf://owner/name, or "
        "hf://owner/name/file@revision",
    )
    predict.add_argument(
        "--size",
        type=int,
        help="height and width in pixels. Default: the size that the model requires; "
        "else the evaluation size in config.json next to a .keras file; else "
        f"{CLASSIFIER_SIZE} for a classifier, {DETECTOR_SIZE} for a detector, "
        f"{SEGMENTER_SIZE} for a segmenter",
    )
    predict.add_argument(
        "--score",
        type=float,
        help=f"lowest score of the boxes that are drawn (default: {MIN_SCORE})",
    )
    predict.add_argument(
        "--output", help="folder for the drawn pictures (default: the image's folder)"
    )
    predict.add_argument(
        "--labels",
        help="text file with one class name per line. Default: those inside a .tflite "
        "file; labels.txt next to other --weights; else the names of ImageNet, COCO "
        "or PASCAL VOC",
    )
    return parser


class _Start:
    """The state of `quiet_start`, for a signal handler."""

    terminal = 2  # the file descriptor
    child: int | None = None  # the process that shows the lines of a failed start


def _end_at_once(*signal_and_frame: object) -> NoReturn:
    """Ends the process; a library might catch a KeyboardInterrupt while it loads."""
    if _Start.child is not None:
        os.kill(_Start.child, signal.SIGKILL)
    os.write(_Start.terminal, b"interrupted\n")
    os._exit(INTERRUPTED)


def raise_interrupts() -> None:
    """Lets Ctrl-C raise a KeyboardInterrupt again, after `quiet_start`."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Keeps TensorFlow's start-up lines out of the output of this command.

    Ctrl-C ends the command with one line, also after this context, until it calls
    `raise_interrupts`.

    `python -m` imports the package, which loads Keras in this context, before it runs
    the command. The arguments are parsed first, so that `--help` and mistakes are
    answered at once. TensorFlow writes its lines to the file descriptor, and no setting
    turns all of them off. If the start fails or crashes, a second process shows them.
    If TF_CPP_MIN_LOG_LEVEL is set, they are always shown.
    """
    # While `-m` imports the package, the first argument is "-m".
    if sys.argv[:1] != ["-m"] or "keras_mobilevit" not in sys.orig_argv:
        yield
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, _end_at_once)
    make_parser().parse_args()
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ or not hasattr(os, "fork"):
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    sys.stderr.flush()
    original = os.dup(2)
    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(target)
        _copy_at_end(source, original)
    _Start.terminal, _Start.child = original, child
    os.dup2(target, 2)
    os.close(source)
    os.close(target)
    try:
        yield
        if "tensorflow" in sys.modules:  # looks for GPUs now, and says so
            sys.modules["tensorflow"].config.list_physical_devices()
        os.kill(child, signal.SIGKILL)  # so it does not copy
    finally:
        sys.stderr.flush()
        os.dup2(original, 2)  # closes the pipe
        _Start.terminal, _Start.child = 2, None
        os.close(original)
        os.waitpid(child, 0)


def _copy_at_end(source: int, target: int) -> NoReturn:
    """Copies a pipe when the other end closes, and exits."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process decides
        with os.fdopen(source, "rb") as pipe, os.fdopen(target, "wb") as output:
            output.write(pipe.read())
    finally:
        os._exit(0)
