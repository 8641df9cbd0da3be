"""Measuring the training step and the input pipelines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import input_pipeline as benchmark_input
from benchmarks import tables
from benchmarks import training as benchmark
from benchmarks.workers import (
    Candidate,
    Worker,
    available_cores,
    measure_in_turns,
    started,
)
from tests.fakes import benchmark_candidate
from tests.helpers.image_files import make_folder, pil_file

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks/training.py", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def candidate(pace: float = 1.0) -> Candidate:
    settings = {"pace": pace, "threads": 1}
    return Candidate(benchmark_candidate.start, settings, {"DEVICE": "a toaster"})


def step_record(runtime: str, speed: float, size: int = 64, **others) -> dict:
    return {
        "what": "step",
        "model": "mobilevit_xxs",
        "size": size,
        "batch": 4,
        "runtime": runtime,
        "precision": "float32",
        "xla": False,
        "threads": 2,
        "accelerator": "cpu",
        "device": "a toaster",
        "images_per_second": speed,
    } | others


def cells(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


def test_workers_take_turns():
    with started({"slow": candidate(2.0), "fast": candidate(0.5)}) as workers:
        assert workers[0].info == {"device": "a toaster"}
        seconds = measure_in_turns(workers, {"steps": 2}, rounds=2)
        assert seconds == {"slow": [2.0] * 4, "fast": [0.5] * 4}
        with pytest.raises(ValueError, match="fast: no steps"):
            workers[1].ask({"steps": 0})
    assert "DEVICE" not in os.environ


def test_the_last_lines_of_a_crashed_worker_are_shown():
    worker = Worker("fake", candidate())
    with pytest.raises(RuntimeError, match="fake ended with exit code 1") as error:
        worker.ask({"steps": -1})
    assert "output of a library" in str(error.value)
    assert "KeyError: 'a crash'" in str(error.value).splitlines()[-1]
    worker.close()


def test_a_worker_that_cannot_start_is_reported():
    lost = Candidate(benchmark_candidate.refuse, {"threads": 1})
    with pytest.raises(ValueError, match="lost: No module named"):
        with started({"lost": lost}):
            pass


def test_runtimes_are_those_that_are_installed(monkeypatch):
    installed = {"tensorflow", "timm"}
    monkeypatch.setattr(benchmark, "is_installed", installed.__contains__)
    assert benchmark.choose_runtimes(None) == ["tensorflow", "timm"]
    assert benchmark.choose_runtimes(["timm", "timm"]) == ["timm"]
    installed.remove("timm")
    assert benchmark.choose_runtimes(None) == ["tensorflow"]
    with pytest.raises(ValueError, match="timm is not installed: pip .*peers"):
        benchmark.choose_runtimes(["timm"])
    with pytest.raises(ValueError, match="'torch'.* tensorflow, jax, timm"):
        benchmark.choose_runtimes(["torch"])
    with pytest.raises(ValueError, match="Received none"):
        benchmark.choose_runtimes([])


def test_models_sizes_and_threads_are_checked():
    assert benchmark.choose_models(["mobilevit_xs"]) == ["mobilevit_xs"]
    with pytest.raises(ValueError, match="at least one variant"):
        benchmark.choose_models([])
    assert benchmark.parse_sizes(["128", "32"]) == [128, 32]
    with pytest.raises(ValueError, match="such as 128,160,192"):
        benchmark.parse_sizes(["128", "big"])
    with pytest.raises(ValueError, match="at least 32. Received: 128,31"):
        benchmark.parse_sizes(["128", "31"])
    assert benchmark.choose_threads(None, default=1) == 1
    cores = len(available_cores())
    with pytest.raises(ValueError, match=f"may use {cores} cores.*={cores + 1}"):
        benchmark.choose_threads(cores + 1, default=1)


def test_a_record_has_median_and_quartiles():
    subject = {"model": "mobilevit_xxs", "batch": 6}
    seconds = [5.0, 1.0, 2.0, 4.0, 3.0]
    record = benchmark.make_record(subject, seconds, {"device": "a toaster"})
    assert record["median_seconds"] == 3 and record["images_per_second"] == 2
    assert record["lower_quartile_seconds"] == 2
    assert record["upper_quartile_seconds"] == 4
    assert record["samples"] == 5 and record["device"] == "a toaster"
    json.dumps(record, allow_nan=False)


def test_table_of_steps():
    records = [
        step_record("tensorflow", 30.0),
        step_record("timm", 20.0),
        step_record("tensorflow", 10.0, size=96),
    ]
    assert cells(tables.format_steps(records)) == [
        ["model", "size", "batch", "tensorflow", "timm", "tensorflow/timm"],
        ["mobilevit_xxs", "64", "4", "30", "20", "1.5"],
        ["mobilevit_xxs", "96", "4", "10", "-", "-"],
    ]
    alone = cells(tables.format_steps(records[:1]))
    assert alone[0] == ["model", "size", "batch", "tensorflow"]


def test_table_of_pipelines():
    speeds = {"ours": 300.0, "bare": 400.0, "torchvision": 1200.0}
    records = [
        {"pipeline": name, "images_per_second": speed, "threads": 2}
        for name, speed in speeds.items()
    ]
    table = cells(tables.format_input(records))
    assert table[0] == ["pipeline", "images/s", "per", "core", "/bare", "/torchvision"]
    assert table[1] == ["ours", "300", "150", "0.75", "0.25"]
    assert table[3] == ["torchvision", "1200", "600", "3", "1"]
    assert cells(tables.format_input(records[:2]))[0][-1] == "/bare"


def test_notes_say_where_it_was_measured():
    on_cpu, on_gpu = step_record("timm", 1.0), step_record("jax", 9.0)
    on_gpu |= {"accelerator": "gpu", "device": "a furnace"}
    assert tables.notes([on_cpu]) == [
        "a toaster, CPU threads: 2",
        "Measured on the CPU. A GPU was not measured.",
    ]
    assert len(tables.notes([on_gpu])) == 1
    assert "ratios say nothing" in tables.notes([on_cpu, on_gpu])[1]


def test_only_jpegs_are_listed(tmp_path):
    jpeg = pil_file("RGB", "red", "JPEG")
    png = pil_file("RGB", "red", "PNG")
    others = {"b.jpg": png, "c.png": png, "d.txt": b""}
    make_folder(tmp_path, {"cat": {"a.jpg": jpeg, **others}, "dog": {"e.JPEG": jpeg}})
    folder = tmp_path / "train"
    paths, labels, left = benchmark_input.list_jpegs(folder, at_most=100)
    assert paths == [str(folder / "cat/a.jpg"), str(folder / "dog/e.JPEG")]
    assert labels == [0, 1]
    assert [Path(path).name for path in left] == list(others)
    paths, labels, _ = benchmark_input.list_jpegs(folder, at_most=2)
    assert labels == [0, 1]  # from all over the folder
    with pytest.raises(ValueError, match="is not a folder. Expected .*/<class>/"):
        benchmark_input.list_jpegs(tmp_path / "nowhere", at_most=2)
    (folder / "cat/a.jpg").write_bytes(png)
    (folder / "dog/e.JPEG").unlink()
    with pytest.raises(ValueError, match="No JPEG files among the 4 checked"):
        benchmark_input.list_jpegs(folder, at_most=100)


def test_an_order_uses_files_equally_often():
    order = benchmark_input.random_order(num_files=3, count=8, seed=0)
    assert len(order) == 8 and sorted(order[:3]) == sorted(order[3:6]) == [0, 1, 2]
    again = benchmark_input.random_order(num_files=3, count=8, seed=1)
    assert order.tolist() != again.tolist()


@pytest.mark.parametrize("batch, threads, ahead", [(2, 1, 64), (32, 1, 4), (64, 4, 10)])
def test_more_pass_than_a_pipeline_holds(batch, threads, ahead):
    assert benchmark_input.batches_ahead(batch, threads) == ahead
    images = benchmark_input.images_of_turn(5, batch, threads)
    assert images == (5 + 2 * ahead) * batch


@pytest.mark.slow
def test_help_and_errors(tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "Examples" in result.stdout and "Traceback" not in result.stderr
    for flag, message in (
        ("--runtimes=torch", "Unknown runtime 'torch'"),
        ("--what=input", "--data=folder:PATH. Received: none."),
        ("--model=nonsense", "mobilevit_xxs, mobilevit_xs, mobilevit_s"),
        ("--output=/nowhere/x", "There is no folder for --output=/nowhere/x."),
        ("--output=README.md", "--output must end in .jsonl. Received: README.md."),
    ):
        result = run(flag, cwd=tmp_path)
        assert result.returncode != 0
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert message in result.stderr and "Traceback" not in result.stderr


@pytest.fixture
def photos(tmp_path) -> Path:
    names = [f"{i}.jpg" for i in range(3)]
    files = {name: pil_file("RGB", "red", "JPEG") for name in names}
    classes = {"cat": files | {"x.png": pil_file("RGB", "red", "PNG")}, "dog": files}
    return make_folder(tmp_path / "photos", classes)


@pytest.mark.slow
def test_steps_and_pipelines_are_measured(photos, tmp_path):
    output = tmp_path / "measured.jsonl"
    common = ("--batch_size=2", "--rounds=1", "--steps=1", f"--output={output}")
    step = ("--runtimes=tensorflow", "--sizes=32", "--base_size=32", "--warmup=1")
    result = run(*step, *common, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "mobilevit_xxs" in result.stdout
    result = run("--what=input", "--data=folder:photos", *common, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "x.png" in result.stdout

    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert (records[0]["runtime"], records[0]["size"]) == ("tensorflow", 32)
    assert records[0]["versions"].keys() == {"tensorflow", "keras"}
    assert [record["pipeline"] for record in records[1:3]] == ["ours", "bare"]
    for record in records:
        assert record["batch"] == 2 and record["samples"] == 1
        assert record["images_per_second"] == 2 / record["median_seconds"] > 0
    assert all(record["files"] == 6 for record in records[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["our_batches", "bare_batches"])
def test_pipelines_make_batches(name, photos):
    folder = photos / "train"
    files, labels, _ = benchmark_input.list_jpegs(folder, at_most=100)
    settings = benchmark_input.InputSettings("", str(folder), files, labels, 32, 4, 1)
    batches = getattr(benchmark_input, name)(settings, np.arange(8) % len(files))
    shapes = [(batch.shape.as_list(), batch.dtype.name) for batch in batches]
    assert shapes == [([4, 32, 32, 3], "uint8")] * 2
