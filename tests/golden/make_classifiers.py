"""Writes the golden files of classifiers: outputs of timm and transformers.

Run from the root of the repository, in an environment with torch, timm 1.0.31,
transformers 5.23.0 and the torchvision for this torch, which timm imports. The files of
MobileViT were written with torch 2.13.0, those of MobileViTv2 with torch 2.14.1. Keras
is not needed:

    PYTHONPATH=. python tests/golden/make_classifiers.py [VARIANT ...]

Without names the script writes the files of all variants. For each library and variant
it writes two files beside itself: `<library>_<variant>.json` has the shapes of the
tensors by name, and `<library>_<variant>.npz` has the logits, float32 `[2, 1000]`, as
`y<height>x<width>` for each of `reference.SIZES`.

For MobileViTv2, timm's files also have `f<height>x<width>`: each 20th channel of the
last feature map, float32 `[2, rows, columns, channels]`. `<library>_<variant>_16.npz`
and `_8.npz` have only this map, with an output stride of 16 and 8, for each of
`reference.DILATED_SIZES`, subsampled. The two widest variants have only the shapes.

transformers' MobileViTv2 does not enlarge a map with odd sides and does not dilate the
convolution in its block, as timm's and ml-cvnets' do. So its files have only sizes at
which all maps are even, and only the output stride of 32.
"""

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from transformers import (
    MobileViTForImageClassification,
    MobileViTV2ForImageClassification,
)

from tests.golden.reference import (
    DILATED_SIZES,
    SIZES,
    feature_key,
    size_key,
    subsampled_features,
    write_outputs,
    write_shapes,
)
from tests.golden.torch_models import (
    V2_VARIANTS,
    VARIANTS,
    set_seeded_weights,
    torch_images,
    transformers_config,
)

FOLDER = Path(__file__).parent
SHAPES_ONLY = ("mobilevitv2_175", "mobilevitv2_200")  # their outputs would add nothing
DILATED_VARIANTS = ("mobilevitv2_050", "mobilevitv2_100")
# By variant: the class, whether it expects BGR, and the sizes.
TRANSFORMERS = {
    **{v: (MobileViTForImageClassification, True, SIZES) for v in VARIANTS},
    "mobilevitv2_050": (
        MobileViTV2ForImageClassification,
        False,
        ((256, 256), (192, 192)),
    ),
}


def timm_features(model: torch.nn.Module, size: tuple[int, int]) -> np.ndarray:
    """Returns a part of the last feature map."""
    maps = model.forward_features(torch_images(size, is_bgr=False))
    return subsampled_features(maps.permute(0, 2, 3, 1).numpy())


def write_timm(variant: str) -> None:
    """Writes the files of timm's model, which expects RGB."""
    model = timm.create_model(variant, pretrained=False).eval()
    stem = FOLDER / f"timm_{variant}"
    write_shapes(stem, set_seeded_weights(model))
    if variant in SHAPES_ONLY:
        return
    outputs = {
        size_key(*size): model(torch_images(size, is_bgr=False)).numpy()
        for size in SIZES
    }
    if variant in V2_VARIANTS:
        outputs |= {feature_key(*size): timm_features(model, size) for size in SIZES}
    write_outputs(stem, outputs)


def write_dilated(variant: str, output_stride: int) -> None:
    """Writes the feature maps of timm's model with another output stride."""
    model = timm.create_model(variant, output_stride=output_stride).eval()
    set_seeded_weights(model)
    write_outputs(
        FOLDER / f"timm_{variant}_{output_stride}",
        {feature_key(*size): timm_features(model, size) for size in DILATED_SIZES},
    )


def write_transformers(variant: str) -> None:
    """Writes the files of transformers' model."""
    build, is_bgr, sizes = TRANSFORMERS[variant]
    config = transformers_config(variant, output_stride=32, num_labels=1000)
    model = build(config).eval()
    stem = FOLDER / f"transformers_{variant}"
    write_shapes(stem, set_seeded_weights(model))
    logits = {
        size_key(*size): model(torch_images(size, is_bgr)).logits.numpy()
        for size in sizes
    }
    write_outputs(stem, logits)


@torch.inference_mode()
def main() -> None:
    for variant in sys.argv[1:] or VARIANTS + V2_VARIANTS + SHAPES_ONLY:
        write_timm(variant)
        if variant in DILATED_VARIANTS:
            for output_stride in (16, 8):
                write_dilated(variant, output_stride)
        if variant in TRANSFORMERS:
            write_transformers(variant)


if __name__ == "__main__":
    main()
