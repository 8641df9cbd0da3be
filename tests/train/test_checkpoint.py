"""Checkpoints: whole, or refused with nothing changed."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from train.run import checkpoint

ROOT = Path(__file__).parents[2]


def make_groups(seed: int, units: int = 4) -> dict:
    """A model with statistics and random state, and an optimizer with moments."""
    keras.utils.clear_session()  # names count from 0, as in a new process
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(units, name="hidden"),
            keras.layers.BatchNormalization(name="normalization"),
            keras.layers.Dropout(0.5, name="dropout"),
            keras.layers.Dense(2, name="predictions"),
        ],
        name="tiny",
    )
    optimizer = keras.optimizers.AdamW(0.01 * (seed + 1), name="adamw")
    model.compile(optimizer, "mse", run_eagerly=True)  # a graph takes a second
    x = np.random.default_rng(seed).normal(size=(16, 3))
    for _ in range(2):
        model.train_on_batch(x, x[:, :2])
    return {"model": model, "optimizer": optimizer}


def values(groups: dict) -> dict:
    return {
        f"{name}/{variable.path}": variable.numpy()
        for name, owner in groups.items()
        for variable in owner.variables
    }


def assert_equal(groups: dict, expected: dict):
    got = values(groups)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.fixture
def groups():
    return make_groups(0)


@pytest.fixture
def path(groups, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save_checkpoint(path, groups, {"epoch": 3, "best": 0.1 + 0.2})
    return path


def test_a_saved_checkpoint_is_loaded_bit_for_bit(groups, path):
    other = make_groups(1)
    progress = checkpoint.load_checkpoint(path, other)
    assert progress == {"epoch": 3, "best": 0.1 + 0.2}
    assert_equal(other, values(groups))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_sets_nothing(path, part):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    other = make_groups(1)
    before = values(other)
    with pytest.raises(ValueError, match="checkpoint.safetensors is not a complete"):
        checkpoint.load_checkpoint(path, other)
    assert_equal(other, before)


def test_values_that_are_not_finite_are_named_and_set_nothing(groups, path):
    weight = groups["model"].weights[0]
    weight.assign(np.full(weight.shape, np.nan))
    checkpoint.save_checkpoint(path, groups, {"epoch": 3})
    other = make_groups(1)
    before = values(other)
    with pytest.raises(ValueError, match="not finite: model/tiny/hidden/kernel. Rest"):
        checkpoint.load_checkpoint(path, other)
    assert_equal(other, before)


def test_another_shape_is_named_and_sets_nothing(path):
    other = make_groups(1, units=5)
    before = values(other)
    with pytest.raises(ValueError, match="another model.*model/tiny/hidden/kernel"):
        checkpoint.load_checkpoint(path, other)
    assert_equal(other, before)


@pytest.mark.parametrize("missing", ["model", "optimizer"])
def test_missing_names_are_told(groups, path, missing):
    del groups[missing]
    with pytest.raises(ValueError, match=rf"another model.*types: {missing}/"):
        checkpoint.load_checkpoint(path, groups)


def test_a_large_file_of_another_model_is_not_read(path):
    size = 2**29
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"progress": "{}"}, "a": tensor}).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # sparse
    groups = make_groups(1)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="another model.*with another --workdir"):
            checkpoint.load_checkpoint(path, groups)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 10


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_weights_are_no_checkpoint(metadata, groups, path):
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ValueError, match="complete.*it has no progress of a training"):
        checkpoint.load_checkpoint(path, groups)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "bfloat16"])
def test_all_types_come_back(dtype, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    model = keras.Sequential([keras.Input((2,))])
    weight = model.add_weight(shape=(2,), initializer="ones", dtype=dtype, name="a")
    checkpoint.save_checkpoint(path, {"model": model}, {})
    weight.assign(keras.ops.zeros_like(weight))
    checkpoint.load_checkpoint(path, {"model": model})
    assert np.all(keras.ops.convert_to_numpy(weight).astype("float32") == 1)


def test_a_full_disk_is_an_os_error_and_leaves_the_earlier_file(path, monkeypatch):
    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="Cannot write .*checkpoint.*No space left"):
        checkpoint.save_checkpoint(path, make_groups(1), {"epoch": 4})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_save_that_fails_leaves_the_earlier_file(path, monkeypatch):
    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_checkpoint(path, make_groups(1), {"epoch": 4})
    assert path.read_bytes() == before


def test_a_model_that_fails_to_save_leaves_the_earlier_file(
    groups, tmp_path, monkeypatch
):
    path = tmp_path / "best.keras"
    checkpoint.save_model(groups["model"], path)
    before = path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]

    def fail(file):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(groups["model"], "save", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_model(groups["model"], path)
    assert path.read_bytes() == before


# A limit on the size of files gives the same error as a full disk, EFBIG for ENOSPC.
FULL_DISK = """
import resource, signal, sys
import keras
from train.run.checkpoint import save_model
model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300)])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    save_model(model, sys.argv[1])
except OSError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("size", [0, 100_000])
def test_a_full_disk_names_the_model(size, tmp_path):
    path = tmp_path / "best.keras"
    command = [sys.executable, "-c", FULL_DISK, str(path), str(size)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"[Errno 27] File too large: '{path}'\n"
    assert not list(tmp_path.iterdir())
