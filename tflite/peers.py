"""Exports what MobileViT is measured against.

Examples:

  python tflite/peers.py --model=mobilevit_s --output=out/timm_s.onnx
  python tflite/peers.py --model=mobilenet_v2 --output=out/mobilenet_v2.keras

mobilevit_xxs, mobilevit_xs and mobilevit_s are timm's, as ONNX for ONNX Runtime and
OpenVINO; mobilenet_v2 is Keras's, for tflite/convert.py, whose ratio of int8 to float32
is the machine's own. All have random weights: only their time is of interest. Takes
pip install '.[peers]'.
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

MOBILENET = "mobilenet_v2"


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


def export_mobilenet(size: int, output: Path) -> None:
    """Writes Keras's MobileNetV2, which returns logits."""
    import keras

    model = keras.applications.MobileNetV2(
        input_shape=(size, size, 3), weights=None, classifier_activation=None
    )
    with whole_file(output) as temporary:
        model.save(temporary)


def define_flags() -> None:
    flags.DEFINE_enum("model", None, [*VARIANTS, MOBILENET], "What to export.")
    flags.DEFINE_integer("size", 256, "Side of the input image in pixels.")
    flags.DEFINE_string("output", None, "The file, .onnx or .keras.")
    flags.mark_flags_as_required(["model", "output"])


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    args = flags.FLAGS
    output = Path(args.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".keras" if args.model == MOBILENET else ".onnx"
    try:
        if output.suffix != suffix:
            raise ValueError(f"--output of {args.model} must end in {suffix}.")
        if args.model == MOBILENET:
            export_mobilenet(args.size, output)
        else:
            export_timm(args.model, args.size, output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
