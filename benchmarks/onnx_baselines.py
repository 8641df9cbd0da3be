"""Exports what ours is measured against: timm's MobileViT, and transformers' DeepLabv3.

Examples:
  python benchmarks/onnx_baselines.py --model=mobilevit_s --output=out/timm_s.onnx
  python benchmarks/onnx_baselines.py --model=deeplabv3_mobilevit_s --output=out/transformers_s.onnx

timm gives the classifiers, Hugging Face's transformers the segmenters, at output stride
16 and for 21 classes. The files are ONNX, for ONNX Runtime and OpenVINO. They have
random weights: only their time is of interest. Takes pip install '.[peers]'.

MobileNetV2 and other networks to compare with are in tflite/suites/baselines.py, by whose
names tflite/convert.py takes them.
"""

import importlib.util
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
# PyTorch crashed where TensorFlow was loaded before it (2.14 and 2.21).
if __name__ == "__main__" and importlib.util.find_spec("torch"):
    os.environ["KERAS_BACKEND"] = "torch"

from absl import app, flags, logging

from keras_mobilevit.configs import SEGMENTER_SIZE, VARIANTS
from keras_mobilevit.files import atomic_write
from tflite.models import default_size
from tflite.tasks.registry import split_name


def _timm(name: str):
    """Builds a classifier."""
    import timm

    return timm.create_model(name, exportable=True)


def _transformers(name: str):
    """Builds a segmenter, which returns the logits at its output stride."""
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

    ours = VARIANTS[name]
    config = MobileViTConfig(
        hidden_sizes=ours.transformer_dims,
        neck_hidden_sizes=(
            ours.stem_channels,
            *ours.stage_channels,
            ours.head_channels,
        ),
        expand_ratio=float(ours.expansion),
        output_stride=16,
        num_labels=21,
        return_dict=False,
    )
    model = MobileViTForSemanticSegmentation(config)
    # Its own random weights are so small that the last maps are denormal numbers, with
    # which a processor computes slowly. PyTorch's are of a trained network's magnitude.
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


# Who builds a variant, by what stands before its name.
BUILDERS = {"": _timm, "deeplabv3_": _transformers}


def export(model: str, size: int, output: Path) -> None:
    """Writes the peer of a model as ONNX, for one image of a fixed size."""
    row, variant = split_name(model)
    try:
        import torch

        peer = BUILDERS[row.model_prefix](variant).eval()
    except ImportError as error:
        raise ValueError(f"pip install '.[peers]' first: {error}.") from error
    image = torch.zeros(1, 3, size, size)
    with atomic_write(output) as temporary:
        torch.onnx.export(
            peer, (image,), temporary, dynamo=True, external_data=False, verbose=False
        )


def define_flags() -> None:
    names = [head + name for head in BUILDERS for name in VARIANTS]
    flags.DEFINE_enum("model", None, names, "What to export.")
    flags.DEFINE_integer(
        "size",
        None,
        f"Side of the input image in pixels. By default 256, {SEGMENTER_SIZE} of "
        "a segmenter.",
        lower_bound=1,
    )
    flags.DEFINE_string("output", None, "The .onnx file.")
    flags.mark_flags_as_required(["model", "output"])


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    args = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # PyTorch tells each step of an export
    output = Path(args.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        if output.suffix != ".onnx":
            raise ValueError(f"--output must end in .onnx. Received: {output}.")
        export(args.model, args.size or default_size(args.model), output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
