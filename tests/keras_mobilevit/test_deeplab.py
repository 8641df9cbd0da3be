"""DeepLabv3: sizes, parity with transformers, weights and errors."""

import functools
import inspect
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_mobilevit import DeepLabV3, MobileViT_XXS, SSDLite, deeplab
from keras_mobilevit.class_names import VOC_NAMES
from keras_mobilevit.configs import MOBILEVIT
from keras_mobilevit.deeplab import ResizeLike, is_segmenter, without_auxiliary
from keras_mobilevit.drawing import add_legend, class_color, draw_classes
from keras_mobilevit.segmentation import class_map
from keras_mobilevit.weights.file_formats import load_model_file
from keras_mobilevit.weights.load import load_backbone, load_weights
from keras_mobilevit.weights.names import find_format
from tests.golden import reference
from tests.helpers.references import (
    SEGMENTER,
    assert_near,
    build_segmenter,
    check_segmenter,
    rename_tensors,
    run,
    write_weights,
)
from tests.helpers.whole_models import (
    check_backbone_is_loaded,
    check_default_is_imagenet,
    classifier,
    count_parameters,
)

V2 = "mobilevitv2_050"
# More outputs of transformers, for other random weights.
SHARED = Path(__file__).parents[3] / "shared" / "golden"


@pytest.fixture(scope="module")
def voc_xxs(tmp_path_factory) -> Path:
    return write_weights(SEGMENTER, tmp_path_factory.mktemp("weights"))


def small(**arguments):
    arguments = {"classes": 3, "weights": None, "input_shape": (64, 96, 3)} | arguments
    return DeepLabV3("mobilevit_xxs", **arguments)


@pytest.fixture(scope="module")
def segmenter() -> keras.Model:
    """A model that no test changes."""
    return small()


@functools.cache
def of_any_size(output_stride: int, **arguments) -> keras.Model:
    """Builds a model for images of any size, once; no test may change it."""
    return small(input_shape=(None, None, 3), output_stride=output_stride, **arguments)


def test_the_later_recipes_head():
    model = DeepLabV3(
        weights=None, output_stride=8, aspp_channels=512, rates=[12, 24, 36]
    )
    assert count_parameters(model) == 8_537_269
    rates = [model.get_layer(f"deeplab_aspp{i}_conv").dilation_rate for i in (1, 2, 3)]
    assert rates == [(12, 12), (24, 24), (36, 36)]


@pytest.mark.parametrize("output_stride", [16, 8])
def test_logits_equal_the_reference(output_stride: int, voc_xxs):
    check_segmenter(build_segmenter(voc_xxs, output_stride), output_stride)


@pytest.fixture(scope="module")
def v2() -> dict[int, keras.Model]:
    """Segmenters of MobileViTv2, by output stride, whose weights tests may set."""
    return {
        stride: DeepLabV3(
            V2,
            weights=None,
            input_shape=(None, None, 3),
            include_preprocessing=False,
            upsample=False,
            output_stride=stride,
        )
        for stride in (16, 8)
    }


