"""Damaged `.tflite` files and cards: one line instead of a crash."""

import json
import sys
import zipfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_mobilevit import tflite_structure
from keras_mobilevit.__main__ import main
from keras_mobilevit.litert import LiteRTModel, read_card
from keras_mobilevit.tflite_structure import check_structure
from tests.helpers.hostile_files import build_tiny
from tests.helpers.image_files import pil_file
from tflite import benchmark
from tflite.drivers import host
from tflite.formats import conversion


def write_shared(entries: int, name: int) -> bytes:
    """Writes a list of one graph, which is a list of one tensor, many times."""
    import flatbuffers

    builder = flatbuffers.Builder()

    def repeated(table: int, times: int) -> int:
        builder.StartVector(4, times, 4)
        for _ in range(times):
            builder.PrependUOffsetTRelative(table)
        return builder.EndVector()

    text = builder.CreateString("x" * name)
    schema.TensorStart(builder)
    schema.TensorAddName(builder, text)
    tensors = repeated(schema.TensorEnd(builder), entries)
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graphs = repeated(schema.SubGraphEnd(builder), entries)
    schema.BufferStart(builder)
    buffers = repeated(schema.BufferEnd(builder), 1)
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, graphs)
    schema.ModelAddBuffers(builder, buffers)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture(scope="module")
def content() -> bytes:
    return conversion.prepare(build_tiny(), 8).float32


@pytest.fixture
def file(content, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(content)
    return path


def change_model(content: bytes, change) -> bytes:
    import flatbuffers

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    change(model)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def enlarge(model) -> None:
    model.subgraphs[0].tensors[-2].shape = [1, 2**31 - 1]


def point_outside(model) -> None:
    model.subgraphs[0].operators[0].inputs = [1000, 1, 2]


def remove_graphs(model) -> None:
    model.subgraphs = []


def remove_tensors(model) -> None:
    graph = model.subgraphs[0]
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [], [], []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (enlarge, "a tensor would take 8,590 MB. Expected at most 537 MB"),
        (point_outside, "is not a TFLite model, or is damaged. Copy or convert"),
        (remove_graphs, "is not a TFLite model, or is damaged. Copy or convert"),
        (remove_tensors, "is not a TFLite model, or is damaged. Copy or convert"),
    ],
)
def test_a_damaged_model_is_refused_before_litert_reads_it(
    change, message, content, file
):
    check_structure(file)
    file.write_bytes(change_model(content, change))
    with pytest.raises(ValueError, match=message) as error:
        LiteRTModel(file)
    assert str(error.value).startswith(str(file))


@pytest.mark.parametrize(("entries", "name"), [(500, 1), (100, 10**6)])
def test_one_part_that_is_listed_many_times_ends_soon(entries, name, file, monkeypatch):
    monkeypatch.setattr(tflite_structure, "MAX_LISTED_BYTES", 10**7)
    file.write_bytes(write_shared(3, 1))
    check_structure(file)
    file.write_bytes(write_shared(entries, name))
    with pytest.raises(ValueError, match=f"{file} lists more than 10 MB of tensors"):
        check_structure(file)


def test_a_tensor_of_many_sides_is_refused(content, file):
    def add_sides(model) -> None:
        model.subgraphs[0].tensors[0].shape = [2**31 - 1] * 10**5

    file.write_bytes(change_model(content, add_sides))
    with pytest.raises(ValueError, match="is not a TFLite model, or is damaged"):
        check_structure(file)


def test_a_damaged_model_is_not_measured(content, file):
    file.write_bytes(change_model(content, point_outside))
    (found,) = host.measure_all([host.Candidate(str(file))])
    assert found.reason.startswith(f"{file} is not a TFLite model, or is damaged")


def test_a_card_that_fills_the_memory_is_not_read(file):
    with open(file.with_suffix(".json"), "wb") as opened:
        opened.truncate(30 * 10**9)  # sparse
    with pytest.raises(ValueError, match="a.json has 30,000,000,000 bytes. Expected"):
        read_card(file)


