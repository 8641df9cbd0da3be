"""Loads files with the names of each library, and tells the families apart."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_mobilevit import load_backbone, load_weights, save_safetensors
from keras_mobilevit.configs import FAMILIES, MOBILEVIT, MOBILEVITV2
from keras_mobilevit.weights import hub
from keras_mobilevit.weights.names import CHECKPOINT_FORMATS, find_format, is_backbone
from tests.golden.cvnets_names import backbone_name
from tests.helpers.references import (
    build_classifier,
    build_segmenter,
    read_shapes,
    rename_tensors,
    write_weights,
)

V2 = "mobilevitv2_050"
TASKS = "ml-cvnets detectors and segmenters"
# Files of the smallest MobileViTv2 with the names of each library.
V2_FILES = {
    "timm": f"timm_{V2}",
    "transformers": f"transformers_{V2}",
    "ml-cvnets": f"cvnets_{V2}",
    TASKS: f"detection/cvnets_{V2}",
}
LIBRARIES = sorted(V2_FILES)


@pytest.fixture(scope="module")
def v1() -> keras.Model:
    """A random model that tests may not change."""
    return build_classifier(None)


@pytest.fixture(scope="module")
def v2() -> keras.Model:
    """A random model whose backbone tests may set."""
    return build_classifier(None, V2)


@pytest.fixture(scope="module")
def v2_file(tmp_path_factory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("v2")
    return lambda library: write_weights(V2_FILES[library], folder)


@pytest.fixture(scope="module")
def v1_file(tmp_path_factory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("v1")

    def write(library: str) -> Path:
        if library in ("timm", "transformers"):
            return write_weights(f"{library}_mobilevit_xxs", folder)
        path = write_weights("transformers_mobilevit_xxs", folder)
        renamed = rename_tensors(path, find_format(library, MOBILEVIT))
        save_file(renamed, folder / "renamed.safetensors")
        return folder / "renamed.safetensors"

    return write


def with_tensors(path: Path, folder: Path, **changes) -> Path:
    """Copies a file with other tensors; those that are `None` are left out."""
    tensors = {
        name: tensor
        for name, tensor in (load_file(path) | changes).items()
        if tensor is not None
    }
    save_file(tensors, folder / "changed.safetensors")
    return folder / "changed.safetensors"


def backbone_weights(model: keras.Model) -> dict[str, np.ndarray]:
    return {
        variable.path: keras.ops.convert_to_numpy(variable)
        for layer in model.layers
        if is_backbone(layer.name)
        for variable in layer.weights
    }


def stem_of(model: keras.Model) -> np.ndarray:
    return keras.ops.convert_to_numpy(model.get_layer("stem_conv").kernel)


def test_every_format_has_a_file():
    formats = [(source.family, source.name) for source in CHECKPOINT_FORMATS]
    assert sorted(name for _, name in formats) == sorted(LIBRARIES * len(FAMILIES))
    for library, name in V2_FILES.items():
        source = find_format(library, MOBILEVITV2)
        theirs = {tensor.rpartition(".")[0] for tensor in read_shapes(name)}
        ours = {module.partition("#")[0] for module in source.modules.values()}
        if library in ("timm", "ml-cvnets"):
            assert ours == theirs
        else:  # the names of heads of other models are also there
            assert theirs <= ours


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_backbone_of_the_second_family_loads_as_rgb(library: str, v2, v2_file):
    path = v2_file(library)
    if library == "transformers":
        with pytest.warns(UserWarning, match="RGB was assumed.*channel_order=.bgr"):
            load_backbone(v2, path)
    else:
        load_backbone(v2, path)  # a warning would be an error
    kernel = load_file(path)[find_format(library, MOBILEVITV2).stem]
    np.testing.assert_array_equal(stem_of(v2), kernel.transpose(2, 3, 1, 0))


def test_apples_files_of_transformers_load_without_a_warning(v2, v2_file, monkeypatch):
    path = v2_file("transformers")
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(hub, "APPLE_SHA256", (content,))
    load_backbone(v2, path)


def test_ml_cvnets_names_give_the_same_weights(v2, v2_file, tmp_path):
    """Its names are those of timm's tensors, by rules that were read in its source."""
    path = tmp_path / "cvnets.safetensors"
    timm = v2_file("timm")
    renamed = {backbone_name(name): x for name, x in load_file(timm).items()}
    assert {name: x.shape for name, x in renamed.items()} == read_shapes(f"cvnets_{V2}")
    save_file(renamed, path)
    load_weights(v2, timm)
    wanted = v2.get_weights()
    load_weights(v2, v2_file("transformers"), channel_order="rgb")
    load_weights(v2, path)
    for found, expected in zip(v2.get_weights(), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("library", ["timm", "ml-cvnets"])
def test_the_colors_of_the_second_family_may_be_given(library: str, v2, v2_file):
    path = v2_file(library)
    load_weights(v2, path, channel_order="bgr")
    reversed_stem = stem_of(v2)
    load_weights(v2, path, channel_order="rgb")
    np.testing.assert_array_equal(stem_of(v2)[:, :, ::-1], reversed_stem)


@pytest.mark.parametrize("library", LIBRARIES)
def test_names_are_strict_in_both_directions(library: str, v2, v2_file, tmp_path):
    path, source = v2_file(library), find_format(library, MOBILEVITV2)
    query = source.modules["stage4_vit_transformer3_attention_key_conv"]
    missing = f"{query.partition('#')[0]}.bias"
    prefix = source.stem.partition("conv")[0]  # of the backbone
    broken = with_tensors(
        path, tmp_path, **{missing: None, f"{prefix}other.weight": np.zeros(3)}
    )
    before = v2.get_weights()
    load = load_backbone if library == TASKS else load_weights
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        load(v2, broken)
    assert f"not in the file: {missing}\n" in str(error.value)
    assert re.search(rf"not in the model: .*{prefix}other", str(error.value))
    for found, expected in zip(v2.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_other_familys_file_is_refused(v1, v2, v1_file, v2_file):
    for library in LIBRARIES:
        for model, path, holds, expects in (
            (v1, v2_file(library), MOBILEVITV2.title, MOBILEVIT.title),
            (v2, v1_file(library), MOBILEVIT.title, MOBILEVITV2.title),
        ):
            before = stem_of(model)
            message = f"holds a {holds}, but the model is a {expects}. Nothing was"
            for load in (load_weights, load_backbone):
                with pytest.raises(ValueError, match=message):
                    load(model, path)
            np.testing.assert_array_equal(stem_of(model), before)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_family_is_recognized_without_any_one_tensor(
    library: str, v2, v2_file, tmp_path
):
    """The message names the tensor, and not another family."""
    path, source = v2_file(library), find_format(library, MOBILEVITV2)
    first = source.modules["stage3_vit_transformer0_attention_query_conv"]
    missing = f"{first.partition('#')[0]}.weight"
    broken = with_tensors(path, tmp_path, **{missing: None})
    with pytest.raises(ValueError, match=f"not in the file: {re.escape(missing)}"):
        load_backbone(v2, broken)


def test_another_width_is_refused(v2, tmp_path):
    path = write_weights("timm_mobilevitv2_075", tmp_path)
    with pytest.raises(ValueError, match="a mobilevitv2_075 of 1000 cl") as error:
        load_weights(v2, path)
    assert r"different shape: head.fc.weight (model (1000, 256), file (1000, 384))" in (
        str(error.value)
    )
    assert len(str(error.value)) < 2500


def test_the_published_auxiliary_head_is_ignored(tmp_path):
    """Apple's segmenters hold one, which is not that of `DeepLabV3`."""
    path = write_weights(f"segmentation/cvnets_{V2}", tmp_path)
    heads = {
        "seg_head.aux_head.0.block.conv.weight": np.zeros((128, 192, 3, 3), np.float32),
        "seg_head.aux_head.2.block.conv.bias": np.zeros(21, np.float32),
    }
    model = build_segmenter(path, 16, V2)
    wanted = model.get_weights()
    model.get_layer("deeplab_classifier").bias.assign(np.ones(21))
    load_weights(model, with_tensors(path, tmp_path, **heads))
    for found, expected in zip(model.get_weights(), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)
    other = with_tensors(path, tmp_path, **{"seg_head.other.weight": np.zeros(1)})
    with pytest.raises(ValueError, match="not in the model: seg_head.other.weight"):
        load_weights(model, other)


def test_a_saved_file_is_timms_again(v2, v2_file, tmp_path):
    """Loading and saving keeps each tensor bit for bit."""
    load_weights(v2, v2_file("timm"))
    save_safetensors(v2, tmp_path / "saved.safetensors")
    saved = load_file(tmp_path / "saved.safetensors")
    for name, tensor in load_file(v2_file("timm")).items():
        np.testing.assert_array_equal(saved[name], tensor, err_msg=name)
