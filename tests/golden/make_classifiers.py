"""Writes the golden files of classifiers: logits of timm and transformers.

Run from the root of the repository, in an environment with torch 2.13.0, timm 1.0.31,
transformers 5.23.0 and the torchvision for this torch, which timm imports. Keras is not
needed:

    PYTHONPATH=. python tests/golden/make_classifiers.py

For each library and variant the script writes two files beside itself:
`<library>_<variant>.json` has the shapes of the tensors by name, and
`<library>_<variant>.npz` has the logits, float32 `[2, 1000]` for each of
`reference.SIZES`.
"""

from pathlib import Path

import timm
import torch
from transformers import MobileViTForImageClassification

from tests.golden.reference import SIZES, size_key, write_outputs, write_shapes
from tests.golden.torch_models import (
    VARIANTS,
    set_seeded_weights,
    torch_images,
    transformers_config,
)

FOLDER = Path(__file__).parent


def timm_model(variant: str) -> torch.nn.Module:
    """Builds timm's model, which expects RGB."""
    return timm.create_model(variant, pretrained=False)


def transformers_model(variant: str) -> torch.nn.Module:
    """Builds transformers' model, which expects BGR."""
    config = transformers_config(variant, output_stride=32, num_labels=1000)
    return MobileViTForImageClassification(config)


@torch.inference_mode()
def main() -> None:
    for variant in VARIANTS:
        for library, build in (
            ("timm", timm_model),
            ("transformers", transformers_model),
        ):
            model = build(variant).eval()
            shapes = set_seeded_weights(model)
            logits = {}
            for size in SIZES:
                y = model(torch_images(size, is_bgr=library == "transformers"))
                y = y.logits if library == "transformers" else y
                logits[size_key(*size)] = y.numpy()
            stem = FOLDER / f"{library}_{variant}"
            write_shapes(stem, shapes)
            write_outputs(stem, logits)


if __name__ == "__main__":
    main()
