"""The backbones and classifiers return the numbers of timm and of transformers.

The weights are random and from a seed; tests/golden has the outputs.
"""

import keras
import pytest

from keras_mobilevit import load_weights
from tests.golden import reference
from tests.helpers.references import (
    GOLDEN,
    build_backbone,
    build_classifier,
    check_backbone,
    check_classifier,
    check_logits,
    write_weights,
)

SMALLEST = ("mobilevit_xxs", "mobilevitv2_050")
# Maps of whole patches; maps that are resized, and one that is not square.
SIZES = reference.SIZES
RESIZED = ((224, 224), (288, 320))
# A file, the sizes in the everyday tests, and those that are left to the slow ones.
LOGITS = [
    ("timm_mobilevit_xxs", SIZES, ()),
    ("timm_mobilevit_xs", (), SIZES),
    ("timm_mobilevit_s", RESIZED, SIZES),
    ("transformers_mobilevit_xxs", SIZES, ()),
    ("transformers_mobilevit_xs", (), SIZES),
    ("transformers_mobilevit_s", (), SIZES),
    ("timm_mobilevitv2_050", SIZES, ()),
    ("timm_mobilevitv2_075", (), SIZES),
    ("timm_mobilevitv2_100", (), SIZES),
    ("timm_mobilevitv2_125", ((224, 224),), SIZES),
    ("timm_mobilevitv2_150", (), SIZES),
    # transformers' MobileViTv2 differs where a map has an odd side.
    ("transformers_mobilevitv2_050", ((256, 256), (192, 192)), ()),
]
# A file of feature maps, and its output stride.
FEATURES = [("timm_mobilevitv2_050_16", 16), ("timm_mobilevitv2_050_8", 8)]
WIDER_FEATURES = [("timm_mobilevitv2_100_16", 16), ("timm_mobilevitv2_100_8", 8)]


def split_name(name: str) -> tuple[str, str]:
    """Returns the name of a file of weights, and the variant."""
    library, family, variant = name.split("_")[:3]
    return f"{library}_{family}_{variant}", f"{family}_{variant}"


def slow(rows) -> list:
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]


@pytest.fixture(scope="module")
def smallest() -> dict[str, keras.Model]:
    """Models whose weights each test sets."""
    return {name: build_classifier(None, name) for name in SMALLEST}


def test_every_stored_output_is_compared():
    names = {row[0] for row in (*LOGITS, *FEATURES, *WIDER_FEATURES)}
    assert names == {path.stem for path in GOLDEN.glob("*.npz")}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, sizes) for name, sizes, _ in LOGITS if sizes),
        *slow((name, sizes) for name, _, sizes in LOGITS if sizes),
    ],
)
def test_outputs_equal_the_reference(name: str, sizes, smallest, tmp_path):
    weights, variant = split_name(name)
    model = smallest.get(variant) or build_classifier(None, variant)
    order = "bgr" if name.startswith("transformers_mobilevit_") else "rgb"
    load_weights(model, write_weights(weights, tmp_path), channel_order=order)
    check_classifier(model, name, sizes)


@pytest.mark.parametrize(("name", "output_stride"), [*FEATURES, *slow(WIDER_FEATURES)])
def test_feature_maps_equal_the_reference(name: str, output_stride: int, tmp_path):
    weights, variant = split_name(name)
    path = write_weights(weights, tmp_path)
    check_backbone(build_backbone(path, variant, output_stride), name)


# At (192, 192) the maps are of whole patches, as at (256, 256).
@pytest.mark.parametrize(
    ("variant", "size"),
    [
        ("mobilevit_xxs", (256, 256)),
        ("mobilevit_xxs", (224, 224)),
        ("mobilevit_xxs", (288, 320)),
        ("mobilevitv2_050", (288, 320)),
    ],
)
def test_static_sizes_give_the_same(variant: str, size: tuple, tmp_path):
    path = write_weights(f"timm_{variant}", tmp_path)
    model = build_classifier(path, variant, input_shape=(*size, 3))
    check_classifier(model, f"timm_{variant}", [size])


@pytest.mark.parametrize("variant", SMALLEST)
def test_sizes_known_only_at_run_time_give_the_same(variant: str, smallest, tmp_path):
    """Only a graph has unknown sizes; an eager call knows each size."""
    tf = pytest.importorskip("tensorflow")
    load_weights(smallest[variant], write_weights(f"timm_{variant}", tmp_path))
    spec = tf.TensorSpec((None, None, None, 3))
    model = tf.function(smallest[variant], input_signature=[spec])
    check_logits(model, f"timm_{variant}", RESIZED)
