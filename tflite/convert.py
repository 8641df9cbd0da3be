r"""Converts MobileViT and other image models to TFLite and Core ML.

Examples:
  python tflite/convert.py --model=runs/demo/best.keras --size=48 --output_dir=out
  python tflite/convert.py --model=runs/photos/best.keras \
      --formats=fp32,fp16,dynamic,int8-mixed,int8 --output_dir=out
  python tflite/convert.py --model=mobilevit_s --output_dir=out  # published weights
  python tflite/convert.py --model=runs/cells/best.keras --nms=none --output_dir=out
  python tflite/convert.py --model=runs/roads/best.keras --output=classmap \
      --output_dir=out
  python tflite/convert.py --model=runs/photos/best.keras \
      --formats=coreml,coreml-int8 --output_dir=out

Writes <name>_<size>_<format>.tflite, which takes one image, has only TFLite's own
operations, and holds the metadata and class names that MediaPipe reads; or .mlpackage,
which takes an image and returns class names, boxes or a class map. First the network is
rewritten into a faster network with the same outputs: batch normalization and scales
are folded, and no tensor has a rank above 4, so that XNNPACK and GPUs can run all of
it, except non-maximum suppression. Then each file is compared with Keras on validation
images (packages run in NumPy, on any machine). A file that exceeds a limit of its
format is not written; --allow=CHECK lets one check fail. A JSON card beside the file
lists its input, output, labels, operations, size, parity, accuracy and versions. The
last lines say how to try each file.

Formats:

{formats}

"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import errno
import tempfile
import textwrap

from absl import flags, logging

from tflite.flags import flag_groups
from tflite.formats.table import FORMATS
from train.cli.command import run_command
from train.cli.console import quiet_libraries

__doc__ = (__doc__ or "").format(
    formats="\n".join(
        textwrap.fill(
            row.purpose, 88, initial_indent=f"  {name:<16}", subsequent_indent=" " * 18
        )
        for name, row in FORMATS.items()
    )
)


def _summary(path: Path, card: dict) -> str:
    """Returns the line that is printed for a file."""
    parity = card["parity"]
    parts = [
        f"{card['bytes'] / 1e6:.2f} MB",
        *FORMATS[card["format"]].file_type.summary(card),
        _difference(parity),
        *accuracy_words(card["accuracy"], parity),
        f"on {parity['images']} images of {parity['data']}",
    ]
    return f"{path}: {', '.join(parts)}"


def _difference(parity: dict) -> str:
    if "psnr_db" not in parity:  # a class map
        return f"{100 * parity['agreement']:.3f} % of the pixels have the same class"
    psnr = f", PSNR {parity['psnr_db']:.0f} dB"
    return f"max abs difference {parity['max_abs']:.1e}{psnr}"


def accuracy_words(accuracy: dict | None, parity: dict) -> list[str]:
    """Returns words on the accuracy of a card, or on its agreement with Keras."""
    if accuracy:
        metric = accuracy["metric"]
        found, expected = accuracy[metric], accuracy[f"keras_{metric}"]
        return [f"{metric} {found:.2f} % (Keras {expected:.2f} %)"]
    names = [name for name in parity if name.endswith("agreement")]
    return [f"{n.replace('_', ' ')} {100 * parity[n]:.1f} %" for n in names[:1]]


def _next_step(path: Path, card: dict) -> str:
    """Returns a line on what a file is, and how to try it."""
    row = FORMATS[card["format"]]
    count = card["classes"]
    classes = f" of {count} class{'es' * (count > 1)}" if count else ""
    labels = "" if card.get("labels") else ", without class names (--labels)"
    what = f"{card['format']}, {card['task']}{classes}{labels if classes else ''}"
    return f"{what}: {row.file_type.next_step(path, card)}"


def convert(args: flags.FlagValues) -> list[str]:
    """Converts to all formats; returns those that were refused."""
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the converter is TensorFlow's
    # Makes the training for int8-qat three times as fast.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with quiet_libraries():
        import tensorflow as tf

        from tflite.checked_file import only_conversion
        from tflite.options import options_from_flags
        from tflite.pipeline import convert_all
    tf.get_logger().setLevel("WARNING")  # INFO reports each step
    options = options_from_flags(args)
    try_them, refused = [], []
    with only_conversion(options.output_dir):
        for result in convert_all(options):
            if result.card is None:
                refused.append(result.name)
                message = f"{result.path.name} was not written: {result.error}"
                print(f"error: {message}", file=sys.stderr)
            else:
                print(_summary(result.path, result.card), flush=True)
                try_them.append(_next_step(result.path, result.card))
    if try_them:
        print("\nTry the files:", *try_them, sep="\n  ")
    return refused


def _where_disk_is_full(error: Exception, output_dir: str) -> str:
    """Returns a hint on the folders; Python does not name them while it writes."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
        return ""
    return (
        f". Make room in {output_dir} (--output_dir) and in the folder of temporary "
        f"files, {tempfile.gettempdir()} (TMPDIR)."
    )


def main(argv: list[str]) -> None:
    """Runs the command."""
    args = flags.FLAGS
    try:
        refused = convert(args)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        logging.debug("Traceback:", exc_info=True)  # with --verbosity=1
        sys.exit(f"error: {error}{_where_disk_is_full(error, args.output_dir)}")
    if refused:
        count = len(set(args.formats))
        sys.exit(f"{len(refused)} of {count} formats refused: {', '.join(refused)}.")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # the quantizer reports each step
    run_command(main, __doc__, flag_groups())
