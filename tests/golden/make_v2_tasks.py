"""Writes the golden files of MobileViTv2's detectors and segmenters, as in ml-cvnets.

ml-cvnets v0.2 does not install beside current packages. So this script builds its
models from timm's backbone, transformers' head for DeepLabv3 and a head for SSDLite
that was written after ml-cvnets' source (tag `cvnets-v0.2`: `cvnets/models/detection/
ssd.py`, `cvnets/modules/ssd_heads.py`, `config/detection/ssd_coco/mobilevit_v2.yaml`).
The weights have ml-cvnets' names; see `cvnets_names.py`.

Run from the root of the repository, in an environment with torch 2.14.1, timm 1.0.31,
transformers 5.23.0 and the torchvision for this torch, which timm imports. Keras is not
needed:

    PYTHONPATH=. python tests/golden/make_v2_tasks.py

The script writes `<folder>/cvnets_mobilevitv2_050*` beside itself:

- The `.json` files in this folder, `detection` and `segmentation` have the shapes of
  the tensors of a classifier, a detector and a segmenter by name.
- In `detection`, the `.npz` file has the `logits` and `offsets` of each 41st anchor for
  images of `reference.DETECTION_SIZE`. `*_240x200.npz` has those for another size, at
  which maps have odd sides, and the blocks enlarge them.
- In `segmentation`, `*_<stride>.npz` has the logits, float32 `[2, rows, columns, 21]`,
  as `y<height>x<width>` for each of `reference.SEGMENTATION_SIZES`, subsampled. The
  file of stride 16 also has all logits resized to the size of the image and then
  subsampled, as `resized<height>x<width>`.
"""

from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from transformers.models.mobilevitv2.modeling_mobilevitv2 import MobileViTV2DeepLabV3