@pytest.mark.parametrize("read", [check_structure, LiteRTModel, read_card])
def test_a_file_that_fills_the_memory_is_not_read(read, file):
    with open(file, "r+b") as opened:
        opened.truncate(30 * 10**9)  # sparse
    with pytest.raises(ValueError, match="a.tflite has 30,000,000,000 bytes. Expect"):
        read(file)


@pytest.mark.parametrize("kept", [0, 6, 100, -100])
def test_a_cut_model_is_refused(kept, content, file):
    file.write_bytes(content[:kept])
    with pytest.raises(ValueError, match="a.tflite is not a TFLite model"):
        LiteRTModel(file)


def test_an_image_of_another_shape_names_the_file(file):
    with pytest.raises(ValueError, match="a.tflite cannot be run on an image of"):
        LiteRTModel(file).invoke(np.zeros((1, 2, 2, 3), np.float32))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"input": [1]}, "largest_value"),
        ({"input": {"largest_value": "x"}}, "largest_value"),
        ({"labels": "cat"}, "a list of names"),
        ({"labels": [1]}, "a list of names"),
        ({"classes": "3"}, "a whole number from 1 to 131072"),
        ({"crop": 0}, "above 0, at most 1"),
        ({"crop": 10**400}, "above 0, at most 1"),
        ({"parity": []}, "an object"),
        ({"parity": {"size": {}}}, "an object"),
        ({"accuracy": {"top1": "x"}}, "an object"),
        ({"nms": {"iou_threshold": []}}, "an object of numbers"),
    ],
)
def test_a_card_of_other_values_is_refused(card, expected, file):
    file.with_suffix(".json").write_text(json.dumps(card))
    (key,) = card
    with pytest.raises(ValueError, match=f"card of {file} has '{key}'.*{expected}"):
        read_card(file)


def test_class_names_that_unpack_to_much_are_not_unpacked(content, file):
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", bytes(20_000_000))
    with pytest.raises(ValueError, match="metadata of 20 MB inside. Expected at most"):
        read_card(file)


@pytest.mark.parametrize(
    "kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_class_names_are_named(kind, content, file):
    file.write_bytes(content)
    with zipfile.ZipFile(file, "a", kind) as archive:
        archive.writestr("keras_mobilevit.json", json.dumps({"crop": 0.875}) * 9)
        (member,) = archive.infolist()
    changed = bytearray(file.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    changed[start + 6 : start + member.compress_size] = b"\xff" * (
        member.compress_size - 6
    )
    file.write_bytes(changed)
    with pytest.raises(ValueError, match=f"{file} is damaged at its end, where its"):
        read_card(file)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[1]", marks=pytest.mark.slow),
        pytest.param("{", marks=pytest.mark.slow),
        pytest.param('{"parity": []}', marks=pytest.mark.slow),
        "[" * 100_000,
    ],
)
def test_json_of_something_else_loses_no_measurement(text, file, tmp_path, caplog):
    file.with_suffix(".json").write_text(text)
    output, found = tmp_path / "latency.jsonl", []
    options = benchmark.targets.TARGETS["host"].options(runs=2, warmup_runs=1)
    benchmark.measure([str(file)], "host", options, str(output), found)
    (record,) = map(json.loads, output.read_text().splitlines())
    assert record["status"] == "measured" and record["model"] == "a"
    assert "The records do not describe the model" in caplog.text


def test_predict_refuses_numbers_that_are_not_finite(file, tmp_path, monkeypatch):
    def hold_nan(model) -> None:
        for buffer in model.buffers:
            if buffer.data is not None and len(buffer.data) == 48:  # the last kernel
                buffer.data = np.frombuffer(np.full(12, np.nan, "f4").tobytes(), "u1")

    file.write_bytes(change_model(file.read_bytes(), hold_nan))
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(pil_file("RGB", (90, 90, 90), "JPEG"))
    arguments = ["keras_mobilevit", "predict", str(photo), f"--weights={file}"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=f"{file} returns NaN or infinite values for"):
        main()
