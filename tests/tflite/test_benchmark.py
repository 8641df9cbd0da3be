"""Measuring on this machine, and what cannot be measured."""

import asyncio
import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.commands import run_here
from tflite import benchmark, run_report
from tflite.drivers import coreml, host, targets
from tflite.drivers.host import Candidate, HostOptions
from tflite.drivers.measurement import Measurement
from tflite.drivers.runtimes import RUNTIMES
from tflite.formats.coreml import package as package_module
from tflite.formats.to_tflite import tflite_content
from tflite.report import PICTURE_STYLE
from tflite.suites import conversion as suite_conversion
from tflite.suites import suites
from tflite.validation.checksum import sha256
from train.config import make_config
from train.data.registry import load_source

ROOT = Path(__file__).parents[2]


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )


def test_one_json_line_a_file_and_a_table(tflite_file, tmp_path):
    output = tmp_path / "latency.jsonl"
    output.write_text('{"of": "an earlier call"}\n')
    result = run(
        ROOT / "tflite/benchmark.py",
        tflite_file,
        "--runs=3",
        f"--output={output}",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    earlier, record = map(json.loads, output.read_text().splitlines())
    assert earlier == {"of": "an earlier call"}
    assert record["runs"] == 3 and record["partitions"] == 1
    assert 0 < record["p5_ms"] <= record["median_ms"] <= record["p95_ms"]
    assert 1 < record["peak_memory_mb"] < 500
    assert "median" in result.stdout and "ratio" in result.stdout
    assert "tiny.tflite litert" in result.stdout.split("\n")[-2]


@pytest.mark.slow
def test_measuring_works_without_jax(tflite_file, tmp_path):
    """Keras's NumPy backend imports it; TensorFlow takes its place."""
    script = str(ROOT / "tflite/benchmark.py")
    code = f"""
import runpy, sys
sys.modules["jax"] = None
sys.argv = [{script!r}, {str(tflite_file)!r}, "--runs=1", "--output=latency.jsonl"]
runpy.run_path({script!r}, run_name="__main__")
"""
    result = run("-c", code, cwd=tmp_path)
    assert "tiny.tflite litert" in result.stdout, result.stderr
    assert len((tmp_path / "latency.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "script",
    [
        "tflite/benchmark.py",
        "tflite/report.py",
        "tflite/run_report.py",
        "benchmarks/onnx_baselines.py",
    ],
)
def test_help_comes_without_large_libraries(script, tmp_path):
    code = f"""
import runpy, sys
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path({str(ROOT / script)!r}, run_name="__main__")
except SystemExit as ended:
    large = ("keras", "tensorflow", "torch", "matplotlib", "ai_edge_litert", "adbutils")
    print("code", ended.code, "loaded", [name for name in large if name in sys.modules])
"""
    result = run("-c", code, cwd=tmp_path)
    assert "Example" in result.stdout and "\n  --" in result.stdout
    assert result.stdout.splitlines()[-1] == "code 0 loaded []", result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "Name at least one .tflite or .onnx file (or see --help)."),
        (("a.keras",), "There is no file a.keras"),
        (("cut.pb",), "--target=host takes .tflite or .onnx files. Received: cut.pb."),
        (("nowhere.tflite",), "There is no file nowhere.tflite"),
        (("cut.tflite",), "cut.tflite is not a TFLite model"),
        (("cut.tflite", "--num_threads=0"), "num_threads"),
        (("cut.tflite", "--output=/nowhere/x"), "no folder for --output=/nowhere/x"),
        (("cut.tflite", "--output=cut.tflite"), "--output must end in .jsonl"),
        (("cut.tflite", "--output=cut.jsonl"), "the same file as the input cut.tflite"),
    ],
)
def test_errors_of_the_benchmark(arguments, message, tflite_file, tmp_path):
    for name in ("cut.tflite", "cut.pb"):
        (tmp_path / name).write_bytes(tflite_file.read_bytes()[:5000])
    os.link(tmp_path / "cut.tflite", tmp_path / "cut.jsonl")
    result = run_here("tflite/benchmark.py", *arguments, folder=tmp_path)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "cut.tflite").stat().st_size == 5000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has it")
