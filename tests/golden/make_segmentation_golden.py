"""Writes the golden files of segmentation: logits of transformers' DeepLabv3.

Run by hand, from the root of the repository, in an environment of its own with torch
2.13.0 and transformers 5.23.0 (Keras is not needed):

    PYTHONPATH=. python tests/golden/make_segmentation_golden.py

It writes the folder segmentation beside itself: `transformers_mobilevit_xxs.json`, the
shapes of the tensors by name, which no output stride changes, and for each output
stride `transformers_mobilevit_xxs_<stride>.npz`, the logits float32
`[2, rows, columns, 21]` of each size in `SEGMENTATION_SIZES`, thinned out.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

from tests.golden.reference import (
    SEGMENTATION_SIZES,
    images,
    random_state,
    size_key,
    thinned,
)

STEM = Path(__file__).parent / "segmentation" / "transformers_mobilevit_xxs"


def build(output_stride: int) -> MobileViTForSemanticSegmentation:
    """Builds the model of PASCAL VOC, which takes BGR."""
    config = MobileViTConfig(
        hidden_sizes=[64, 80, 96],
        neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320],
        expand_ratio=2.0,
        mlp_ratio=2.0,
        num_attention_heads=4,
        patch_size=2,
        hidden_act="silu",
        conv_kernel_size=3,
        output_stride=output_stride,
        layer_norm_eps=1e-5,
        qkv_bias=True,
        num_labels=21,
        aspp_out_channels=256,
        atrous_rates=[6, 12, 18],
    )
    return MobileViTForSemanticSegmentation(config).eval()


@torch.inference_mode()
def write_golden(output_stride: int) -> None:
    """Writes the files of an output stride."""
    model = build(output_stride)
    state = model.state_dict()
    counters = {k: v for k, v in state.items() if k.endswith("num_batches_tracked")}
    shapes = {k: tuple(v.shape) for k, v in state.items() if k not in counters}
    weights = {k: torch.from_numpy(v) for k, v in random_state(shapes).items()}
    model.load_state_dict({**weights, **counters}, strict=True)

    logits = {}
    for size in SEGMENTATION_SIZES:
        x = torch.from_numpy(images(*size)).permute(0, 3, 1, 2).flip(1)
        y = model(x).logits.permute(0, 2, 3, 1).numpy()
        logits[size_key(*size)] = thinned(y)
    rows = (f"  {json.dumps(name)}: {list(shapes[name])}" for name in sorted(shapes))
    STEM.with_suffix(".json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    np.savez_compressed(f"{STEM}_{output_stride}.npz", **logits)
    extremes = ", ".join(f"{k} {abs(v).max():.3g}" for k, v in logits.items())
    print(f"{STEM.name} {output_stride}: largest logits {extremes}")


def main() -> None:
    STEM.parent.mkdir(exist_ok=True)
    for output_stride in (16, 8):
        write_golden(output_stride)


if __name__ == "__main__":
    main()
