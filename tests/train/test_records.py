"""Records and checkpoints that were damaged: named, and the rest is kept."""

import dataclasses
import json
import logging
import os
import sys

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from train.run import checkpoint
from train.run.progress import Progress
from train.run.records import RecordWriter, plot_curves, read_epochs, read_records


def record(epoch: int, **changes) -> dict:
    values = {"train_loss": 1.0, "loss": 2.0, "top1": 0.5, "learning_rate": 0.1}
    return {"epoch": epoch, **values, **changes}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(file, *lines) -> None:
    texts = (x if isinstance(x, str) else json.dumps(x) for x in lines)
    file.write_text("\n".join(texts) + "\n", "utf-8")


@pytest.mark.parametrize(
    "line",
    ["{bad", "[" * 100_000, "9" * 5000, "5", "[1]", "null", '{"epoch": 2', "\x00"],
)
def test_a_damaged_line_does_not_drop_the_later_ones(line, file, caplog):
    write(file, record(1), line, record(3))
    with caplog.at_level(logging.WARNING, "absl"):
        assert [x["epoch"] for x in read_records(file)] == [1, 3]
    assert f"skipped line 2 of {file}" in caplog.text


def test_a_line_that_is_not_text_only_loses_itself(file, caplog):
    lines = [json.dumps(record(epoch)).encode() for epoch in (1, 2, 3)]
    lines[1] = lines[1].replace(b"top1", b"top\xff")
    file.write_bytes(b"\n".join(lines) + b"\n")
    with caplog.at_level(logging.WARNING, "absl"):
        writer = RecordWriter(file.parent, 3, "top1")
    assert [x["epoch"] for x in writer.records] == [1, 3]
    assert f"skipped line 2 of {file}: it is not in UTF-8" in caplog.text
    file.write_bytes(b"\xff\xfe\x00")
    assert read_records(file) == []


def test_a_record_with_deep_lists_is_left_out(file, caplog):
    """Python's parser of JSON goes deeper than its writer may."""
    depth = sys.getrecursionlimit() * 6 // 10
    deep = "[" * depth + "]" * depth
    write(file, record(1), f'{json.dumps(record(2))[:-1]}, "x": {deep}}}')
    with caplog.at_level(logging.WARNING, "absl"):
        assert [x["epoch"] for x in read_epochs(file, "top1")] == [1]
    assert f"skipped line 2 of {file}: it has no number for 'x'." in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": "a"},
        {"epoch": None},
        {"epoch": True},
        {"epoch": 10**400},
        {"loss": "x"},
        {"train_loss": [1]},
        {"top1": {}},
        {"learning_rate": None},
    ],
)
def test_a_record_of_something_else_is_left_out(changes, file, caplog):
    write(file, record(1), record(2) | changes, {"epoch": 2}, record(3))
    with caplog.at_level(logging.WARNING, "absl"):
        records = read_epochs(file, "top1")
    assert [x["epoch"] for x in records] == [1, 3]
    assert f"skipped line 2 of {file}: it has no number for " in caplog.text
    assert f"for {next(iter(changes))}. Is it" in caplog.text
    plot_curves(records, "top1")


def test_a_run_goes_on_with_the_records_that_are_left(file):
    write(file, record(1), "{bad", record(2), record(3))
    damaged = file.read_text("utf-8")
    writer = RecordWriter(file.parent, 2, "top1")
    writer.write(record(3, top1=0.75))
    assert [x["top1"] for x in read_records(file)] == [0.5, 0.5, 0.75]
    copy = file.with_name("metrics.damaged.jsonl")
    assert copy.read_text("utf-8") == damaged
    RecordWriter(file.parent, 2, "top1")  # nothing is damaged now
    write(file, record(1), "{worse")
    for _ in range(2):  # it does not write a record, so it finds the same again
        RecordWriter(file.parent, 2, "top1")
    assert copy.read_text("utf-8") == damaged
    second = file.with_name("metrics.damaged_2.jsonl")
    assert second.read_text("utf-8") == file.read_text("utf-8")
    assert sorted(file.parent.glob("metrics.*")) == sorted([copy, second, file])


def make_model() -> keras.Model:
    keras.utils.clear_session()
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a")])


PROGRESS = dataclasses.asdict(Progress(epoch=1, step=2, best=0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": -1}, "its epoch is -1"),
        ({"step": 1.5}, "its step is 1.5"),
        ({"step": 2**70}, "its step is "),
        ({"epoch_step": None}, "its epoch_step is None"),
        ({"epoch": True}, "its epoch is True"),
        ({"best": "high"}, "its best is high"),
        ({"best": float("nan")}, "its best is nan"),
        ({"loss": 10**400}, "its loss is 1000"),
        ({"seconds": -1.0}, "its seconds is -1.0"),
        ({"batches": 1}, "another version of train/, which saved batches"),
    ],
)
def test_progress_that_cannot_be_is_refused(changes, message, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    groups = {"model": make_model()}
    checkpoint.save_checkpoint(path, groups, PROGRESS | changes)
    with pytest.raises(ValueError, match=f"checkpoint.safetensors .*{message}"):
        Progress.of_checkpoint(checkpoint.load_checkpoint(path, groups), path)


def test_old_progress_has_fewer_fields(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    assert Progress.of_checkpoint({"epoch": 3, "best": -1}, path).epoch == 3


@pytest.mark.parametrize("progress", ["[1]", "5", "{", "[" * 100_000, "null"])
def test_a_checkpoint_whose_progress_is_none_is_refused(progress, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    groups = {"model": make_model()}
    checkpoint.save_checkpoint(path, groups, PROGRESS)
    save_file(load_file(path), path, metadata={"progress": progress})
    with pytest.raises(ValueError, match="safetensors is not a complete checkpoint"):
        checkpoint.load_checkpoint(path, groups)


def test_a_checkpoint_of_another_type_sets_nothing(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    groups = {"model": make_model()}
    checkpoint.save_checkpoint(path, groups, PROGRESS)
    before = [x.numpy() for x in groups["model"].variables]
    tensors = {name: value.astype(np.int64) for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"progress": json.dumps(PROGRESS)})
    with pytest.raises(ValueError, match="names, shapes or types: model/"):
        checkpoint.load_checkpoint(path, groups)
    for variable, value in zip(groups["model"].variables, before):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes")
def test_a_checkpoint_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="checkpoint.safetensors is a named pipe"):
        checkpoint.load_checkpoint(tmp_path / "checkpoint.safetensors", {})