def test_a_full_disk_is_named(tflite_file, tmp_path):
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    flags = "--runs=1", "--output=full.jsonl"
    result = run_here("tflite/benchmark.py", tflite_file, *flags, folder=tmp_path)
    assert "error: [Errno 28] No space left on device: 'full.jsonl'" in result.stderr
    assert "tiny.tflite litert" in result.stdout  # what was measured


def test_files_of_one_name_have_rows_of_their_own():
    same = {"sha256": "", "runtime": "litert", "num_threads": 1, "device": "PC"}
    paths = ("a/best.tflite", "b/best.tflite", "b/other.tflite")
    measurements = [
        Measurement(file=path, median_ms=median, **same)
        for median, path in enumerate(paths, 1)
    ]
    table = benchmark.format_table(measurements, (("median", "median_ms"),))
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["a/best.tflite", "litert", "cpu", "x1", "1", "1"],
        ["b/best.tflite", "litert", "cpu", "x1", "2", "2"],
        ["other.tflite", "litert", "cpu", "x1", "3", "3"],
    ]


def test_a_cut_line_is_ended_before_the_next(tmp_path):
    path = tmp_path / "latency.jsonl"
    for before, after in (("", ""), ("a\n", "a\n"), ("a\n{", "a\n{\n")):
        path.write_text(before)
        benchmark.end_last_line(str(path))
        assert path.read_text() == after
    benchmark.end_last_line(str(tmp_path / "new.jsonl"))
    assert (tmp_path / "new.jsonl").read_text() == ""


@pytest.mark.slow
def test_files_take_turns(tflite_file, monkeypatch):
    turns = []

    class Watched(host._Worker):
        def load(self):
            turns.append((len(turns) % 2, "load"))
            super().load()
            self.index = len(turns) - 1

        def run_round(self, runs):
            turns.append((self.index, runs))
            super().run_round(runs)

    monkeypatch.setattr(host, "_Worker", Watched)
    candidates = [Candidate(str(tflite_file))] * 2
    options = HostOptions(runs=7, rounds=3)
    first, second = host.measure_all(candidates, options)
    assert turns == [(i, n) for n in ("load", 2, 3, 2) for i in (0, 1)]
    assert first.runs == second.runs == 7
    assert first.sha256 == second.sha256


def cut(path: Path, folder: Path) -> Path:
    """Returns a file of which the end is missing."""
    (folder / "cut.tflite").write_bytes(path.read_bytes()[:5000])
    return folder / "cut.tflite"


@pytest.mark.slow
def test_one_file_that_fails_leaves_the_results_of_the_others(tflite_file, tmp_path):
    output = tmp_path / "latency.jsonl"
    result = run(
        ROOT / "tflite/benchmark.py",
        *(cut(tflite_file, tmp_path), tflite_file, "--runs=2", f"--output={output}"),
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert "tiny.tflite litert" in result.stdout
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 2 not measured. ")
    assert "cut.tflite is not a TFLite model" in last
    records = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [r["status"] for r in records] == ["not measured", "measured"]


@pytest.mark.slow
def test_a_process_that_dies_leaves_the_results_of_the_others(tflite_file, monkeypatch):
    class Dies(host._Worker):
        def run_round(self, runs):
            if self.candidate is first:
                self.process.kill()
                self.process.join()
            super().run_round(runs)

    path, options = str(tflite_file), HostOptions(runs=2)
    unknown, last = Candidate(path, "none"), Candidate(path)
    missing, measured = host.measure_all([unknown, last], options)
    assert "KeyError: 'none'" in missing.reason and measured.runs == 2
    monkeypatch.setattr(host, "_Worker", Dies)
    first = Candidate(path)
    killed, measured = host.measure_all([first, last], options)
    assert "ended with exit code -9" in killed.reason and killed.median_ms is None
    assert measured.runs == 2


def test_a_suite_is_measured_without_what_could_not_be_converted(tmp_path, monkeypatch):
    there = suites.files_of("paper", tmp_path)[1:]
    for file in there:
        file.write_bytes(b"")
    failed = SimpleNamespace(returncode=1)
    monkeypatch.setattr(suites.subprocess, "run", lambda *args, **options: failed)
    paths = suites.prepare("paper", tmp_path)
    assert paths == [str(file) for file in there]
    assert "not measured: mobilenet_v2_224_fp32.tflite." in suites.missing(
        "paper", paths
    )
    for file in there:
        file.unlink()
    with pytest.raises(RuntimeError, match="suite paper failed"):
        suites.prepare("paper", tmp_path)


def test_one_model_that_fails_leaves_the_rest_of_a_suite(tmp_path, monkeypatch):
    converted = []

    def convert_entry(entry, formats, folder):
        if entry.model == "deit_tiny":
            raise ValueError("deit")
        converted.append(entry.model)
        return ["a.tflite was not written"] if entry.model == "pit_tiny" else []

    monkeypatch.setattr(suite_conversion, "convert_entry", convert_entry)
    with pytest.raises(SystemExit) as ended:
        suite_conversion.main("paper", tmp_path)
    assert ended.value.code.splitlines() == [
        "error: DeiT-Tiny cannot be converted: deit",
        "error: a.tflite was not written",
    ]
    assert len(converted) == len(suites.PAPER.entries) - 1


def test_a_missing_runtime_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="ONNX Runtime is not installed: .*peers"):
        RUNTIMES["onnxruntime"].load("a.onnx", 1)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_onnx_file_runs(runtime, tmp_path):
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
    (measurement,) = host.measure_all(
        [Candidate(str(path), runtime)], HostOptions(runs=2)
    )
    assert measurement.runtime == runtime and measurement.partitions is None


