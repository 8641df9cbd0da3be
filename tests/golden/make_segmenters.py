"""Writes the golden files of segmenters: logits of transformers' DeepLabv3.

Run from the root of the repository, in an environment with torch 2.13.0 and
transformers 5.23.0. Keras is not needed:

    PYTHONPATH=. python tests/golden/make_segmenters.py

The script writes to the folder `segmentation` beside itself:
`transformers_mobilevit_xxs.json` has the shapes of the tensors by name, which do not
depend on the output stride. `transformers_mobilevit_xxs_<stride>.npz` has the logits,
float32 `[2, rows, columns, 21]` for each of `SEGMENTATION_SIZES`, subsampled.
"""

from pathlib import Path

import torch
from transformers import MobileViTForSemanticSegmentation

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

STEM = Path(__file__).parent / "segmentation" / "transformers_mobilevit_xxs"


def transformers_model(output_stride: int) -> MobileViTForSemanticSegmentation:
    """Builds transformers' model for PASCAL VOC, which expects BGR."""
    config = transformers_config(
        "mobilevit_xxs",
        output_stride=output_stride,
        num_labels=21,
        aspp_out_channels=256,
        atrous_rates=[6, 12, 18],
    )
    return MobileViTForSemanticSegmentation(config)


@torch.inference_mode()
def main() -> None:
    for output_stride in (16, 8):
        model = transformers_model(output_stride).eval()
        shapes = set_seeded_weights(model)
        logits = {}
        for size in SEGMENTATION_SIZES:
            y = model(torch_images(size, is_bgr=True)).logits  # [2, 21, rows, columns]
            logits[size_key(*size)] = subsampled(y.permute(0, 2, 3, 1).numpy())
        write_shapes(STEM, shapes)
        write_outputs(Path(f"{STEM}_{output_stride}"), logits)


if __name__ == "__main__":
    main()
