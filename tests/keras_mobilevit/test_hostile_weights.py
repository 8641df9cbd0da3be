"""Files of weights that somebody made to do harm: refused before they can."""

import json
import shutil
import threading
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_mobilevit
from keras_mobilevit.weights import file_formats, limits
from keras_mobilevit.weights.file_formats import load_model_file, read_pt
from tests.helpers.hostile_files import build_tiny, change_h5, rewrite_archive

DATASET = "layers/dense/vars/1"  # the bias


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build_tiny()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    return folder


def replace(file: h5py.File, **arguments) -> None:
    """Replaces an array by another one of the same shape."""
    arguments = {"shape": file[DATASET].shape} | arguments
    del file[DATASET]
    file.create_dataset(DATASET, **arguments)


def declare_zeros(file: h5py.File) -> None:
    """Declares 3.6 GB, which take a few bytes."""
    replace(file, shape=(900_000_000,), chunks=(1_000_000,), compression="gzip")


def declare_a_large_chunk(file: h5py.File) -> None:
    replace(file, maxshape=(None,), chunks=(100_000_000,), compression="gzip")


def damage_a_chunk(file: h5py.File) -> None:
    shape = file[DATASET].shape
    replace(file, chunks=shape, compression="gzip")
    file[DATASET].id.write_direct_chunk((0,), b"garbage")


def refer_to_another_file(file: h5py.File) -> None:
    replace(file, dtype="f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def map_another_file(file: h5py.File) -> None:
    shape = file[DATASET].shape
    del file[DATASET]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape)
    file.create_virtual_dataset(DATASET, layout)


def hold_text(file: h5py.File) -> None:
    replace(file, dtype=h5py.string_dtype())


def hold_nan(file: h5py.File) -> None:
    file[DATASET][...] = np.nan


H5_ATTACKS = {
    declare_zeros: "its arrays would take 3,600 MB, but the file has only",
    declare_a_large_chunk: "a part of .* would take 400 MB, but the file has only",
    refer_to_another_file: "are in another file, which was not read",
    map_another_file: "are in another file, which was not read",
    hold_text: "has values of the type object. Expected numbers",
    hold_nan: "has weights that are not finite, NaN or infinite: ",
}


@pytest.mark.parametrize(
    ("attack", "message"), [*H5_ATTACKS.items(), (damage_a_chunk, "is not a complete")]
)
def test_a_crafted_h5_changes_nothing(attack, message, model, files, tmp_path):
    path = tmp_path / "bad.weights.h5"
    shutil.copy(files / "model.weights.h5", path)
    with h5py.File(path, "a") as file:
        attack(file)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message) as error:
        keras_mobilevit.load_weights(model, path)
    assert str(path) in str(error.value)
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_weights_come_back_when_keras_fails_in_the_middle(
    model, files, tmp_path, monkeypatch
):
    before = model.get_weights()

    def load_one(self, path):
        self.weights[0].assign(self.weights[0] + 1)
        raise KeyError("vars")

    monkeypatch.setattr(type(model), "load_weights", load_one)
    with pytest.raises(ValueError, match="model.weights.h5 cannot be loaded"):
        keras_mobilevit.load_weights(model, files / "model.weights.h5")
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(("attack", "message"), H5_ATTACKS.items())
def test_a_crafted_h5_in_a_keras_file(attack, message, files, tmp_path):
    path = tmp_path / "bad.keras"
    rewrite_archive(
        files / "model.keras",
        path,
        {"model.weights.h5": lambda content: change_h5(content, attack)},
    )
    with pytest.raises(ValueError, match=message) as error:
        load_model_file(path)
    assert str(error.value).startswith(str(path))


def test_a_layer_of_many_units_takes_no_memory(files, tmp_path):
    def enlarge(content: bytes) -> str:
        config = json.loads(content)
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "Dense":
                layer["config"]["units"] = 10**11
        return json.dumps(config)

    path = tmp_path / "large.keras"
    rewrite_archive(files / "model.keras", path, {"config.json": enlarge})
    with pytest.raises(ValueError, match="its layers would take 1,600,000 MB"):
        load_model_file(path)