def test_more_threads_than_the_machine_has(tflite_file):
    with pytest.raises(ValueError, match=f"has {os.cpu_count()} CPU threads"):
        options = HostOptions(num_threads=os.cpu_count() + 1)
        list(host.measure_all([Candidate(str(tflite_file))], options))


@pytest.mark.slow
def test_the_memory_is_that_of_the_network(tflite_file, tmp_path):
    """Not the peak of this process, with which some measures of a child begin."""
    weights = np.ones((8 * 8 * 3, 65_536), np.float32)  # 50 MB

    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 3], tf.float32, "images")])
    def serve(images):
        return {"y": tf.reshape(images, (1, -1)) @ weights}

    large = tmp_path / "large.tflite"
    large.write_bytes(tflite_content(serve))
    candidates = [Candidate(str(tflite_file)), Candidate(str(large))]
    found = host.measure_all(candidates, HostOptions(runs=1))
    peaks = [measurement.peak_memory_mb for measurement in found]
    assert peaks[0] + 45 < peaks[1] < peaks[0] + 250


def test_a_report_needs_the_measurement_of_this_very_file(tflite_file, tmp_path):
    latency = tmp_path / "latency.jsonl"
    ours = {
        "target": "host",
        "runtime": "litert",
        "status": "measured",
        "sha256": sha256(tflite_file),
        "file": str(tflite_file),
        "setting": "litert cpu x1",
        "device": "a CPU",
        "partitions": 1,
        "num_threads": 1,
    } | {f"{name}_ms": 1.5 for name in run_report.TIMES}
    others = [
        {name: value for name, value in ours.items() if name != "median_ms"},
        ours | {"sha256": "0"},
        ours | {"target": "browser", "runtime": "litert.js"},
        ours | {"target": "android", "runtime": "benchmark_model"},
        ours | {"status": "not measured"},
    ]
    latency.write_text("".join(json.dumps(record) + "\n" for record in others))
    with pytest.raises(ValueError, match="(?s)no measurement.*benchmark.py .*tiny"):
        run_report._find_latency(tflite_file, latency)
    with open(latency, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in [ours, others[1]]))
    assert run_report._find_latency(tflite_file, latency) == ours


def test_a_report_hides_no_number_that_is_not_finite():
    source = load_source("classification", "digits")
    inputs = keras.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(pooled))
    model.layers[-1].kernel.assign(np.full((3, 10), np.nan))
    litert = SimpleNamespace(
        input_shape=(1, 32, 32, 3),
        outputs={"logits": {}},
        predict=lambda images: {"logits": np.zeros((len(images), 10))},
    )
    with pytest.raises(
        ValueError, match="infinite values for a validation image of digits"
    ):
        run_report.predict(model, litert, source, make_config("digits", data="digits"))


