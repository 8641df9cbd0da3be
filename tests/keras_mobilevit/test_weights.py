"""Files of weights: loaded completely or not at all, saved under timm's names."""

import hashlib
import os
import pickle
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import keras_mobilevit
from keras_mobilevit.configs import MOBILEVIT
from keras_mobilevit.weights import hub
from keras_mobilevit.weights.names import find_format
from tests.golden import reference
from tests.helpers.references import (
    assert_near,
    build_classifier,
    rename_tensors,
    run,
    stored_outputs,
    write_weights,
)

pytestmark = pytest.mark.filterwarnings("error:.*tensor names of ml-cvnets")
CVNETS = find_format("ml-cvnets", MOBILEVIT)


@pytest.fixture(scope="module")
def timm_xxs(tmp_path_factory) -> Path:
    return write_weights("timm_mobilevit_xxs", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def xxs(timm_xxs) -> keras.Model:
    """A model of timm's weights, which tests may not change."""
    return build_classifier(timm_xxs)


@pytest.fixture(scope="module")
def own() -> keras.Model:
    """A random model of 7 classes, which tests may not change."""
    return build_classifier(None, classes=7)


@pytest.fixture(scope="module")
def own_files(own, tmp_path_factory) -> dict[str, Path]:
    """The model of 7 classes, in both of Keras's kinds of file."""
    folder = tmp_path_factory.mktemp("own")
    own.save(folder / "model.keras")
    own.save_weights(folder / "model.weights.h5")
    return {ending: folder / f"model{ending}" for ending in (".keras", ".weights.h5")}


def test_every_difference_is_named_and_nothing_is_loaded(timm_xxs, own, tmp_path):
    tensors = load_file(timm_xxs)
    del tensors["stem.bn.bias"]
    tensors["stages.7.weight"] = np.zeros(3, np.float32)
    tensors["head.fc.bias"] = np.zeros(9, np.float32)
    path = tmp_path / "broken.safetensors"
    save_file(tensors, path)
    before = own.get_weights()
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        keras_mobilevit.load_weights(own, str(path))
    for name in ("stem.bn.bias", "stages.7.weight", "head.fc.bias"):
        assert name in str(error.value)
    for old, new in zip(before, own.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_the_classifier_is_left_out_without_the_top(timm_xxs, xxs):
    images = reference.images(64, 96)
    pooled = keras.Model(xxs.input, xxs.get_layer("head_pool").output)
    wanted = run(pooled, images)
    assert wanted.std() > 0.1
    found = run(build_classifier(timm_xxs, include_top=False, pooling="avg"), images)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_own_files_round_trip(ending: str, own, own_files):
    images = reference.images(64, 96)
    loaded = build_classifier(own_files[ending], classes=7)
    np.testing.assert_allclose(run(loaded, images), run(own, images), atol=1e-6)


@pytest.mark.parametrize("kept", [0, 41, 1000, -1])
def test_truncated_files_are_refused(kept: int, timm_xxs, own, tmp_path):
    path = tmp_path / "truncated.safetensors"
    path.write_bytes(timm_xxs.read_bytes()[:kept])
    with pytest.raises(ValueError, match="not a complete safetensors"):
        keras_mobilevit.load_weights(own, path)


def test_a_path_without_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="path of an existing weights file"):
        build_classifier(tmp_path / "nowhere.safetensors")


def test_foreign_files_are_refused(own, tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"resnet.weight": np.zeros(1, np.float32)}, path)
    with pytest.raises(ValueError, match="no MobileViT.*resnet.weight"):
        keras_mobilevit.load_weights(own, path)