# The first file has ml-cvnets' names and odd maps, the second transformers' names.
@pytest.mark.parametrize(
    ("name", "sizes", "output_stride"),
    [
        (f"segmentation/cvnets_{V2}", ((256, 256), (240, 200)), 16),
        (f"segmentation/cvnets_{V2}", ((256, 256), (240, 200)), 8),
        (f"segmentation/transformers_{V2}", ((320, 192),), 16),
        pytest.param(
            f"segmentation/transformers_{V2}",
            ((256, 256), (320, 192)),
            8,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_logits_of_the_second_family_equal_the_reference(
    name: str, sizes, output_stride: int, v2, tmp_path
):
    model = v2[output_stride]
    load_weights(model, write_weights(name, tmp_path), channel_order="rgb")
    check_segmenter(model, output_stride, sizes, name)


@pytest.mark.slow
def test_resized_logits_of_the_second_family_equal_the_reference(v2, tmp_path):
    """The centers of the corner pixels stay in place."""
    name = f"segmentation/cvnets_{V2}"
    load_weights(v2[16], write_weights(name, tmp_path))
    logits = ResizeLike(align_corners=True)(v2[16].output, v2[16].input)
    model = keras.Model(v2[16].input, logits)
    check_segmenter(model, 16, ((256, 256), (240, 200)), name, reference.resized_key)
    layer = DeepLabV3(V2, weights=None, input_shape=(64, 96, 3)).layers[-1]
    assert type(layer) is ResizeLike and layer.align_corners


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [16, 8])
def test_large_logits_of_the_second_family(output_stride: int, v2, tmp_path):
    name = f"segmentation/cvnets_{V2}"
    load_weights(v2[output_stride], write_weights(name, tmp_path))
    check_segmenter(v2[output_stride], output_stride, ((512, 512),), name)


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations", "block_dilations"),
    [(16, [2, 2, 1], [1, 1, 1], [1, 1, 2]), (8, [2, 1, 1], [1, 1, 2], [1, 2, 4])],
)
def test_strides_and_dilations_of_the_second_family(
    output_stride: int, strides: list, dilations: list, block_dilations: list, v2
):
    stages = [
        [
            v2[output_stride].get_layer(f"stage{stage}_{layer}_conv")
            for layer in ("mv0_depthwise", "vit_local")
        ]
        for stage in (3, 4, 5)
    ]
    assert [layer.strides[0] for layer, _ in stages] == strides
    assert [layer.dilation_rate[0] for layer, _ in stages] == dilations
    assert [layer.dilation_rate[0] for _, layer in stages] == block_dilations


def test_the_pyramid_of_the_second_family_is_512_wide(v2):
    assert v2[16].get_layer("deeplab_project_conv").filters == 512
    with pytest.raises(ValueError, match="has 21 classes, 512 channels.*=256"):
        DeepLabV3("mobilevitv2_100", weights="voc", aspp_channels=256)


@pytest.mark.slow  # test_parity.py does this with the backbone
def test_sizes_known_only_at_run_time_give_the_same(voc_xxs):
    tf = pytest.importorskip("tensorflow")
    model = build_segmenter(voc_xxs, 16)
    spec = tf.TensorSpec((None, None, None, 3))
    model = tf.function(model, input_signature=[spec])
    check_segmenter(model, 16, reference.SEGMENTATION_SIZES[1:])


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is missing")
@pytest.mark.parametrize("output_stride", [pytest.param(16, marks=pytest.mark.slow), 8])
def test_logits_equal_the_shared_reference(output_stride: int):
    stem = SHARED / f"hfseg{output_stride}_xxs"
    golden = np.load(f"{stem}.npz")
    model = build_segmenter(f"{stem}.safetensors", output_stride)
    rng = np.random.default_rng(7)
    for height, width in reference.SIZES:
        images = rng.random((2, height, width, 3), dtype=np.float32)
        wanted = golden[reference.size_key(height, width)]
        assert_near(model(images), wanted, (height, width))


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [(16, [2, 2, 1], [1, 1, 1]), (8, [2, 1, 1], [1, 1, 2])],
)
def test_strides_and_dilations(output_stride: int, strides: list, dilations: list):
    model = of_any_size(output_stride, auxiliary=True)
    layers = [
        model.get_layer(f"stage{stage}_mv0_depthwise_conv") for stage in (3, 4, 5)
    ]
    assert [layer.strides[0] for layer in layers] == strides
    assert [layer.dilation_rate[0] for layer in layers] == dilations
    dilated = [
        layer.name
        for layer in model.layers
        if getattr(layer, "dilation_rate", (1, 1)) != (1, 1)
    ]
    assert len(dilated) == 3 + (output_stride == 8)


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("size", [(64, 96), (75, 51), (33, 130)])
def test_any_size_has_logits_for_each_pixel(size: tuple, output_stride: int):
    images = np.zeros((2, *size, 3), np.float32)
    outputs = of_any_size(output_stride, auxiliary=True)(images)
    assert outputs["logits"].shape == outputs["auxiliary"].shape == (2, *size, 3)
    coarse = of_any_size(output_stride, upsample=False)(images)
    sides = tuple(-(-side // output_stride) for side in size)
    assert coarse.shape == (2, *sides, 3)


def test_logits_are_upsampled_between_the_centers_of_pixels():
    x = np.array([1, 2], np.float32).reshape(1, 1, 2, 1)
    y = run(lambda x: ResizeLike()(x, np.zeros((1, 3, 4, 5), np.float32)), x)
    assert y.shape == (1, 3, 4, 1)
    np.testing.assert_allclose(y[0, 1, :, 0], [1, 1.25, 1.75, 2])


@pytest.mark.slow
def test_static_sizes_give_the_same(voc_xxs):
    images = reference.images(120, 100)
    static, dynamic = (
        build_segmenter(voc_xxs, 8, input_shape=shape, upsample=True)
        for shape in ((120, 100, 3), (None, None, 3))
    )
    assert static.output_shape == (None, 120, 100, 21)
    assert dynamic.output_shape == (None, None, None, 21)
    np.testing.assert_allclose(run(static, images), run(dynamic, images), atol=1e-5)


def test_preprocessing_is_a_division_by_255(voc_xxs):
    images = reference.images(64, 64)
    arguments = {"input_shape": (64, 64, 3)}
    raw = build_segmenter(voc_xxs, 16, **arguments)
    rescaling = build_segmenter(voc_xxs, 16, include_preprocessing=True, **arguments)
    np.testing.assert_allclose(
        run(rescaling, 255 * images), run(raw, images), atol=1e-5
    )


def test_ml_cvnets_names_give_the_same_logits(voc_xxs, tmp_path):
    tensors = rename_tensors(
        voc_xxs, find_format("ml-cvnets detectors and segmenters", MOBILEVIT)
    )
    path = tmp_path / "cvnets.safetensors"
    assert "seg_head.aspp.aspp_layer.convs.4.aspp_pool.conv_1x1.block.conv.weight" in (
        tensors
    )
    save_file(tensors, path)
    with pytest.warns(UserWarning, match="cvnets.safetensors .* BGR was assumed"):
        model = build_segmenter(path, 16)
    check_segmenter(model, 16, [(240, 200)])


@pytest.mark.parametrize(
    "arguments", [{"classes": 3}, {"aspp_channels": 64}, {"auxiliary": True}]
)
def test_default_weights_fit_any_head(arguments: dict, tmp_path, monkeypatch):
    check_default_is_imagenet(
        deeplab,
        lambda: DeepLabV3("mobilevit_xxs", input_shape=(64, 96, 3), **arguments),
        tmp_path,
        monkeypatch,
    )


def test_default_weights_without_a_published_segmenter(tmp_path, monkeypatch):
    """Of MobileViTv2, only one width has a segmenter on the Hub."""
    requested = check_default_is_imagenet(
        deeplab,
        lambda: DeepLabV3(V2, input_shape=(64, 96, 3)),
        tmp_path,
        monkeypatch,
        V2,
    )
    with pytest.raises(ValueError, match="does not fit"):
        DeepLabV3("mobilevitv2_100", input_shape=(64, 96, 3))
    assert requested[1] == ("voc", "mobilevitv2_100")


def test_default_weights_of_voc(voc_xxs, monkeypatch):
    asked = []

    def fetched(weights, variant):
        asked.append((weights, variant))
        return voc_xxs

    monkeypatch.setattr(deeplab, "weights_file", fetched)
    model = DeepLabV3(
        "mobilevit_xxs",
        input_shape=(None, None, 3),
        include_preprocessing=False,
        upsample=False,
    )
    assert asked == [("voc", "mobilevit_xxs")]
    check_segmenter(model, 16, [(240, 200)])


def test_detectors_and_segmenters_have_their_common_arguments_by_name():
    names = list(inspect.signature(SSDLite).parameters)
    assert list(inspect.signature(DeepLabV3).parameters)[: len(names)] == names
    by_name = {"backbone": "mobilevit_xxs", "classes": 3, "weights": None}
    by_name |= {"input_shape": (64, 96, 1), "include_preprocessing": False}
    for build in (SSDLite, DeepLabV3):
        model = build(**by_name, name="mine")
        assert model.name == "mine" and model.input_shape == (None, 64, 96, 1)
        with pytest.raises(TypeError, match="positional"):
            build("mobilevit_xxs", 3)


@pytest.mark.slow
def test_a_saved_segmenter_is_the_same(tmp_path):
    arguments = {"auxiliary": True, "output_stride": 8, "input_shape": (None, None, 3)}
    model = small(**arguments)
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3))
    for ending in ("keras", "weights.h5"):
        file = tmp_path / f"segmenter.{ending}"
        (model.save if ending == "keras" else model.save_weights)(file)
        again = small(weights=str(file), **arguments)
        for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
            assert (one == other).all()
    loaded = load_model_file(tmp_path / "segmenter.keras")
    for name, wanted in model(images).items():
        np.testing.assert_array_equal(loaded(images)[name], wanted)
    assert [type(layer) for layer in loaded.layers] == list(map(type, model.layers))