@pytest.mark.parametrize(
    ("classes", "shapes", "message"),
    [
        (10, [(1, 3)], "other.tflite has 3 classes, but .* 10. Convert .*best.keras"),
        (3, [(1, 10)], "best.keras has 3 classes, but .* 10. Give the --workdir"),
        (10, [(1, 9, 4), (1, 9)], "other.tflite has 2 outputs. Expected the classif"),
    ],
)
def test_a_report_needs_models_of_the_same_classes(classes, shapes, message):
    litert = SimpleNamespace(
        path=Path("other.tflite"),
        outputs={str(n): {"shape": np.array(x)} for n, x in enumerate(shapes)},
    )
    model = SimpleNamespace(output_shape=(None, classes))
    source = load_source("classification", "digits")
    with pytest.raises(ValueError, match=message):
        run_report._check_classes(Path("best.keras"), model, litert, source)


def test_a_report_needs_a_finished_run(tflite_file, tmp_path):
    with pytest.raises(ValueError, match="config.json is missing. Run train/main.py"):
        run_report.write_report(tmp_path, tflite_file)


def test_a_dollar_in_a_class_name_is_no_formula():
    """Matplotlib would draw $x^$ as a formula, and refuse this one."""
    names = ["$x^$", "a_$", r"$\$"]
    predictions = run_report.Predictions(
        images=np.zeros((3, 8, 8, 3), np.uint8),
        sample_indices=[0, 1, 2],
        labels=np.array([0, 1, 2]),
        keras=np.array([0, 1, 2]),
        tflite=np.array([1, 1, 0]),
        max_abs=0.0,
    )
    matrix = np.eye(3, dtype=int)
    with matplotlib.rc_context(PICTURE_STYLE):
        confusion = run_report.plot_confusion(matrix, names)
        samples = run_report.plot_samples(predictions, names)
        for figure in (confusion, samples):
            assert run_report._picture(figure, "names").startswith("<img")
    (axes,) = confusion.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    titles = [axes.get_title() for axes in samples.axes[:3]]
    assert titles == [f"{names[1]}\n(is {names[0]})", names[1], "$x^$\n(is $\\$)"]


def test_a_confusion_matrix_of_many_classes_stays_a_picture():
    names = [str(i) for i in range(1000)]
    figure = run_report.plot_confusion(np.eye(1000, dtype=int), names)
    assert max(figure.get_size_inches()) < 20


def test_a_confusion_matrix_shows_counts():
    matrix = np.array([[1234, 0], [3, 1]])
    (axes,) = run_report.plot_confusion(matrix, ["cat", "dog"]).axes
    assert [text.get_text() for text in axes.texts] == ["1234", "", "3", "1"]
    shares = axes.images[0].get_array()  # the colors
    np.testing.assert_allclose(shares, [[100, 0], [75, 25]])


# Core ML exists on macOS only. `FakeBenchmarker` stands in for that of coremltools.


@dataclasses.dataclass
class FakeBenchmarker:
    planned: list  # (operation, class of its device)

    async def benchmark_load(self, iterations: int = 1):
        return SimpleNamespace(samples=[120.0])

    async def benchmark_predict(
        self, inputs=None, iterations: int = 1, warmup: bool = False
    ):
        times = [9.0] if not warmup else [float(i) for i in range(1, iterations + 1)]
        return SimpleNamespace(samples=times)

    async def benchmark_operation_execution(
        self, inputs=None, iterations: int = 1, warmup: bool = False
    ):
        return [
            SimpleNamespace(
                spec=SimpleNamespace(type=kind, outputs=[SimpleNamespace(name="y")]),
                compute_device_usage=device
                and SimpleNamespace(preferred_compute_device=type(device, (), {})()),
            )
            for kind, device in self.planned
        ]


PLANNED = [
    ("const", None),
    ("conv", "MLNeuralEngineComputeDevice"),
    ("conv", "MLNeuralEngineComputeDevice"),
    ("layer_norm", "MLCPUComputeDevice"),
]


def package_folder(folder: Path) -> Path:
    package = folder / "a.mlpackage"
    package.mkdir()
    (package / "Manifest.json").write_text("{}")
    return package


