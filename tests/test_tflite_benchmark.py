"""Measuring on this machine, and what cannot be measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_mobilevit import MobileViT_XXS
from tflite import conversion, report
from tflite.drivers import host
from tflite.drivers.runtimes import RUNTIMES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tflite_file(tmp_path_factory) -> Path:
    model = MobileViT_XXS(weights=None, classes=3, input_shape=(32, 32, 3))
    path = tmp_path_factory.mktemp("tflite") / "tiny.tflite"
    path.write_bytes(conversion.prepare(model, 32, True, None, None).float32)
    return path


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )


def test_one_json_line_a_file_and_a_table(tflite_file, tmp_path):
    output = tmp_path / "latency.jsonl"
    for lines in (1, 2):  # a second call adds to the file
        result = run(
            ROOT / "tflite/benchmark.py",
            tflite_file,
            "--runs=3",
            f"--output={output}",
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr
        records = [json.loads(line) for line in output.read_text().splitlines()]
        assert len(records) == lines
    record = records[-1]
    assert record["runs"] == 3 and record["xnnpack_partitions"] == 1
    assert 0 < record["p5_ms"] <= record["median_ms"] <= record["p95_ms"]
    assert 1 < record["peak_memory_mb"] < 500
    assert "median" in result.stdout and "ratio" in result.stdout
    assert "tiny.tflite litert" in result.stdout.split("\n")[-2]


@pytest.mark.parametrize("script", ["convert", "benchmark", "peers", "report"])
def test_help_from_another_folder(script, tmp_path):
    result = run(ROOT / f"tflite/{script}.py", "--help", cwd=tmp_path)
    assert "Example" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "at least one .tflite, .onnx or"),
        (("cut.pb",), "cut.pb is neither a .tflite nor a .onnx file"),
        (("nowhere.tflite",), "There is no file nowhere.tflite"),
        (("cut.tflite",), "cut.tflite is no TFLite model"),
        (("cut.tflite", "--num_threads=0"), "num_threads"),
        (("cut.tflite", "--output=/nowhere/x"), "No such file or directory"),
    ],
)
def test_errors_of_the_benchmark(arguments, message, tflite_file, tmp_path):
    for name in ("cut.tflite", "cut.pb"):
        (tmp_path / name).write_bytes(tflite_file.read_bytes()[:5000])
    result = run(ROOT / "tflite/benchmark.py", *arguments, cwd=tmp_path)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_files_take_turns(tflite_file):
    contenders = [(str(tflite_file), "litert")] * 2
    first, second = host.measure_all(contenders, runs=7, rounds=3)
    assert first.runs == second.runs == 7
    assert first.sha256 == second.sha256


def test_a_runtime_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="ONNX Runtime .*peers"):
        RUNTIMES["onnxruntime"].load("a.onnx", 1)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_peer_runs(runtime, tmp_path):
    pytest.importorskip(runtime, reason="pip install '.[peers]'")
    onnx = pytest.importorskip("onnx", reason="pip install '.[peers]'")
    path = tmp_path / "relu.onnx"
    tensors = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8])
        for name in "xy"
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", tensors[:1], tensors[1:]
    )
    versions = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=8)
    path.write_bytes(model.SerializeToString())
    (measurement,) = host.measure_all([(str(path), runtime)], runs=2)
    assert measurement.runtime == runtime and measurement.xnnpack_partitions is None


def test_more_threads_than_the_machine_has(tflite_file):
    with pytest.raises(ValueError, match=f"has {os.cpu_count()} CPU threads"):
        host.measure(tflite_file, num_threads=os.cpu_count() + 1)


def test_the_memory_is_that_of_the_child(tflite_file):
    """This process, with TensorFlow in it, has a higher peak than the child."""
    assert host.measure(tflite_file, runs=1).peak_memory_mb > 1


def test_a_report_needs_the_measurement_of_this_very_file(tflite_file, tmp_path):
    latency = tmp_path / "latency.jsonl"
    latency.write_text(json.dumps({"file": str(tflite_file), "sha256": "0"}) + "\n")
    with pytest.raises(ValueError, match="(?s)no measurement.*benchmark.py .*tiny"):
        report._latency_of(tflite_file, latency)


def test_a_report_needs_a_finished_run(tflite_file, tmp_path):
    with pytest.raises(ValueError, match="config.json is missing. Run train/main.py"):
        report.write_report(tmp_path, tflite_file)


def test_a_confusion_matrix_of_many_classes_stays_a_picture():
    names = [str(i) for i in range(1000)]
    figure = report.plot_confusion(np.eye(1000, dtype=int), names)
    assert max(figure.get_size_inches()) < 20
