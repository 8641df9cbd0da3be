r"""Exports networks of other projects as ONNX, to compare their latency with ours.

Examples:
  python benchmarks/onnx_baselines.py --model=mobilevit_s --output=out/timm_s.onnx
  python benchmarks/onnx_baselines.py --model=deeplabv3_mobilevit_s \
      --output=out/transformers_s.onnx

timm has the classifiers. Hugging Face's transformers has the segmenters, here with
output stride 16 and 21 classes. Unlike the published segmenters of MobileViTv2, those
of transformers do not dilate the blocks' depthwise convolutions. ONNX Runtime and
OpenVINO run the files. Their weights are random: only their latency is meaningful.
Needs pip install '.[peers]'.

tflite/convert.py converts MobileNetV2 and other baselines, which
tflite/baselines.py builds.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags, logging

from train.cli.command import run_command
from train.cli.console import quiet_libraries
from train.cli.networks import variant_names

# transformers' segmenters by the title of the family: the names of the classes of
# configuration and model, and a function from our `ModelConfig` to the configuration's
# arguments.
SEGMENTERS: dict[str, tuple[str, str, Callable[[Any], dict]]] = {
    "MobileViT": (
        "MobileViTConfig",
        "MobileViTForSemanticSegmentation",
        lambda ours: {
            "hidden_sizes": ours.transformer_dims,
            "neck_hidden_sizes": (
                ours.stem_channels,
                *ours.stage_channels,
                ours.head_channels,
            ),
            "expand_ratio": float(ours.expansion),
        },
    ),
    "MobileViTv2": (
        "MobileViTV2Config",
        "MobileViTV2ForSemanticSegmentation",
        lambda ours: {"width_multiplier": ours.stem_channels / 32},
    ),
}


def _build_classifier(variant: str) -> Any:
    """Builds a classifier with timm."""
    import timm

    return timm.create_model(variant, exportable=True)


def _build_segmenter(variant: str) -> Any:
    """Builds a segmenter with transformers. Its logits have its output stride."""
    import transformers

    from keras_mobilevit.configs import get_variant

    ours = get_variant(variant)
    title = ours.family.title
    if title not in SEGMENTERS:
        raise ValueError(
            f"transformers has no segmenters of {title}. Expected a variant of "
            f"{' or '.join(SEGMENTERS)}."
        )
    config_class, model_class, arguments = SEGMENTERS[title]
    config = getattr(transformers, config_class)(
        **arguments(ours), output_stride=16, num_labels=21, return_dict=False
    )
    model = getattr(transformers, model_class)(config)
    # The random weights of transformers are so small that the last maps are denormal
    # numbers, which slow a processor. Those of PyTorch have a normal magnitude.
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


# Functions that build a variant, by the prefix of the model's name.
BUILDERS: dict[str, Callable[[str], Any]] = {
    "": _build_classifier,
    "deeplabv3_": _build_segmenter,
}


def export(model: str, size: int | None, output: Path) -> None:
    """Writes another project's version of a model as ONNX, for one image.

    Without `size`, the image has the model's own.
    """
    from keras_mobilevit.files import atomic_write
    from tflite.models import default_size
    from tflite.tasks.registry import split_name

    row, variant = split_name(model)
    try:
        import torch

        network = BUILDERS[row.model_prefix or ""](variant).eval()
    except ImportError as error:
        raise ValueError(f"pip install '.[peers]' first: {error}.") from error
    size = size or default_size(model)
    image = torch.zeros(1, 3, size, size)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as temporary:
        torch.onnx.export(
            network,
            (image,),
            temporary,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def define_flags() -> None:
    """Defines the flags of the command."""
    names = [prefix + name for prefix in BUILDERS for name in variant_names()]
    flags.DEFINE_enum("model", None, names, "Model to export.")
    text = "Side of the input image in pixels. Default: 256, for a segmenter 512."
    flags.DEFINE_integer("size", None, text, lower_bound=1)
    flags.DEFINE_string("output", None, "Path of the .onnx file.")
    flags.mark_flags_as_required(["model", "output"])


def main(argv: list[str]) -> None:
    """Exports the model that the flags name."""
    args = flags.FLAGS
    output = Path(args.output).expanduser()
    if output.suffix != ".onnx":
        sys.exit(f"error: --output must end in .onnx. Received: {output}.")
    # PyTorch crashes if TensorFlow was loaded before it (2.14 and 2.21).
    if importlib.util.find_spec("torch"):
        os.environ["KERAS_BACKEND"] = "torch"
    try:
        with quiet_libraries():
            import keras  # noqa: F401
        export(args.model, args.size, output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # PyTorch logs each step of an export
    run_command(main, __doc__ or "", {"Flags": define_flags})