def test_the_auxiliary_head_is_removed():
    model = small(auxiliary=True)
    assert model.get_layer("deeplab_auxiliary_conv").filters == 128
    lone = without_auxiliary(model)
    assert lone.output_shape == (None, 64, 96, 3)
    assert not [layer.name for layer in lone.layers if "auxiliary" in layer.name]
    assert is_segmenter(model) and is_segmenter(lone)
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3))
    np.testing.assert_array_equal(lone(images), model(images)["logits"])
    assert without_auxiliary(lone) is lone


def test_segmenters_are_recognized(segmenter):
    assert is_segmenter(segmenter)
    assert is_segmenter(small(upsample=False))
    assert not is_segmenter(MobileViT_XXS(weights=None, include_top=False))
    assert not is_segmenter(
        SSDLite("mobilevit_xxs", weights=None, input_shape=(64, 64, 3))
    )


def test_the_backbone_of_a_classifier(tmp_path):
    check_backbone_is_loaded(small(), "safetensors", tmp_path)


def test_the_backbone_of_a_segmenter(voc_xxs):
    classifier = MobileViT_XXS(weights=None, classes=10)
    load_backbone(classifier, voc_xxs)
    segmenter = build_segmenter(voc_xxs, 16)
    for name in ("stem_conv", "stage5_vit_fusion_bn"):
        for one, other in zip(
            classifier.get_layer(name).get_weights(),
            segmenter.get_layer(name).get_weights(),
            strict=True,
        ):
            assert (one == other).all(), name


