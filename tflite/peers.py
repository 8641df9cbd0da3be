"""Exports timm's MobileViT, which ours is measured against.

Examples:

  python tflite/peers.py --model=mobilevit_s --output=out/timm_s.onnx

The files are ONNX, for ONNX Runtime and OpenVINO. They have random weights: only their
time is of interest. Takes pip install '.[peers]'.

MobileNetV2 and other networks to compare with are in tflite/baselines.py, by whose
names tflite/convert.py takes them.
"""

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from keras_mobilevit.configs import VARIANTS
from keras_mobilevit.files import whole_file


def export_timm(name: str, size: int, output: Path) -> None:
    """Writes timm's model of that name as ONNX, for one image of a fixed size."""
    try:
        import timm
        import torch
    except ImportError as error:
        raise ValueError(f"pip install '.[peers]' first: {error}.") from error
    model = timm.create_model(name, exportable=True).eval()
    image = torch.zeros(1, 3, size, size)
    with whole_file(output) as temporary:
        torch.onnx.export(
            model, (image,), temporary, dynamo=True, external_data=False, verbose=False
        )


def define_flags() -> None:
    flags.DEFINE_enum("model", None, list(VARIANTS), "What to export.")
    flags.DEFINE_integer("size", 256, "Side of the input image in pixels.")
    flags.DEFINE_string("output", None, "The .onnx file.")
    flags.mark_flags_as_required(["model", "output"])


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    args = flags.FLAGS
    output = Path(args.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        if output.suffix != ".onnx":
            raise ValueError(f"--output must end in .onnx. Received: {output}.")
        export_timm(args.model, args.size, output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
