"""Writes the golden files: logits of timm's and transformers' MobileViT.

Run by hand, from the root of the repository, in an environment of its own with torch
2.13.0, timm 1.0.31, transformers 5.23.0 and a torchvision that fits that torch, which
timm imports (Keras is not needed):

    PYTHONPATH=. python tests/golden/make_golden.py

For each library and variant it writes beside itself `<library>_<variant>.json`, the
shapes of the tensors by name, and `<library>_<variant>.npz`, the logits float32
`[2, 1000]` of each size in `reference.SIZES`.
"""

import json
from pathlib import Path

import numpy as np
import timm
import torch
from transformers import MobileViTConfig, MobileViTForImageClassification

from tests.golden.reference import SIZES, images, random_state, size_key

FOLDER = Path(__file__).parent

TRANSFORMERS_CONFIGS = {
    "mobilevit_xxs": {
        "hidden_sizes": [64, 80, 96],
        "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320],
        "expand_ratio": 2.0,
    },
    "mobilevit_xs": {
        "hidden_sizes": [96, 120, 144],
        "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 384],
        "expand_ratio": 4.0,
    },
    "mobilevit_s": {
        "hidden_sizes": [144, 192, 240],
        "neck_hidden_sizes": [16, 32, 64, 96, 128, 160, 640],
        "expand_ratio": 4.0,
    },
}


def timm_model(variant: str) -> torch.nn.Module:
    """Builds timm's model, which takes RGB."""
    return timm.create_model(variant, pretrained=False)


class TransformersModel(torch.nn.Module):
    """The model of transformers, taking RGB and returning logits as timm's does."""

    def __init__(self, variant: str):
        super().__init__()
        config = MobileViTConfig(
            **TRANSFORMERS_CONFIGS[variant],
            mlp_ratio=2.0,
            num_attention_heads=4,
            patch_size=2,
            hidden_act="silu",
            conv_kernel_size=3,
            output_stride=32,
            layer_norm_eps=1e-5,
            qkv_bias=True,
            num_labels=1000,
        )
        self.model = MobileViTForImageClassification(config)

    def state_dict(self, *args, **kwargs) -> dict:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        return self.model.load_state_dict(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.flip(1)).logits  # the model takes BGR


LIBRARIES = {"timm": timm_model, "transformers": TransformersModel}


@torch.inference_mode()
def write_golden(library: str, variant: str) -> None:
    """Writes the two golden files of a variant."""
    model = LIBRARIES[library](variant).eval()
    state = model.state_dict()
    counters = {k: v for k, v in state.items() if k.endswith("num_batches_tracked")}
    shapes = {k: tuple(v.shape) for k, v in state.items() if k not in counters}
    weights = {k: torch.from_numpy(v) for k, v in random_state(shapes).items()}
    model.load_state_dict({**weights, **counters}, strict=True)

    logits = {}
    for size in SIZES:
        x = torch.from_numpy(images(*size)).permute(0, 3, 1, 2)
        logits[size_key(*size)] = model(x).numpy()
    stem = FOLDER / f"{library}_{variant}"
    rows = (f"  {json.dumps(name)}: {list(shapes[name])}" for name in sorted(shapes))
    stem.with_suffix(".json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    np.savez_compressed(stem.with_suffix(".npz"), **logits)
    extremes = ", ".join(f"{k} {abs(v).max():.3g}" for k, v in logits.items())
    print(f"{stem.name}: largest logits {extremes}")


def main() -> None:
    for library in LIBRARIES:
        for variant in TRANSFORMERS_CONFIGS:
            write_golden(library, variant)


if __name__ == "__main__":
    main()
