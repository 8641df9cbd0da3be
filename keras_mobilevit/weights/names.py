"""The names of this library's layers in timm, transformers and ml-cvnets.

Rules generate the names. Each kind of layer has one row, which is repeated for the
stages, blocks and transformer layers of the backbone. Each head adds its own rows.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from keras_mobilevit.anchors import STRIDES
from keras_mobilevit.configs import (
    FIRST_BLOCK,
    MOBILEVIT,
    MOBILEVITV2,
    TRANSFORMER_DEPTHS,
    Family,
)

# A row: a layer's name in this library, in timm, in transformers and in ml-cvnets.
# Libraries without such a layer have an empty name. `#0`, `#1` and `#2` are the parts
# of a fused projection to query, key and value.
_Row = tuple[str, str, str, str]
_MV2_PARTS = (
    ("expand", "conv1_1x1", "expand_1x1", "exp_1x1"),
    ("depthwise", "conv2_kxk", "conv_3x3", "conv_3x3"),
    ("project", "conv3_1x1", "reduce_1x1", "red_1x1"),
)

# MobileViT ----------------------------------------------------------------------------

_BLOCK_PARTS = (  # convolutions with batch normalization
    ("local", "conv_kxk", "conv_kxk", "local_rep.conv_3x3.block"),
    ("global_project", "conv_proj", "conv_projection", "conv_proj.block"),
    ("fusion", "conv_fusion", "fusion", "fusion.block"),
)
_NORM = ("norm", "norm", "layernorm", "global_rep.{depth}")
_BLOCK_LAYERS = (  # without batch normalization
    (
        "local_project_conv",
        "conv_1x1",
        "conv_1x1.convolution",
        "local_rep.conv_1x1.block.conv",
    ),
    _NORM,
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

# MobileViTv2 --------------------------------------------------------------------------

_V2_BLOCK_PARTS = (
    ("local", "conv_kxk", "conv_kxk", "local_rep.0.block"),
    ("global_project", "conv_proj", "conv_projection", "conv_proj.block"),
)
_V2_BLOCK_LAYERS = (
    (
        "local_project_conv",
        "conv_1x1",
        "conv_1x1.convolution",
        "local_rep.1.block.conv",
    ),
    _NORM,
)


def _qkv(layer: str, part: int) -> _Row:
    return (
        f"attention_{layer}_conv",
        f"attn.qkv_proj#{part}",
        f"attention.qkv_proj.convolution#{part}",
        f"pre_norm_attn.1.qkv_proj.block.conv#{part}",
    )


_V2_TRANSFORMER_PARTS = (
    ("attention_norm", "norm1", "layernorm_before", "pre_norm_attn.0"),
    _qkv("query", 0),
    _qkv("key", 1),
    _qkv("value", 2),
    (
        "attention_output_conv",
        "attn.out_proj",
        "attention.out_proj.convolution",
        "pre_norm_attn.1.out_proj.block.conv",
    ),
    ("ffn_norm", "norm2", "layernorm_after", "pre_norm_ffn.0"),
    (
        "ffn_expand_conv",
        "mlp.fc1",
        "ffn.conv1.convolution",
        "pre_norm_ffn.1.block.conv",
    ),
    (
        "ffn_project_conv",
        "mlp.fc2",
        "ffn.conv2.convolution",
        "pre_norm_ffn.3.block.conv",
    ),
)


# Rules --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FamilyNames:
    """The names that differ between families.

    Attributes:
        family: the family.
        transformers: the prefix of all names in transformers.
        block_parts: the block's convolutions with batch normalization.
        block_layers: the block's other layers outside of the transformers. `{depth}`
            in a name stands for the number of transformers.
        transformer_parts: the layers of a transformer.
        classifier: ml-cvnets' name of the classifier.
        segmenter: ml-cvnets' name of the classifier of DeepLabv3.
        is_bgr: whether the published weights with the names of transformers and of
            ml-cvnets expect BGR images. timm's expect RGB.
        ambiguous: by library, why files with its names may expect either order.
    """

    family: Family
    transformers: str
    block_parts: tuple[_Row, ...]
    block_layers: tuple[_Row, ...]
    transformer_parts: tuple[_Row, ...]
    classifier: str
    segmenter: str
    is_bgr: bool
    ambiguous: dict[str, str]


_CVNETS, _TASKS = "ml-cvnets", "ml-cvnets detectors and segmenters"
_CVNETS_ORDERS = (
    "Apple's published MobileViT (ml-cvnets 0.1) expects BGR; ml-cvnets 0.2 and later "
    "train on RGB."
)
FAMILY_NAMES = (
    FamilyNames(
        family=MOBILEVIT,
        transformers="mobilevit",
        block_parts=_BLOCK_PARTS,
        block_layers=_BLOCK_LAYERS,
        transformer_parts=_TRANSFORMER_PARTS,
        classifier="classifier.fc",
        segmenter="seg_head.classifier.classifier.block.conv",
        is_bgr=True,
        ambiguous={_CVNETS: _CVNETS_ORDERS, _TASKS: _CVNETS_ORDERS},
    ),
    FamilyNames(
        family=MOBILEVITV2,
        transformers="mobilevitv2",
        block_parts=_V2_BLOCK_PARTS,
        block_layers=_V2_BLOCK_LAYERS,
        transformer_parts=_V2_TRANSFORMER_PARTS,
        classifier="classifier.1",
        segmenter="seg_head.classifier.block.conv",
        is_bgr=False,
        ambiguous={
            "transformers": "Apple's published MobileViTv2 expects RGB; a network that "
            "was fine-tuned with their configuration in transformers expects BGR."
        },
    ),
)


def _conv_bn_rows(
    name: str, timm: str, transformers: str, cvnets: str
) -> Iterator[_Row]:
    yield (
        f"{name}_conv",
        f"{timm}.conv",
        f"{transformers}.convolution",
        f"{cvnets}.conv",
    )
    yield (
        f"{name}_bn",
        f"{timm}.bn",
        f"{transformers}.normalization",
        f"{cvnets}.norm",
    )


def _join(block: _Row, part: _Row) -> _Row:
    """Appends a part's names to its block's: ours with `_`, the others with a dot."""
    ours, timm, transformers, cvnets = zip(block, part)
    return "_".join(ours), ".".join(timm), ".".join(transformers), ".".join(cvnets)


def _mobilenet_rows(names: FamilyNames, stage: int, block: int) -> Iterator[_Row]:
    layer = f"layer.{block}" if stage < FIRST_BLOCK else "downsampling_layer"
    module = (
        f"stage{stage}_mv{block}",
        f"stages.{stage - 1}.{block}",
        f"{names.transformers}.encoder.layer.{stage - 1}.{layer}",
        f"layer_{stage}.{block}.block",
    )
    for ours, timm, transformers, cvnets in _MV2_PARTS:
        part = ours, timm, transformers, f"{cvnets}.block"
        yield from _conv_bn_rows(*_join(module, part))


def _block_rows(names: FamilyNames, stage: int, depth: int) -> Iterator[_Row]:
    module = (
        f"stage{stage}_vit",
        f"stages.{stage - 1}.1",
        f"{names.transformers}.encoder.layer.{stage - 1}",
        f"layer_{stage}.1",
    )
    for part in names.block_parts:
        yield from _conv_bn_rows(*_join(module, part))
    for part in names.block_layers:
        ours, timm, transformers, cvnets = (x.format(depth=depth) for x in part)
        yield _join(module, (ours, timm, transformers, cvnets))
    for i in range(depth):
        layer = (
            f"transformer{i}",
            f"transformer.{i}",
            f"transformer.layer.{i}",
            f"global_rep.{i}",
        )
        for part in names.transformer_parts:
            yield _join(_join(module, layer), part)


def backbone_rows(names: FamilyNames) -> Iterator[_Row]:
    """Yields the rows of the stem and the five stages."""
    stem = f"{names.transformers}.conv_stem"
    yield from _conv_bn_rows("stem", "stem", stem, "conv_1.block")
    for stage, blocks in enumerate(names.family.mobilenet_blocks, start=1):
        for block in range(blocks):
            yield from _mobilenet_rows(names, stage, block)
    for stage, depth in enumerate(TRANSFORMER_DEPTHS, start=FIRST_BLOCK):
        yield from _block_rows(names, stage, depth)


def classifier_rows(names: FamilyNames) -> Iterator[_Row]:
    """Yields the rows of a whole classifier."""
    yield from backbone_rows(names)
    if names.family.has_head:
        head = f"{names.transformers}.conv_1x1_exp"
        yield from _conv_bn_rows("head", "final_conv", head, "conv_1x1_exp.block")
    yield "predictions", "head.fc", "classifier", names.classifier


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
            yield from _conv_bn_rows(name, "", "", f"{cvnets}.block")
        yield f"{ours}_predictions", "", "", f"{head}.loc_cls_layer.pw_conv.block.conv"
    yield "ssd_global_extra_conv", "", "", "extra_layers.os_-1.1.block.conv"
    head = f"ssd_heads.{len(STRIDES)}"
    yield "ssd_global_predictions", "", "", f"{head}.loc_cls_layer.block.conv"


def _deeplab_rows(names: FamilyNames) -> Iterator[_Row]:
    """Yields the rows of DeepLabv3's head, which timm does not have.

    The auxiliary head is not loaded from files of other libraries.
    """
    aspp = ("", "segmentation_head.aspp", "seg_head.aspp.aspp_layer")
    for name, transformers, cvnets in (
        *((f"aspp{i}", f"convs.{i}", f"convs.{i}") for i in range(4)),
        ("pool", "convs.4.conv_1x1", "convs.4.aspp_pool.conv_1x1"),
        ("project", "project", "project"),
    ):
        row = _join(("deeplab", *aspp), (name, "", transformers, f"{cvnets}.block"))
        yield from _conv_bn_rows(*row)
    yield (
        "deeplab_classifier",
        "",
        "segmentation_head.classifier.convolution",
        names.segmenter,
    )


def is_backbone(layer_name: str) -> bool:
    """Tells whether a layer belongs to the stem or one of the five stages."""
    return layer_name.startswith(("stem_", "stage"))


@dataclasses.dataclass(frozen=True)
class CheckpointFormat:
    """The names that a library gives to the modules of a family in its checkpoints.

    `modules` has them by this library's layer names. `is_bgr` tells whether the
    published weights expect BGR images, and `ambiguity` why other weights with these
    names may expect another order; it is empty if all expect the same.
    """

    name: str
    family: Family
    modules: dict[str, str]
    is_bgr: bool
    ambiguity: str

    @property
    def stem(self) -> str:
        """Name of the first convolution's kernel, by which files are recognized."""
        return f"{self.modules['stem_conv']}.weight"

    @property
    def backbone(self) -> set[str]:
        """This library's names of the layers of the backbone."""
        return set(filter(is_backbone, self.modules))

    @property
    def module_names(self) -> set[str]:
        """The library's names of all modules."""
        return {module.partition("#")[0] for module in self.modules.values()}