def many_layers() -> keras.Model:
    """Has layers in a Sequential that is in another one."""
    layers = [keras.layers.Activation("relu") for _ in range(50)]
    inner = keras.Sequential([keras.Input((4,)), *layers])
    return keras.Sequential([keras.Input((4,)), *[inner] * 12, *layers[:2]])


def many_calls() -> keras.Model:
    """Calls a model twice, which calls a model twice, and so on."""
    x = inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Activation("relu")(x))
    for _ in range(7):
        inputs = keras.Input((4,))
        model = keras.Model(inputs, model(model(inputs)))
    return model


@pytest.mark.parametrize("build", [many_layers, many_calls])
def test_a_model_that_takes_hours_to_build_is_not_built(build, tmp_path, monkeypatch):
    path = tmp_path / "slow.keras"
    build().save(path)
    load_model_file(path)
    monkeypatch.setattr(file_formats, "MAX_CALLS", 250)
    with pytest.raises(ValueError, match="slow.keras .* calls of layers") as error:
        load_model_file(path)
    assert "build a functional model" in str(error.value)


def test_a_sequential_of_many_layers_is_not_built(files, tmp_path):
    small = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])
    config = json.loads(small.to_json())
    layers = config["config"]["layers"]
    for index in range(398):
        layer = layers[1]["config"] | {"name": f"r{index}"}
        layers.append(layers[1] | {"config": layer})

    def repeat(content: bytes) -> str:
        return json.dumps(config)

    path = tmp_path / "many.keras"
    rewrite_archive(files / "model.keras", path, {"config.json": repeat})
    with pytest.raises(ValueError, match="takes 160,000 calls of layers. Expected at"):
        load_model_file(path)


def test_an_archive_that_unpacks_to_gigabytes_is_not_unpacked(files, tmp_path):
    path = tmp_path / "bomb.keras"
    rewrite_archive(
        files / "model.keras",
        path,
        {"model.weights.h5": lambda content: content + bytes(50_000_000)},
        zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(ValueError, match="unpacked content would take 50 MB"):
        load_model_file(path)


def test_other_archives_are_refused(files, tmp_path):
    layer = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}}
    for member, content, message in (
        ("model.weights.h5", None, "there is no model.weights.h5 in it"),
        ("config.json", json.dumps(layer), "holds a Dense, not a model"),
        ("config.json", "[" * 200_000, "its config.json .* is nested too deeply"),
    ):
        path = tmp_path / "other.keras"
        rewrite_archive(files / "model.keras", path, {member: lambda _, c=content: c})
        with pytest.raises(ValueError, match=message) as error:
            load_model_file(path)
        assert str(error.value).startswith(str(path))


def test_an_archive_of_many_parts_is_refused(files, tmp_path):
    """Python raises an error even when it is only asked whether this is an archive."""
    path = tmp_path / "parts.keras"
    content = bytearray((files / "model.keras").read_bytes())
    end = content.rindex(b"PK\x05\x06")
    content[end:end] = b"PK\x06\x07" + bytes(12) + (9).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="parts.keras is not a complete .keras file"):
        load_model_file(path)


