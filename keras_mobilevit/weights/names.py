"""The names of this library's layers in timm, transformers and ml-cvnets.

Rules generate the names. Each kind of layer has one row, which is repeated for the
stages, blocks and transformer layers of the backbone. Each head adds its own rows.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from keras_mobilevit.anchors import STRIDES
from keras_mobilevit.configs import TRANSFORMER_DEPTHS

# A row: a layer's name in this library, in timm, in transformers and in ml-cvnets.
# Libraries without such a layer have an empty name. `#0`, `#1` and `#2` are the thirds
# of a fused projection to query, key and value.
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
_LOCAL_PROJECT = (  # no batch normalization follows
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


_Row = tuple[str, str, str, str]


def _conv_bn_rows(
    name: str, timm: str, transformers: str, cvnets: str
) -> Iterator[_Row]:
    yield (
        f"{name}_conv",
        f"{timm}.conv",
        f"{transformers}.convolution",
        f"{cvnets}.block.conv",
    )
    yield (
        f"{name}_bn",
        f"{timm}.bn",
        f"{transformers}.normalization",
        f"{cvnets}.block.norm",
    )


def _join(block: _Row, part: _Row) -> _Row:
    """Appends a part's names to its block's: ours with `_`, the others with a dot."""
    ours, timm, transformers, cvnets = zip(block, part)
    return "_".join(ours), ".".join(timm), ".".join(transformers), ".".join(cvnets)


def _mobilenet_rows(stage: int, block: int) -> Iterator[_Row]:
    layer = f"layer.{block}" if stage < 3 else "downsampling_layer"
    names = (
        f"stage{stage}_mv{block}",
        f"stages.{stage - 1}.{block}",
        f"mobilevit.encoder.layer.{stage - 1}.{layer}",
        f"layer_{stage}.{block}.block",
    )
    for part in _MV2_PARTS:
        yield from _conv_bn_rows(*_join(names, part))


def _mobilevit_rows(stage: int, depth: int) -> Iterator[_Row]:
    names = (
        f"stage{stage}_vit",
        f"stages.{stage - 1}.1",
        f"mobilevit.encoder.layer.{stage - 1}",
        f"layer_{stage}.1",
    )
    for part in _BLOCK_PARTS:
        yield from _conv_bn_rows(*_join(names, part))
    yield _join(names, _LOCAL_PROJECT)
    for i in range(depth):
        layer = (
            f"transformer{i}",
            f"transformer.{i}",
            f"transformer.layer.{i}",
            f"global_rep.{i}",
        )
        for part in _TRANSFORMER_PARTS:
            yield _join(_join(names, layer), part)
    yield _join(names, ("norm", "norm", "layernorm", f"global_rep.{depth}"))


def backbone_rows() -> Iterator[_Row]:
    """Yields the rows of the stem and the five stages."""
    yield from _conv_bn_rows("stem", "stem", "mobilevit.conv_stem", "conv_1")
    for stage, blocks in enumerate((1, 3, 1, 1, 1), start=1):
        for block in range(blocks):
            yield from _mobilenet_rows(stage, block)
    for stage, depth in enumerate(TRANSFORMER_DEPTHS, start=3):
        yield from _mobilevit_rows(stage, depth)


def classifier_rows() -> Iterator[_Row]:
    """Yields the rows of a whole classifier."""
    yield from backbone_rows()
    yield from _conv_bn_rows(
        "head", "final_conv", "mobilevit.conv_1x1_exp", "conv_1x1_exp"
    )
    yield "predictions", "head.fc", "classifier", "classifier.fc"


def _ssdlite_rows() -> Iterator[_Row]:
    """Yields the rows of SSDLite's head, which only ml-cvnets has.

    The variants have projections on different feature maps. Rows of layers that a
    variant does not have are ignored.
    """
    for index, stride in enumerate(STRIDES):
        ours, head = f"ssd{stride}", f"ssd_heads.{index}"
        extra = f"extra_layers.os_{stride}"
        for name, cvnets in (
            (f"{ours}_extra_depthwise", f"{extra}.dw_conv"),
            (f"{ours}_extra_pointwise", f"{extra}.pw_conv"),
            (f"{ours}_project", f"{head}.proj_layer"),
            (f"{ours}_depthwise", f"{head}.loc_cls_layer.dw_conv"),
        ):
            yield from _conv_bn_rows(name, "", "", cvnets)
        yield f"{ours}_predictions", "", "", f"{head}.loc_cls_layer.pw_conv.block.conv"
    yield "ssd_global_extra_conv", "", "", "extra_layers.os_-1.1.block.conv"
    head = f"ssd_heads.{len(STRIDES)}"
    yield "ssd_global_predictions", "", "", f"{head}.loc_cls_layer.block.conv"


def _deeplab_rows() -> Iterator[_Row]:
    """Yields the rows of DeepLabv3's head, which timm does not have.

    Neither of the others publishes weights of the auxiliary head.
    """
    aspp = ("", "segmentation_head.aspp", "seg_head.aspp.aspp_layer")
    for name, transformers, cvnets in (
        *((f"aspp{i}", f"convs.{i}", f"convs.{i}") for i in range(4)),
        ("pool", "convs.4.conv_1x1", "convs.4.aspp_pool.conv_1x1"),
        ("project", "project", "project"),
    ):
        row = _join(("deeplab", *aspp), (name, "", transformers, cvnets))
        yield from _conv_bn_rows(*row)
    yield (
        "deeplab_classifier",
        "",
        "segmentation_head.classifier.convolution",
        "seg_head.classifier.classifier.block.conv",
    )


def is_backbone(layer_name: str) -> bool:
    """Tells whether a layer belongs to the stem or one of the five stages."""
    return layer_name.startswith(("stem_", "stage"))


@dataclasses.dataclass(frozen=True)
class CheckpointFormat:
    """The names that a library gives to MobileViT's modules in its checkpoints.

    `modules` has them by this library's layer names. `is_bgr` tells whether the
    published weights expect BGR images.
    """

    name: str
    modules: dict[str, str]
    is_bgr: bool

    @property
    def stem(self) -> str:
        """Name of the first convolution's kernel, by which files are recognized."""
        return f"{self.modules['stem_conv']}.weight"


def _column(number: int, *rows: Iterable[_Row], prefix: str = "") -> dict[str, str]:
    found = itertools.chain(*rows)
    return {row[0]: prefix + row[number] for row in found}


TIMM = CheckpointFormat("timm", _column(1, classifier_rows()), is_bgr=False)
TRANSFORMERS = CheckpointFormat(
    "transformers", _column(2, classifier_rows(), _deeplab_rows()), is_bgr=True
)
CVNETS = CheckpointFormat("ml-cvnets", _column(3, classifier_rows()), is_bgr=True)
CVNETS_TASKS = CheckpointFormat(
    "ml-cvnets detectors and segmenters",
    _column(3, backbone_rows(), prefix="encoder.")
    | _column(3, _ssdlite_rows(), _deeplab_rows()),
    is_bgr=True,
)
CHECKPOINT_FORMATS = (TIMM, TRANSFORMERS, CVNETS, CVNETS_TASKS)