def _column(number: int, *rows: Iterable[_Row], prefix: str = "") -> dict[str, str]:
    found = itertools.chain(*rows)
    return {row[0]: prefix + row[number] for row in found}


def formats_of(names: FamilyNames) -> list[CheckpointFormat]:
    """Returns a family's formats: timm's, transformers', ml-cvnets', and its tasks'."""
    classifier, deeplab = list(classifier_rows(names)), list(_deeplab_rows(names))
    tasks = _column(3, backbone_rows(names), prefix="encoder.")
    rows = (
        ("timm", _column(1, classifier), False),
        ("transformers", _column(2, classifier, deeplab), names.is_bgr),
        (_CVNETS, _column(3, classifier), names.is_bgr),
        (_TASKS, tasks | _column(3, _ssdlite_rows(), deeplab), names.is_bgr),
    )
    return [
        CheckpointFormat(
            library, names.family, modules, is_bgr, names.ambiguous.get(library, "")
        )
        for library, modules, is_bgr in rows
    ]


CHECKPOINT_FORMATS = [source for names in FAMILY_NAMES for source in formats_of(names)]


def find_format(name: str, family: Family) -> CheckpointFormat:
    """Returns the format of a library, by its name in `CHECKPOINT_FORMATS`."""
    (source,) = (
        source
        for source in CHECKPOINT_FORMATS
        if (source.name, source.family) == (name, family)
    )
    return source