@pytest.mark.parametrize("unit", coreml.COMPUTE_UNITS)
def test_what_falls_off_the_neural_engine_is_named(unit, tmp_path):
    measurement = asyncio.run(
        coreml.measure_with(
            FakeBenchmarker(PLANNED), str(package_folder(tmp_path)), unit, "a Mac", 100
        )
    )
    assert measurement.status == "measured" and measurement.runs == 100
    assert (measurement.init_ms, measurement.first_ms) == (120.0, 9.0)
    assert measurement.median_ms == 50.5
    assert measurement.operations == {"Neural Engine": 2, "CPU": 1}
    expected = ["layer_norm y: CPU"] if unit == "cpu+ane" else []
    assert measurement.off_engine == expected
    table = benchmark.format_table([measurement], targets.TARGETS["coreml"].columns)
    assert f"a.mlpackage coreml {unit}" in table and "50.5" in table


def test_the_fake_has_the_methods_of_the_real_benchmarker():
    perf_utils = pytest.importorskip(
        "coremltools.models.ml_program.experimental.perf_utils",
        reason="pip install '.[coreml]'",
    )
    for name in vars(FakeBenchmarker):
        if name.startswith("benchmark"):
            real = inspect.signature(getattr(perf_utils.MLModelBenchmarker, name))
            fake = inspect.signature(getattr(FakeBenchmarker, name))
            assert list(real.parameters) == list(fake.parameters)
    ct = pytest.importorskip("coremltools")
    for unit in coreml.COMPUTE_UNITS.values():
        assert hasattr(ct.ComputeUnit, unit)
    from coremltools.models import compute_device
    from coremltools.models.ml_program.experimental.remote_device import DeviceType

    assert all(hasattr(compute_device, name) for name in coreml.UNIT_NAMES)
    assert all(DeviceType(kind).value == kind for kind in coreml.DEVICES)


def test_a_package_that_core_ml_refuses_leaves_the_results_of_the_others(
    tmp_path, monkeypatch
):
    package = str(package_folder(tmp_path))

    def benchmarker(path, unit, device):
        if unit == "cpu+gpu":
            raise RuntimeError("no such unit")
        return FakeBenchmarker(PLANNED)

    monkeypatch.setattr(coreml, "_benchmarker", benchmarker)
    monkeypatch.setattr(package_module, "load_coremltools", lambda: None)
    monkeypatch.setattr(coreml, "is_available", lambda: True)
    found = list(coreml.measure([package], coreml.CoreMLOptions()))
    assert [m.status for m in found] == ["measured", "not measured", "measured"]
    assert found[1].reason == "no such unit" and found[1].accelerator == "cpu+gpu"
    assert "1 of 3 not measured. no such unit" in benchmark._failure(found, False)
    assert benchmark._failure(found, True) is None


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is here")
def test_where_there_is_no_core_ml_nothing_is_measured(tmp_path):
    package, output = package_folder(tmp_path), tmp_path / "latency.jsonl"
    result = run_here(
        "tflite/benchmark.py",
        "--target=coreml",
        package,
        f"--output={output}",
        folder=tmp_path,
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: not measured. Core ML runs on macOS only.")
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["accelerator"] for r in records] == list(coreml.COMPUTE_UNITS)
    for record in records:
        assert record["status"] == "not measured" and record["median_ms"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.mlpackage",), "Use --target=coreml for it."),
        (
            ("--target=coreml", "a.tflite"),
            "takes .mlpackage files. Received: a.tflite.",
        ),
        (("--target=coreml", "--compute_units=npu", "a.mlpackage"), "some of: cpu,"),
    ],
)
def test_errors_of_core_ml(arguments, message, tmp_path):
    package_folder(tmp_path)
    (tmp_path / "a.tflite").write_text("")
    result = run_here("tflite/benchmark.py", *arguments, folder=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
def test_this_mac_is_measured(tmp_path):
    from tests.helpers.coreml import core_ml, save

    path = save(core_ml("float16"), tmp_path)
    options = coreml.CoreMLOptions(compute_units=("cpu",), runs=3)
    (measurement,) = coreml.measure([str(path)], options)
    assert measurement.median_ms > 0 and measurement.init_ms > 0