def test_good_files_still_load_and_nothing_stays_changed(model, files):
    initialize = keras.Variable.__init__
    loaded = load_model_file(files / "model.keras")
    assert keras.Variable.__init__ is initialize
    for old, new in zip(model.get_weights(), loaded.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_loads_in_two_threads_leave_keras_as_it_was():
    initialize = keras.Variable.__init__
    inside, left, tried = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with limits.few_variables("first", 0):
            inside.set()
            left.wait(60)

    def second() -> None:
        with limits.few_variables("second", 0):
            tried.set()
            threads[0].join(60)

    threads = [threading.Thread(target=target) for target in (first, second)]
    threads[0].start()
    assert inside.wait(60)
    # Not of the file: larger than what `first` may build.
    keras.Variable("zeros", (limits.SLACK_BYTES // 4 + 1,))
    threads[1].start()
    assert not tried.wait(0.3)  # until `first` ends
    left.set()
    for thread in threads:
        thread.join(60)
    assert tried.is_set() and keras.Variable.__init__ is initialize


@pytest.fixture
def half_model() -> keras.Model:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        return build_tiny()
    finally:
        keras.config.set_dtype_policy(before)


def test_half_precision_in_h5_still_loads(half_model, tmp_path):
    model = half_model
    model.save(tmp_path / "half.keras")
    loaded = load_model_file(tmp_path / "half.keras")
    for old, new in zip(model.weights, loaded.weights):
        assert keras.ops.all(old == new)
    model.save_weights(tmp_path / "half.weights.h5")
    keras_mobilevit.load_weights(model, tmp_path / "half.weights.h5")


def test_nan_in_half_precision_changes_nothing(half_model, tmp_path):
    before = half_model.get_weights()
    half_model.weights[0].assign(half_model.weights[0] * np.nan)
    half_model.save_weights(tmp_path / "nan.weights.h5")
    half_model.set_weights(before)
    with pytest.raises(ValueError, match="nan.weights.h5 has .* not finite, NaN"):
        keras_mobilevit.load_weights(half_model, tmp_path / "nan.weights.h5")
    for old, new in zip(before, half_model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_a_larger_file_than_any_of_weights_is_not_read(tmp_path):
    path = tmp_path / "sparse.safetensors"
    with open(path, "wb") as file:
        file.truncate(limits.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="has 2,147 MB. Expected .* at most"):
        file_formats.read_safetensors(str(path))


def test_safetensors_of_nan_are_refused(tmp_path):
    path = tmp_path / "nan.safetensors"
    save_file({"a": np.zeros(3), "b": np.array([1, np.inf])}, path)
    with pytest.raises(ValueError, match="nan.safetensors has .* infinite: b. Expect"):
        file_formats.read_safetensors(str(path))


def test_a_refused_layer_comes_without_advice_to_trust_it(tmp_path):
    path = tmp_path / "lambda.keras"
    layer = keras.layers.Lambda(lambda x: x + 1)
    keras.Sequential([keras.Input((3,)), layer]).save(path)
    with pytest.raises(ValueError, match="a Lambda layer in it has Python code") as e:
        load_model_file(path)
    assert "safe_mode" not in str(e.value) and "enable_unsafe" not in str(e.value)


def _pt_states(torch) -> dict:
    return {
        "integer keys": ({1: torch.zeros(2)}, "must hold a dict of tensors by name"),
        "meta": ({"a": torch.zeros(2, device="meta")}, "on the device meta"),
        "sparse": ({"a": torch.eye(3).to_sparse()}, "the layout torch.sparse_coo"),
        "complex": ({"a": torch.zeros(3) * 1j}, "of the type torch.complex64"),
        "repeated": (
            {"a": torch.zeros(1).half().expand(16_000_000_000)},
            "repeats its values to the shape",
        ),
        "shared": (
            dict.fromkeys(map(str, range(1000)), torch.zeros(100_000)),
            "its tensors would take 400 MB",
        ),
        "nan": ({"a": torch.tensor([np.nan])}, "not finite, NaN or infinite: a"),
        "memory": ({"a": Reduced(bytearray, 300_000_000)}, "names .*bytearray, which"),
        "code": ({"a": Reduced(print, "hello")}, "names .*print, which"),
    }


class Reduced:
    """Is pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "case",
    "integer keys,meta,sparse,complex,repeated,shared,nan,memory,code".split(","),
)
def test_other_contents_of_a_pt_file(case, tmp_path):
    torch = pytest.importorskip("torch", reason="a .pt file requires PyTorch")
    state, message = _pt_states(torch)[case]
    path = tmp_path / "bad.pt"
    torch.save(state, path)
    with pytest.raises(ValueError, match=message) as error:
        read_pt(str(path))
    assert str(error.value).startswith(str(path))
    assert "set to `False`" not in str(error.value)


@pytest.mark.parametrize("is_archive", [True, False])
def test_good_pt_files_still_load(is_archive, tmp_path):
    torch = pytest.importorskip("torch", reason="a .pt file requires PyTorch")
    path = tmp_path / "good.pt"
    state = {
        "a": torch.arange(12.0).reshape(3, 4).t(),
        "b": torch.nn.Parameter(torch.ones(2).bfloat16()),
        "c": torch.tensor(3),
    }
    torch.save(state, path, _use_new_zipfile_serialization=is_archive)
    found = read_pt(str(path))
    path.write_bytes(bytes(path.stat().st_size))  # the arrays are no part of the file
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.detach().float().numpy())
