"""The names that ml-cvnets v0.2 gives to the tensors of MobileViTv2.

ml-cvnets does not install beside current packages, so its names were read in its source
(tag `cvnets-v0.2`). Its weights are those of timm and, for DeepLabv3's head, those of
transformers, under other names.
"""

_STEM_AND_HEAD = {
    "stem.conv": "conv_1.block.conv",
    "stem.bn": "conv_1.block.norm",
    "head.fc": "classifier.1",
}
_STAGE_PARTS = {
    "conv1_1x1": "block.exp_1x1",
    "conv2_kxk": "block.conv_3x3",
    "conv3_1x1": "block.red_1x1",
    "conv_kxk": "local_rep.0",
    "conv_1x1": "local_rep.1.block.conv",
    "conv_proj": "conv_proj",
}
_TRANSFORMER_PARTS = {
    "norm1": "pre_norm_attn.0",
    "attn.qkv_proj": "pre_norm_attn.1.qkv_proj.block.conv",
    "attn.out_proj": "pre_norm_attn.1.out_proj.block.conv",
    "norm2": "pre_norm_ffn.0",
    "mlp.fc1": "pre_norm_ffn.1.block.conv",
    "mlp.fc2": "pre_norm_ffn.3.block.conv",
}
_LAYERS = {"conv": "block.conv", "bn": "block.norm"}
# timm's number of a stage, and the number of its transformer layers.
_DEPTHS = {"2": 2, "3": 4, "4": 3}
_DEEPLAB_PARTS = {
    "segmentation_head.aspp.": "seg_head.aspp.aspp_layer.",
    "segmentation_head.classifier.": "seg_head.classifier.",
    "convs.4.": "convs.4.aspp_pool.",
    "convolution": "block.conv",
    "normalization": "block.norm",
}


def _transformer_name(stage: str, module: str) -> str:
    """Renames a part of a MobileViT block's transformer, or the norm after it."""
    if module == "norm":
        return f"global_rep.{_DEPTHS[stage]}"
    _, layer, part = module.split(".", maxsplit=2)
    return f"global_rep.{layer}.{_TRANSFORMER_PARTS[part]}"


def backbone_name(timm_name: str) -> str:
    """Returns the name of a tensor of timm's classifier."""
    module, _, tensor = timm_name.rpartition(".")
    if module in _STEM_AND_HEAD:
        return f"{_STEM_AND_HEAD[module]}.{tensor}"
    _, stage, block, module = module.split(".", maxsplit=3)
    if module.startswith(("transformer", "norm")):
        name = _transformer_name(stage, module)
    else:
        part, *layers = module.split(".")
        name = ".".join([_STAGE_PARTS[part], *(_LAYERS[layer] for layer in layers)])
    return f"layer_{int(stage) + 1}.{block}.{name}.{tensor}"


def deeplab_name(transformers_name: str) -> str:
    """Returns the name of a tensor of transformers' DeepLabv3 head."""
    name = transformers_name
    for part, cvnets in _DEEPLAB_PARTS.items():
        name = name.replace(part, cvnets)
    return name