# A constant added to the keys does not change MobileViT's softmax, and one added to the
# queries does not change MobileViTv2's.
@pytest.mark.parametrize(
    ("backbone", "without_effect"),
    [
        ("mobilevit_xxs", "attention_key/bias"),
        pytest.param(V2, "attention_query_conv/bias", marks=pytest.mark.slow),
    ],
)
def test_every_weight_has_a_gradient(backbone: str, without_effect: str):
    tf = pytest.importorskip("tensorflow")
    model = DeepLabV3(
        backbone,
        classes=3,
        weights=None,
        input_shape=(64, 96, 3),
        auxiliary=True,
        output_stride=8,
        aspp_channels=64,
    )
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 96, 3))
    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        loss = sum(tf.reduce_sum(tf.math.sin(x)) for x in outputs.values())
    gradients = tape.gradient(loss, model.trainable_weights)
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert gradient is not None, weight.path
        assert np.isfinite(gradient).all(), weight.path
        has_effect = not weight.path.endswith(without_effect)
        assert np.abs(gradient).max() > 0 or not has_effect, weight.path


@pytest.mark.slow
def test_a_step_compiles_with_xla():
    tf = pytest.importorskip("tensorflow")
    model = small()

    def step(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(images) ** 2)
        return tape.gradient(loss, model.trainable_weights)

    images = tf.random.uniform((1, 64, 96, 3), maxval=255.0)
    compiled, eager = tf.function(step, jit_compile=True)(images), step(images)
    for one, other in zip(compiled, eager, strict=True):
        scale = max(1.0, float(tf.reduce_max(tf.abs(other))))
        np.testing.assert_allclose(one, other, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (classifier, "in the file: deeplab_aspp0"),
        (
            lambda: small(classes=4, aspp_channels=8, auxiliary=True),
            r"not in the model: deeplab_auxiliary_bn/beta.*\n"
            r".*different shape: deeplab_aspp0_bn/beta \(model \(256,\), file \(8,\)",
        ),
        (lambda: small(auxiliary=True), "remove the head with `without_auxiliary`"),
    ],
)
def test_a_file_of_another_kind_says_what_differs(
    build, message: str, segmenter, tmp_path
):
    file = tmp_path / "other.keras"
    build().save(file)
    with pytest.raises(ValueError, match=message):
        load_weights(segmenter, file)