from tests.golden.cvnets_names import backbone_name, deeplab_name
from tests.golden.reference import (
    ANCHOR_STEP,
    DETECTION_SIZE,
    SEGMENTATION_SIZES,
    resized_key,
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

VARIANT = "mobilevitv2_050"
FOLDER = Path(__file__).parent
ODD_SIZE = SEGMENTATION_SIZES[-1]
COCO_CLASSES = 80
HEAD_CHANNELS = (512, 256, 256, 128, 128)  # after the projection of each map
EXTRA_CHANNELS = {64: 256, 128: 128, 256: 128}  # channels of the maps, by stride
GLOBAL_CHANNELS = 64  # of the map with a single cell
ANCHORS_PER_CELL = (6, 6, 6, 6, 6, 4)


def conv_layer(
    channels: int,
    filters: int,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    norm: bool = True,
    act: bool = True,
) -> nn.Module:
    """Builds a convolution with ml-cvnets' names."""
    block = nn.Sequential()
    padding = kernel_size // 2
    block.conv = nn.Conv2d(
        channels, filters, kernel_size, stride, padding, groups=groups, bias=bias
    )
    if norm:
        block.norm = nn.BatchNorm2d(filters)
    if act:
        block.act = nn.ReLU()
    layer = nn.Sequential()
    layer.block = block
    return layer


def separable_conv(channels: int, filters: int, stride: int = 1, **options):
    """Builds a separable convolution with ml-cvnets' names."""
    layer = nn.Sequential()
    layer.dw_conv = conv_layer(
        channels, channels, 3, stride, groups=channels, act=False
    )
    layer.pw_conv = conv_layer(channels, filters, **options)
    return layer


class SSDHead(nn.Module):
    """Predicts the box deltas and logits of one map, as `[batch, anchors, 4 + 81]`."""

    def __init__(self, channels: int, projected: int | None, anchors: int):
        super().__init__()
        self.numbers = 4 + COCO_CLASSES + 1
        options = {"bias": True, "norm": False, "act": False}
        if projected is None:  # the map with a single cell
            self.loc_cls_layer = conv_layer(channels, anchors * self.numbers, **options)
            return
        if projected != channels:
            self.proj_layer = conv_layer(channels, projected)
        self.loc_cls_layer = separable_conv(
            projected, anchors * self.numbers, **options
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "proj_layer"):
            x = self.proj_layer(x)
        return (
            self.loc_cls_layer(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.numbers)
        )


class SSDLite(nn.Module):
    """A detector, whose head has ml-cvnets' names."""

    def __init__(self, variant: str):
        super().__init__()
        self.encoder = timm.create_model(variant, num_classes=0)
        channels = [info["num_chs"] for info in self.encoder.feature_info[-2:]]
        self.extra_layers = nn.ModuleDict()
        for stride, filters in EXTRA_CHANNELS.items():
            self.extra_layers[f"os_{stride}"] = separable_conv(channels[-1], filters, 2)
            channels.append(filters)
        self.extra_layers["os_-1"] = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            conv_layer(channels[-1], GLOBAL_CHANNELS, norm=False),
        )
        channels.append(GLOBAL_CHANNELS)
        self.ssd_heads = nn.ModuleList(
            SSDHead(*arguments)
            for arguments in zip(channels, (*HEAD_CHANNELS, None), ANCHORS_PER_CELL)
        )

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns the six maps, the finest first."""
        x = self.encoder.stem(x)
        results = []
        for stage in self.encoder.stages:
            x = stage(x)
            results.append(x)
        results = results[-2:]
        for layer in self.extra_layers.values():
            results.append(layer(results[-1]))
        return results

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        predictions = [head(x) for head, x in zip(self.ssd_heads, self.maps(x))]
        offsets, logits = torch.cat(predictions, 1).split([4, COCO_CLASSES + 1], -1)
        return {"logits": logits, "offsets": offsets}


class DeepLabV3(nn.Module):
    """A segmenter, whose head has transformers' names."""

    def __init__(self, variant: str, output_stride: int):
        super().__init__()
        self.encoder = timm.create_model(
            variant, num_classes=0, output_stride=output_stride
        )
        config = transformers_config(
            variant, num_labels=21, aspp_out_channels=512, atrous_rates=[6, 12, 18]
        )
        self.segmentation_head = MobileViTV2DeepLabV3(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.segmentation_head([self.encoder.forward_features(x)])


def cvnets_name(name: str) -> str:
    """Returns ml-cvnets' name of a tensor of the models above."""
    prefix, _, rest = name.partition(".")
    if prefix == "encoder":
        return f"encoder.{backbone_name(rest)}"
    return deeplab_name(name)


def write_classifier() -> None:
    """Writes the shapes; the outputs would be timm's for the same weights."""
    shapes = set_seeded_weights(timm.create_model(VARIANT), backbone_name)
    write_shapes(FOLDER / f"cvnets_{VARIANT}", shapes)


def write_detector() -> None:
    """Writes the shapes and outputs of a detector."""
    stem = FOLDER / "detection" / f"cvnets_{VARIANT}"
    model = SSDLite(VARIANT).eval()
    write_shapes(stem, set_seeded_weights(model, cvnets_name))
    height, width = ODD_SIZE
    for size, path in (
        (DETECTION_SIZE, stem),
        (ODD_SIZE, stem.with_name(f"{stem.name}_{height}x{width}")),
    ):
        outputs = model(torch_images(size, is_bgr=False))
        write_outputs(
            path, {name: x[:, ::ANCHOR_STEP].numpy() for name, x in outputs.items()}
        )


def _subsampled_nhwc(x: torch.Tensor) -> np.ndarray:
    return subsampled(x.permute(0, 2, 3, 1).numpy())


def write_segmenter(output_stride: int) -> None:
    """Writes the shapes and logits of a segmenter."""
    stem = FOLDER / "segmentation" / f"cvnets_{VARIANT}"
    model = DeepLabV3(VARIANT, output_stride).eval()
    write_shapes(stem, set_seeded_weights(model, cvnets_name))
    outputs = {}
    for size in SEGMENTATION_SIZES:
        y = model(torch_images(size, is_bgr=False))
        outputs[size_key(*size)] = _subsampled_nhwc(y)
        if output_stride == 16:
            y = nn.functional.interpolate(y, size, mode="bilinear", align_corners=True)
            outputs[resized_key(*size)] = _subsampled_nhwc(y)
    write_outputs(stem.with_name(f"{stem.name}_{output_stride}"), outputs)


@torch.inference_mode()
def main() -> None:
    write_classifier()
    write_detector()
    for output_stride in (16, 8):
        write_segmenter(output_stride)


if __name__ == "__main__":
    main()
