"""Which layer is called what in timm, transformers and ml-cvnets.

The names are made by rule: one row for each kind of layer, repeated for the stages,
blocks and transformer layers of the backbone; each head adds its own rows.
"""

import dataclasses
from collections.abc import Iterator

from keras_mobilevit.configs import TRANSFORMER_DEPTHS

# A row is a layer's name here, then in timm, transformers and ml-cvnets. `#0`, `#1` and
# `#2` are the thirds of a projection to query, key and value in one.
_MV2_PARTS = (
    ("expand", "conv1_1x1", "expand_1x1", "exp_1x1"),
    ("depthwise", "conv2_kxk", "conv_3x3", "conv_3x3"),
    ("project", "conv3_1x1", "reduce_1x1", "red_1x1"),
)
_BLOCK_PARTS = (
    ("local", "conv_kxk", "conv_kxk", "local_rep.conv_3x3"),
    ("global_project", "conv_proj", "conv_projection", "conv_proj"),
    ("fusion", "conv_fusion", "fusion", "fusion"),
)
_LOCAL_PROJECT = (  # without batch normalization
    "local_project_conv",
    "conv_1x1",
    "conv_1x1.convolution",
    "local_rep.conv_1x1.block.conv",
)
_ATTENTION = "attention.attention"
_MHA = "pre_norm_mha"
_TRANSFORMER_PARTS = (
    ("attention_norm", "norm1", "layernorm_before", f"{_MHA}.0"),
    ("attention_query", "attn.qkv#0", f"{_ATTENTION}.query", f"{_MHA}.1.qkv_proj#0"),
    ("attention_key", "attn.qkv#1", f"{_ATTENTION}.key", f"{_MHA}.1.qkv_proj#1"),
    ("attention_value", "attn.qkv#2", f"{_ATTENTION}.value", f"{_MHA}.1.qkv_proj#2"),
    ("attention_output", "attn.proj", "attention.output.dense", f"{_MHA}.1.out_proj"),
    ("ffn_norm", "norm2", "layernorm_after", "pre_norm_ffn.0"),
    ("ffn_expand", "mlp.fc1", "intermediate.dense", "pre_norm_ffn.1"),
    ("ffn_project", "mlp.fc2", "output.dense", "pre_norm_ffn.4"),
)


def _conv_bn_rows(here: str, timm: str, transformers: str, cvnets: str) -> Iterator:
    yield (
        f"{here}_conv",
        f"{timm}.conv",
        f"{transformers}.convolution",
        f"{cvnets}.block.conv",
    )
    yield (
        f"{here}_bn",
        f"{timm}.bn",
        f"{transformers}.normalization",
        f"{cvnets}.block.norm",
    )


def _inside(block: tuple, part: tuple) -> tuple[str, str, str, str]:
    """Joins a block's names and its part's; here with `_`, there with a dot."""
    here, *there = zip(block, part)
    return ("_".join(here), *map(".".join, there))


def _mobilenet_rows(stage: int, block: int) -> Iterator:
    layer = f"layer.{block}" if stage < 3 else "downsampling_layer"
    names = (
        f"stage{stage}_mv{block}",
        f"stages.{stage - 1}.{block}",
        f"mobilevit.encoder.layer.{stage - 1}.{layer}",
        f"layer_{stage}.{block}.block",
    )
    for part in _MV2_PARTS:
        yield from _conv_bn_rows(*_inside(names, part))


def _mobilevit_rows(stage: int, depth: int) -> Iterator:
    names = (
        f"stage{stage}_vit",
        f"stages.{stage - 1}.1",
        f"mobilevit.encoder.layer.{stage - 1}",
        f"layer_{stage}.1",
    )
    for part in _BLOCK_PARTS:
        yield from _conv_bn_rows(*_inside(names, part))
    yield _inside(names, _LOCAL_PROJECT)
    for i in range(depth):
        layer = (
            f"transformer{i}",
            f"transformer.{i}",
            f"transformer.layer.{i}",
            f"global_rep.{i}",
        )
        for part in _TRANSFORMER_PARTS:
            yield _inside(_inside(names, layer), part)
    yield _inside(names, ("norm", "norm", "layernorm", f"global_rep.{depth}"))


