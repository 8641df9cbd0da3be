"""Writes the golden files of segmenters: logits of transformers' DeepLabv3.

Run from the root of the repository, in an environment with torch and transformers
5.23.0. The files of MobileViT were written with torch 2.13.0, those of MobileViTv2 with
torch 2.14.1. Keras is not needed:

    PYTHONPATH=. python tests/golden/make_segmenters.py [VARIANT ...]

For each variant of `SEGMENTERS` the script writes to the folder `segmentation` beside
itself: `transformers_<variant>.json` has the shapes of the tensors by name, which do
not depend on the output stride. `transformers_<variant>_<stride>.npz` has the logits,
float32 `[2, rows, columns, 21]`, subsampled.

transformers' MobileViTv2 does not dilate the convolution in its block, and does not
enlarge maps with odd sides. The weights were trained with both. So this script sets the
dilation, and the files have only sizes at which all maps are even. The files of
`make_v2_tasks.py` have odd ones.
"""

import sys
from pathlib import Path

import torch
from transformers import (
    MobileViTForSemanticSegmentation,
    MobileViTV2ForSemanticSegmentation,
)

from tests.golden.reference import (
    SEGMENTATION_SIZES,
    size_key,
    subsampled,
    write_outputs,
    write_shapes,
)
from tests.golden.torch_models import (
    set_seeded_weights,
    torch_images,
    transformers_config,
)

FOLDER = Path(__file__).parent / "segmentation"
# By variant: the class, the channels of the spatial pyramid, whether it expects BGR,
# and the sizes.
SEGMENTERS = {
    "mobilevit_xxs": (MobileViTForSemanticSegmentation, 256, True, SEGMENTATION_SIZES),
    "mobilevitv2_050": (
        MobileViTV2ForSemanticSegmentation,
        512,
        False,
        ((256, 256), (320, 192)),
    ),
}
# MobileViTv2: by output stride, the dilation of the block's convolution in each stage.
BLOCK_DILATIONS = {16: {5: 2}, 8: {4: 2, 5: 4}}


def transformers_model(variant: str, output_stride: int) -> torch.nn.Module:
    """Builds transformers' model for PASCAL VOC."""
    build, channels, *_ = SEGMENTERS[variant]
    config = transformers_config(
        variant,
        output_stride=output_stride,
        num_labels=21,
        aspp_out_channels=channels,
        atrous_rates=[6, 12, 18],
    )
    return build(config)


def dilate_blocks(
    model: MobileViTV2ForSemanticSegmentation, output_stride: int
) -> None:
    """Dilates the convolutions of the blocks as timm and ml-cvnets do."""
    for stage, dilation in BLOCK_DILATIONS[output_stride].items():
        block = model.mobilevitv2.encoder.layer[stage - 1]
        convolution = block.conv_kxk.convolution
        convolution.dilation = convolution.padding = (dilation, dilation)


@torch.inference_mode()
def main() -> None:
    for variant in sys.argv[1:] or SEGMENTERS:
        _, _, is_bgr, sizes = SEGMENTERS[variant]
        stem = FOLDER / f"transformers_{variant}"
        for output_stride in (16, 8):
            model = transformers_model(variant, output_stride).eval()
            if isinstance(model, MobileViTV2ForSemanticSegmentation):
                dilate_blocks(model, output_stride)
            write_shapes(stem, set_seeded_weights(model))
            logits = {}
            for size in sizes:
                y = model(torch_images(size, is_bgr)).logits  # [2, 21, rows, columns]
                logits[size_key(*size)] = subsampled(y.permute(0, 2, 3, 1).numpy())
            write_outputs(Path(f"{stem}_{output_stride}"), logits)


if __name__ == "__main__":
    main()
