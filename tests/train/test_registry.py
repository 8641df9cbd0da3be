"""The table of data sources: a new kind takes a reader and one row."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from train.config import make_config
from train.data import registry
from train.data.pipeline import train_batches
from train.data.registry import SOURCE_KINDS, SourceKind, load_source
from train.data.sampler import BatchShape
from train.data.source import Source, indexed_source


def gray_source(argument: str, cache: bool = False) -> Source:
    """A toy kind of source: as many gray images as its argument says."""
    levels = np.linspace(0, 255, int(argument), dtype=np.uint8)
    images = [np.full((8, 8, 1), level, np.uint8) for level in levels]
    columns = {
        "encoded": [tf.io.encode_png(image).numpy() for image in images],
        "label": np.int32(levels > 127),
        "id": [f"gray/{level}" for level in levels],
    }
    splits = {"train": columns, "validation": columns}
    return indexed_source(f"gray:{argument}", ["dark", "bright"], splits)


@pytest.fixture
def gray_kind(monkeypatch):
    row = SourceKind(f"{__name__}:gray_source", "COUNT", "gray images", "digits")
    monkeypatch.setitem(SOURCE_KINDS, ("classification", "gray"), row)


def test_one_row_adds_a_kind_of_source(gray_kind):
    source = load_source("classification", "gray:6")
    config = make_config(data="gray:6", crop_scale=1.0)
    batches = train_batches(source, config, [BatchShape(16, 16, 4)] * 2, epoch=0)
    first, second = batches.as_numpy_iterator()
    assert first["image"].shape == second["image"].shape == (4, 16, 16, 3)
    assert second["weight"].tolist() == [1, 1, 0, 0]
    assert sorted([*first["index"], *second["index"]]) == [-1, -1, *range(6)]
    assert source.name_of("train", 5) == "gray/255"
    np.testing.assert_array_equal(
        first["label"], first["image"].mean(axis=(1, 2, 3)) > 127
    )
    assert "`gray:COUNT` (gray images)" in registry.describe_kinds()
    with pytest.raises(ValueError, match="'grey:6'. .*`tfds:NAME` or `gray:COUNT`"):
        load_source("classification", "grey:6")


@pytest.mark.parametrize("row", SOURCE_KINDS.values(), ids=map(":".join, SOURCE_KINDS))
def test_readers_exist(row):
    module, _, function = row.reader.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_table_loads_no_library():
    """`--help` takes its texts from it."""
    code = (
        "import sys, train.data.registry as registry; registry.describe_kinds(); "
        "print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert output.stdout.strip() == "[]"


def test_the_kinds_whose_argument_is_a_path():
    kinds = {kind for _, kind in SOURCE_KINDS if registry.is_path_kind(kind)}
    assert kinds == {"folder", "voc", "coco"}
