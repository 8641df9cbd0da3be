"""What the generators of PyTorch's golden files share."""

from collections.abc import Callable

import numpy as np
import torch
from transformers import MobileViTConfig, MobileViTV2Config

from tests.golden.reference import images, random_state

_VARIANTS = {
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
VARIANTS = tuple(_VARIANTS)
_V2_WIDTHS = {
    "mobilevitv2_050": 0.5,
    "mobilevitv2_075": 0.75,
    "mobilevitv2_100": 1.0,
    "mobilevitv2_125": 1.25,
    "mobilevitv2_150": 1.5,
}
V2_VARIANTS = tuple(_V2_WIDTHS)


def transformers_config(variant: str, **options) -> MobileViTConfig | MobileViTV2Config:
    """Returns transformers' configuration of a variant."""
    if variant in _V2_WIDTHS:
        return MobileViTV2Config(width_multiplier=_V2_WIDTHS[variant], **options)
    return MobileViTConfig(
        **_VARIANTS[variant],
        mlp_ratio=2.0,
        num_attention_heads=4,
        patch_size=2,
        hidden_act="silu",
        conv_kernel_size=3,
        layer_norm_eps=1e-5,
        qkv_bias=True,
        **options,
    )


def set_seeded_weights(
    model: torch.nn.Module, rename: Callable[[str], str] = str
) -> dict[str, tuple]:
    """Sets the weights of `random_state` and returns the shapes of the tensors.

    Both go by the model's names, or by those that `rename` makes from them.
    """
    tensors = {
        rename(name): tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, weights in random_state(shapes).items():
        tensors[name].copy_(torch.from_numpy(weights))
    return shapes


def torch_images(size: tuple[int, int], is_bgr: bool) -> torch.Tensor:
    """Returns the images of a size as `[2, 3, height, width]`."""
    x = torch.from_numpy(np.ascontiguousarray(images(*size).transpose(0, 3, 1, 2)))
    return x.flip(1) if is_bgr else x