def test_a_file_with_the_top_does_not_go_into_a_model_without(own_files):
    with pytest.raises(ValueError, match="not in the model"):
        build_classifier(own_files[".weights.h5"], include_top=False, classes=7)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_own_files_that_do_not_fit_change_nothing(ending: str, xxs, own_files):
    before = xxs.get_weights()  # of 1000 classes
    with pytest.raises(ValueError, match="nothing was loaded"):
        keras_mobilevit.load_weights(xxs, str(own_files[ending]))
    for old, new in zip(before, xxs.get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_truncated_own_files_are_refused(ending: str, own, own_files, tmp_path):
    path = tmp_path / f"model{ending}"
    path.write_bytes(own_files[ending].read_bytes()[:-5000])
    with pytest.raises(ValueError, match=f"is not a complete {ending} file"):
        keras_mobilevit.load_weights(own, path)


def test_a_file_with_code_is_refused_and_does_not_run(own, tmp_path):
    inputs = keras.Input((2,))
    trap = tmp_path / "trap"
    name = str(trap)
    outputs = keras.layers.Lambda(lambda x: [x, open(name, "wb").close()][0])(inputs)
    path = tmp_path / "model.keras"
    keras.Model(inputs, outputs).save(path)
    trap.unlink()  # the layer ran when it was built
    with pytest.raises(ValueError, match="model.keras cannot be loaded.*unsafe"):
        keras_mobilevit.load_weights(own, path)
    assert not trap.exists()


def test_saved_safetensors_are_timms_again(timm_xxs, xxs, tmp_path):
    """Loading and saving keeps each tensor bit for bit."""
    path = tmp_path / "saved.safetensors"
    keras_mobilevit.save_safetensors(xxs, path)
    original, saved = load_file(timm_xxs), load_file(path)
    assert {k for k in saved if not k.endswith("num_batches_tracked")} == {
        k for k in original if not k.endswith("num_batches_tracked")
    }
    for name, tensor in original.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(saved[name], tensor, err_msg=name)
    assert [p.name for p in tmp_path.iterdir()] == ["saved.safetensors"]


def saved_by(model, path) -> dict:
    keras_mobilevit.save_safetensors(model, path)
    return load_file(path)


# MobileViTv2's projections are convolutions.
@pytest.mark.parametrize(
    ("variant", "names"),
    [
        (
            "mobilevit_xxs",
            ("predictions", "stage3_vit_transformer0_ffn_expand", "head_conv"),
        ),
        (
            "mobilevitv2_050",
            (
                "predictions",
                "stage3_vit_transformer0_attention_key_conv",
                "stage5_vit_transformer2_ffn_project_conv",
            ),
        ),
    ],
)
def test_loras_adapters_are_added_to_what_is_saved(variant: str, names, tmp_path):
    model = build_classifier(None, variant, classes=7)
    plain = saved_by(model, tmp_path / "plain.safetensors")
    for name in names:
        layer = model.get_layer(name)
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(keras.ops.ones_like(layer.lora_kernel_b))
    path = tmp_path / "lora.safetensors"
    saved = saved_by(model, path)
    assert saved.keys() == plain.keys()
    assert sum((saved[name] != plain[name]).any() for name in plain) == len(names)
    images = reference.images(64, 96)
    np.testing.assert_allclose(
        run(build_classifier(path, variant, classes=7), images),
        run(model, images),
        atol=1e-4,
    )
    with pytest.raises(ValueError, match="before `quantize` or `enable_lora`"):
        keras_mobilevit.load_weights(model, path)


def test_int8_is_saved_as_rounded_floats(tmp_path):
    model = build_classifier(None, classes=7)
    plain = saved_by(model, tmp_path / "plain.safetensors")
    for name in ("predictions", "stage3_vit_transformer0_ffn_expand"):
        model.get_layer(name).quantize("int8")
    with pytest.warns(UserWarning, match="are rounded to 8 bits"):
        rounded = saved_by(model, tmp_path / "int8.safetensors")
    assert {name: (x.dtype, x.shape) for name, x in rounded.items()} == {
        name: (x.dtype, x.shape) for name, x in plain.items()
    }
    for name, tensor in plain.items():
        step = np.abs(tensor).max() / 127
        assert np.abs(rounded[name] - tensor).max() <= 0.51 * step, name
    assert not np.array_equal(rounded["head.fc.weight"], plain["head.fc.weight"])


@pytest.mark.slow
def test_other_quantization_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    model = build_classifier(None, classes=7)
    model.get_layer("predictions").quantize("int4")
    with pytest.raises(ValueError, match="'predictions' is quantized to int4. timm"):
        keras_mobilevit.save_safetensors(model, path)
    # Another head of the same name: its own is quantized once and for all.
    head = keras.layers.Dense(7, name="predictions")
    pooled = model.get_layer("head_dropout").output
    model = keras.Model(model.input, head(pooled))
    head.quantize("int8")
    head.enable_lora(2)
    with pytest.raises(ValueError, match="int8 and has LoRA adapters"):
        keras_mobilevit.save_safetensors(model, path)
    assert not path.exists()


def test_layers_that_timm_does_not_have_are_refused(own, tmp_path):
    path, whole = tmp_path / "model.safetensors", own
    part = keras.Model(whole.input, whole.get_layer("stage4_vit_fusion_act").output)
    with pytest.raises(ValueError, match="lacks layers of timm's.*head_bn, head_conv"):
        keras_mobilevit.save_safetensors(part, path)
    x = keras.layers.Dense(3, name="my_head")(whole.get_layer("head_pool").output)
    with pytest.raises(ValueError, match="no layer like my_head"):
        keras_mobilevit.save_safetensors(keras.Model(whole.input, x), path)
    x = whole.get_layer("head_pool").output
    x = keras.layers.Dense(3, use_bias=False, name="predictions")(x)
    with pytest.raises(ValueError, match="weights kernel. timm's layer has bias, "):
        keras_mobilevit.save_safetensors(keras.Model(whole.input, x), path)
    assert not path.exists()


def test_weights_of_sixteen_bits_are_saved_in_float32(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = build_classifier(None, classes=7)
    finally:
        keras.config.set_dtype_policy(before)
    saved = saved_by(model, tmp_path / "model.safetensors")
    assert saved.pop("stem.bn.num_batches_tracked").dtype == np.int64
    kernel = model.get_layer("stem_conv").kernel
    assert keras.backend.standardize_dtype(kernel.dtype) == "bfloat16"
    wanted = keras.ops.convert_to_numpy(kernel).astype("float32")
    np.testing.assert_array_equal(
        saved["stem.conv.weight"], wanted.transpose(3, 2, 0, 1)
    )


@pytest.mark.parametrize("variant", ["mobilevit_xxs", "mobilevitv2_050"])
def test_saved_weights_load_in_timm(variant: str, tmp_path):
    torch = pytest.importorskip("torch", reason="timm needs PyTorch")
    timm = pytest.importorskip("timm")
    path, own = tmp_path / "saved.safetensors", build_classifier(None, variant)
    keras_mobilevit.save_safetensors(own, path)
    other = timm.create_model(variant).eval()
    state = {name: torch.from_numpy(value) for name, value in load_file(path).items()}
    other.load_state_dict(state, strict=True)
    images = reference.images(64, 96)
    with torch.no_grad():
        logits = other(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(logits - run(own, images)).max() <= 1e-4


def test_a_missing_fused_projection_is_named_as_in_the_file(timm_xxs, xxs, tmp_path):
    tensors = load_file(timm_xxs)
    name = "stages.2.1.transformer.0.attn.qkv.weight"
    del tensors[name]
    path = tmp_path / "broken.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"not in the file: {name}\n|: {name}$"):
        keras_mobilevit.load_weights(xxs, path)


def test_a_foreign_layer_is_named(timm_xxs):
    inputs = keras.Input((64, 64, 4))
    x = keras.layers.Conv2D(3, 1, name="to_rgb")(inputs)
    with pytest.raises(ValueError, match="not in the file: to_rgb.bias, to_rgb.weight"):
        build_classifier(timm_xxs, input_tensor=x, input_shape=None)


@pytest.fixture(scope="module")
def cvnets_xxs(tmp_path_factory) -> Path:
    """A file with ml-cvnets' names, for BGR."""
    folder = tmp_path_factory.mktemp("cvnets")
    source = write_weights("transformers_mobilevit_xxs", folder)
    save_file(rename_tensors(source, CVNETS), folder / "cvnets.safetensors")
    return folder / "cvnets.safetensors"


def assert_equals_transformers(logits) -> None:
    size = (192, 192)
    golden = stored_outputs("transformers_mobilevit_xxs")
    assert_near(logits, golden[reference.size_key(*size)], size)


def test_ml_cvnets_names_mean_bgr_with_a_warning(cvnets_xxs):
    with pytest.warns(UserWarning, match="BGR was assumed.*channel_order=.rgb"):
        model = build_classifier(cvnets_xxs)
    assert_equals_transformers(run(model, reference.images(192, 192)))


def test_ml_cvnets_weights_with_a_given_color_order(cvnets_xxs):
    images, model = reference.images(192, 192), build_classifier(None)
    keras_mobilevit.load_weights(model, cvnets_xxs, channel_order="bgr")
    assert_equals_transformers(run(model, images))
    keras_mobilevit.load_weights(model, cvnets_xxs, channel_order="rgb")
    assert_equals_transformers(run(model, images[..., ::-1]))
    keras_mobilevit.load_weights(model, cvnets_xxs, channel_order="bgr")
    keras_mobilevit.load_backbone(model, cvnets_xxs, channel_order="rgb")
    assert_equals_transformers(run(model, images[..., ::-1]))


def test_published_files_are_recognized_by_their_content(cvnets_xxs, monkeypatch):
    content = cvnets_xxs.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    monkeypatch.setattr(hub, "APPLE_BLOBS", (blob,))
    assert_equals_transformers(
        run(build_classifier(cvnets_xxs), reference.images(192, 192))
    )


def test_an_invalid_color_order(cvnets_xxs, own, own_files):
    with pytest.raises(ValueError, match='None, "rgb" or "bgr". Received: .*gbr'):
        keras_mobilevit.load_weights(own, cvnets_xxs, channel_order="gbr")
    with pytest.raises(ValueError, match="Keras files always expect RGB"):
        keras_mobilevit.load_weights(own, own_files[".keras"], channel_order="bgr")


@pytest.mark.parametrize(("channels", "order"), [(4, [2, 1, 0, 3]), (1, [0])])
def test_colors_change_places_but_not_alpha(channels: int, order, cvnets_xxs, tmp_path):
    tensors, name = load_file(cvnets_xxs), CVNETS.stem
    kernel = np.random.default_rng(0).normal(size=(16, channels, 3, 3))
    tensors[name] = kernel.astype("float32")
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    model = build_classifier(None, input_shape=(64, 64, channels))
    keras_mobilevit.load_weights(model, path, channel_order="bgr")
    found = np.asarray(model.get_layer("stem_conv").kernel)
    np.testing.assert_array_equal(found, tensors[name][:, order].transpose(2, 3, 1, 0))


SSD = Path(__file__).parents[3] / "shared" / "golden" / "ssd_xxs.safetensors"


@pytest.mark.skipif(not SSD.exists(), reason=f"{SSD} is not there")
def test_ml_cvnets_names_are_those_of_its_own_file():
    names = {name.rpartition(".")[0] for name in load_file(SSD)}
    theirs = {n.removeprefix("encoder.") for n in names if n.startswith("encoder.")}
    ours = {CVNETS.modules[name].partition("#")[0] for name in CVNETS.backbone}
    assert ours == theirs


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path):
    torch = pytest.importorskip("torch", reason="a .pt file requires PyTorch")
    trap = tmp_path / "trap"
    for name, save in (
        ("plain.pt", lambda path: path.write_bytes(pickle.dumps(Trap(trap)))),
        ("zip.pt", lambda path: torch.save({"stem": Trap(trap)}, path)),
    ):
        save(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is not a file of weights only"):
            build_classifier(tmp_path / name)
        assert not trap.exists()


def test_a_nested_checkpoint_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="a .pt file requires PyTorch")
    path = tmp_path / "nested.pt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, path)
    with pytest.raises(ValueError, match="a dict of tensors by name"):
        build_classifier(path)


def test_a_pt_file_without_pytorch(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(b"any")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="requires PyTorch: `pip install torch`"):
        keras_mobilevit.weights.file_formats.read_pt(str(path))


def test_the_error_for_another_variant_is_short(timm_xxs):
    message = "The file holds a mobilevit_xxs of 1000 classes. Build a model of this"
    with pytest.raises(ValueError, match=message) as error:
        build_classifier(timm_xxs, "mobilevit_s")
    assert len(str(error.value)) < 2500


def test_numbers_that_float32_cannot_hold_are_refused(timm_xxs, tmp_path):
    tensors = load_file(timm_xxs)
    tensors["head.fc.bias"] = np.full(1000, 1e300)
    save_file(tensors, tmp_path / "large.safetensors")
    with pytest.raises(ValueError, match="large.*not finite.*head.fc.bias"):
        build_classifier(tmp_path / "large.safetensors", "mobilevit_xxs")


def test_other_classes_are_told(timm_xxs):
    message = "xxs of 1000 classes. Build a model of as many classes, or leave out"
    with pytest.raises(ValueError, match=message):
        build_classifier(timm_xxs, "mobilevit_xxs", classes=7)


def test_what_a_file_holds_is_not_told_if_it_is_the_same(timm_xxs, tmp_path):
    tensors = load_file(timm_xxs)
    for more in ({"x": np.zeros(1)}, {"head.fc.weight": np.zeros(3)}):
        save_file(tensors | more, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match="Is the file for another variant"):
            build_classifier(tmp_path / "other.safetensors", "mobilevit_xxs")


def test_apples_files_load(cvnets_xxs, tmp_path):
    torch = pytest.importorskip("torch", reason="a .pt file requires PyTorch")
    path, tensors = tmp_path / "mobilevit_xxs.pt", load_file(cvnets_xxs)
    torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, path)
    with pytest.warns(UserWarning, match="BGR was assumed"):
        model = build_classifier(path)
    assert_equals_transformers(run(model, reference.images(192, 192)))