def test_a_segmenters_file_does_not_go_into_a_classifier(voc_xxs):
    with pytest.raises(ValueError, match="not in the model: segmentation_head"):
        MobileViT_XXS(weights=str(voc_xxs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "positive integer. Received: classes=0"),
        ({"weights": "voc"}, "has 21 classes, 256 channels.*Received: classes=3"),
        ({"weights": "voc", "classes": 21, "auxiliary": True}, "no auxiliary head"),
        ({"weights": "voc", "classes": 21, "aspp_channels": 512}, "aspp_channels=512"),
        ({"weights": "coco"}, '"imagenet" or .*"voc" .*weights=.coco'),
        ({"output_stride": 32}, "must be 8 or 16. Received: output_stride=32"),
        ({"aspp_channels": 0}, "a positive integer. Received: aspp_channels=0"),
        ({"aspp_channels": True}, "a positive integer. Received: aspp_channels=True"),
        ({"rates": 6}, "3 positive integers. Received: rates=6"),
        ({"rates": (6, 12)}, r"3 positive integers. Received: rates=\(6, 12\)"),
        ({"rates": (6, 12, 1.5)}, r"3 positive integers. Received: rates=\(6, 12, 1"),
        ({"input_shape": (31, 64, 3)}, "at least 32"),
        ({"weights": "imagenet", "input_shape": (64, 64, 1)}, "3 channels"),
    ],
)
def test_invalid_arguments(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_unknown_backbone():
    with pytest.raises(ValueError, match="Unknown model 'resnet'"):
        DeepLabV3("resnet", weights=None)


def test_names_of_pascal_voc():
    assert len(VOC_NAMES) == 21
    assert VOC_NAMES[0] == "background"
    assert VOC_NAMES[1:] == tuple(sorted(VOC_NAMES[1:]))


def test_the_classes_of_an_image_of_another_size():
    logits = np.random.default_rng(0).normal(size=(5, 7, 4)).astype(np.float32)
    found = class_map(logits, 33, 20)
    resized = keras.ops.image.resize(logits, (33, 20), interpolation="bilinear")
    wanted = keras.ops.convert_to_numpy(keras.ops.argmax(resized, axis=-1))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, wanted)


def test_the_background_is_not_colored():
    image = np.full((2, 3, 3), 100, np.uint8)
    classes = np.array([[0, 1, 2], [2, 0, 1]])
    drawn = draw_classes(image, classes, ["background", "cat", "dog"])
    assert (drawn[classes == 0] == 100).all()
    for label in (1, 2):
        mixed = np.round(0.4 * 100 + 0.6 * np.array(class_color(label)))
        assert (drawn[classes == label] == mixed).all()
    assert (draw_classes(image, classes, ["sky", "cat", "dog"])[0, 0] != 100).any()


def test_a_legend_has_the_width_of_the_image():
    image = np.zeros((60, 90, 3), np.uint8)
    few = add_legend(image, {3: "cat"})
    many = add_legend(image, {label: f"class {label}" for label in range(6)})
    assert few.shape[1] == many.shape[1] == 90
    assert 60 < few.shape[0] < many.shape[0]
    assert (few[:60] == 0).all()
    assert (few[60:] == class_color(3)).all(axis=-1).sum() > 50
    np.testing.assert_array_equal(add_legend(image, {}), image)