def backbone_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yields the rows of the stem and the five stages."""
    yield from _conv_bn_rows("stem", "stem", "mobilevit.conv_stem", "conv_1")
    for stage, blocks in enumerate((1, 3, 1, 1, 1), start=1):
        for block in range(blocks):
            yield from _mobilenet_rows(stage, block)
    for stage, depth in enumerate(TRANSFORMER_DEPTHS, start=3):
        yield from _mobilevit_rows(stage, depth)


def classifier_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yields the rows of a whole classifier."""
    yield from backbone_rows()
    yield from _conv_bn_rows(
        "head", "final_conv", "mobilevit.conv_1x1_exp", "conv_1x1_exp"
    )
    yield "predictions", "head.fc", "classifier", "classifier.fc"


_SSDLITE_STRIDES = (16, 32, 64, 128, 256)


def _ssdlite_rows() -> Iterator[tuple[str, str]]:
    """Yields what an SSDLite detector has beyond its backbone, here and in ml-cvnets.

    Which maps have a projection depends on the variant; a row too much does no harm.
    """
    for index, stride in enumerate(_SSDLITE_STRIDES):
        here, head = f"ssd{stride}", f"ssd_heads.{index}"
        parts = {
            f"{here}_extra_depthwise": f"extra_layers.os_{stride}.dw_conv",
            f"{here}_extra_pointwise": f"extra_layers.os_{stride}.pw_conv",
            f"{here}_project": f"{head}.proj_layer",
            f"{here}_depthwise": f"{head}.loc_cls_layer.dw_conv",
        }
        for name, module in parts.items():
            yield f"{name}_conv", f"{module}.block.conv"
            yield f"{name}_bn", f"{module}.block.norm"
        yield f"{here}_predictions", f"{head}.loc_cls_layer.pw_conv.block.conv"
    yield "ssd_global_extra_conv", "extra_layers.os_-1.1.block.conv"
    last = len(_SSDLITE_STRIDES)
    yield "ssd_global_predictions", f"ssd_heads.{last}.loc_cls_layer.block.conv"


def _deeplab_rows() -> Iterator[tuple[str, str, str]]:
    """Yields what a DeepLabv3 has beyond its backbone: here, there, in ml-cvnets.

    "There" is transformers. Neither publishes weights of the auxiliary head.
    """
    parts = [(f"deeplab_aspp{i}", f"convs.{i}", f"convs.{i}") for i in range(4)]
    parts += [
        ("deeplab_pool", "convs.4.conv_1x1", "convs.4.aspp_pool.conv_1x1"),
        ("deeplab_project", "project", "project"),
    ]
    for here, transformers, cvnets in parts:
        there = f"segmentation_head.aspp.{transformers}"
        for row in _conv_bn_rows(here, "", there, f"seg_head.aspp.aspp_layer.{cvnets}"):
            yield row[0], row[2], row[3]
    yield (
        "deeplab_classifier",
        "segmentation_head.classifier.convolution",
        "seg_head.classifier.classifier.block.conv",
    )


def is_backbone(layer_name: str) -> bool:
    """Tells whether a layer belongs to the stem or one of the five stages."""
    return layer_name.startswith(("stem_", "stage"))


@dataclasses.dataclass(frozen=True)
class Library:
    """A library that MobileViT's weights come from, with the names of its modules.

    Attributes:
        name: of the library, and of the kind of models if others have other names.
        modules: the names of its modules by the names of the layers here.
        is_bgr: whether its weights expect images with the channels reversed.
    """

    name: str
    modules: dict[str, str]
    is_bgr: bool

    @property
    def stem(self) -> str:
        """Name of the first convolution's kernel, which tells its files."""
        return f"{self.modules['stem_conv']}.weight"


def _classifier(column: int) -> dict[str, str]:
    return {row[0]: row[column] for row in classifier_rows()}


def _transformers() -> Library:
    segmenter = {here: there for here, there, _ in _deeplab_rows()}
    return Library("transformers", _classifier(2) | segmenter, is_bgr=True)


def _cvnets_tasks() -> Library:
    modules = {row[0]: f"encoder.{row[3]}" for row in backbone_rows()}
    segmenter = {here: there for here, _, there in _deeplab_rows()}
    modules = modules | dict(_ssdlite_rows()) | segmenter
    return Library("ml-cvnets detectors and segmenters", modules, is_bgr=True)


TIMM = Library("timm", _classifier(1), is_bgr=False)
TRANSFORMERS = _transformers()
CVNETS = Library("ml-cvnets", _classifier(3), is_bgr=True)
CVNETS_TASKS = _cvnets_tasks()
LIBRARIES = (TIMM, TRANSFORMERS, CVNETS, CVNETS_TASKS)
