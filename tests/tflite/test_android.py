"""Measuring on an Android device: the real adb client, against tests/fakes/adb_device.py.

The device is a stand-in, and so is its benchmark tool, which runs models for real.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.adb_device import AdbDevice
from tests.fakes.benchmark_tool import benchmark_tool as write_tool
from tflite.drivers import adb, android, android_device, benchmark_tool
from tflite.drivers.benchmark_tool import parse_log, parse_result

ROOT = Path(__file__).parents[2]
AT_ONCE = ("--min_secs=0", "--warmup_min_secs=0")
try:
    CLIENT = adb.find_adb()
except ValueError as error:
    pytest.skip(str(error), allow_module_level=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def adb_server(tmp_path_factory):
    """A server of our own, which knows no real phone of this machine."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        patch.setenv("HOME", str(home))
        patch.setenv("TMPDIR", str(home))
        patch.setenv("ADB_MDNS", "0")
        subprocess.run([CLIENT, "start-server"], capture_output=True, check=True)
        yield
        subprocess.run([CLIENT, "kill-server"], capture_output=True)


@pytest.fixture
def start_phone(tmp_path):
    """A function that starts a device and connects it."""
    phones = []

    def start(**options) -> AdbDevice:
        phone = AdbDevice(tmp_path / f"phone{len(phones)}", **options)
        phones.append(phone.__enter__())
        subprocess.run([CLIENT, "connect", phone.address], capture_output=True)
        return phone

    yield start
    for phone in phones:
        subprocess.run([CLIENT, "disconnect", phone.address], capture_output=True)
        phone.__exit__(None, None, None)


def make_session(phone, tmp_path, kind="classic", fault=None, **options):
    tool = write_tool(tmp_path / f"{kind}_{fault}", kind, fault=fault)
    setup = android.Setup(tools={kind: str(tool)}, tool_flags=AT_ONCE, **options)
    setup = dataclasses.replace(setup, runs=3, repeats=1, cool_down_s=0.0)
    device = adb.Device(CLIENT, phone.address)
    return android.Session(device, android_device.read_facts(device), setup)


def test_the_device_is_read(start_phone):
    phone = start_phone(dumpsys={"thermalservice": "Thermal Status: 2\n"})
    device = adb.find_device(CLIENT)
    facts = android_device.read_facts(device)
    assert facts.serial == phone.address
    assert facts.title == "Google Pixel 8 Pro, Google Tensor G3, Android 15"
    assert (facts.abi, facts.sdk, facts.cores) == ("arm64-v8a", "35", os.cpu_count())
    state = android_device.read_state(device)
    assert (state.battery_percent, state.battery_celsius) == (84, 29.1)
    assert state.warnings(facts) == ["throttled: thermal status moderate"]


@pytest.mark.parametrize("kind", ["classic", "litert"])
def test_files_are_measured_by_the_tool(kind, start_phone, tflite_file, tmp_path):
    phone = start_phone()
    with make_session(phone, tmp_path, kind, cpu_mask="3") as session:
        records = list(android.measure_all(session, [tflite_file]))
        pushed = session.store.pushed_bytes
    assert [r.accelerator for r in records] == ["cpu", "gpu"]
    for record in records:
        assert record.status == "measured" and record.runs == 3
        assert record.source == "result" and record.warnings == []
        assert 0 < record.p5_ms <= record.median_ms <= record.p95_ms
        assert f"--use_{record.accelerator}=true" in record.command or (
            kind == "classic"
        )
    if kind == "classic":  # the other tells no partitions
        assert [r.partitions for r in records] == [1, 1]
        assert all(r.fully_accelerated for r in records)
    assert (phone.folder / "taskset.log").read_text().split() == ["3", "3"]
    assert pushed == phone.pushed_bytes > tflite_file.stat().st_size
    left = phone.folder / android_device.FOLDER[1:]
    assert len(list(left.iterdir())) == 2  # the program and the file, no results


def test_the_second_time_nothing_is_pushed(start_phone, tflite_file, tmp_path):
    phone = start_phone()
    for _ in range(2):
        with make_session(phone, tmp_path, accelerators=("cpu",)) as session:
            list(android.measure_all(session, [tflite_file]))
    assert session.store.pushed_bytes == 0
    remote = phone.folder / session.store.put(tflite_file).place[1:]
    remote.write_bytes(remote.read_bytes()[:-1])  # as if something had cut it
    with make_session(phone, tmp_path) as session:
        session.store.put(tflite_file)
    assert session.store.pushed_bytes == tflite_file.stat().st_size
    session.store.clear()
    assert not (phone.folder / android_device.FOLDER[1:]).exists()


def test_the_numbers_are_the_tools_own(start_phone, tflite_file, tmp_path, monkeypatch):
    phone, logs = start_phone(), []
    monkeypatch.setattr(
        benchmark_tool, "delegation", lambda log, _: logs.append(log) or {}
    )
    with make_session(phone, tmp_path, accelerators=("cpu",)) as session:
        (record,) = android.measure_all(session, [tflite_file])
    logged = parse_log(logs[0])
    names = ("median_ms", "p5_ms", "p95_ms", "first_ms", "runs")
    assert [getattr(record, n) for n in names] == [logged[n] for n in names]
    assert record.source == "result"
    assert record.mean_ms == pytest.approx(logged["mean_ms"], rel=1e-5)


@pytest.mark.parametrize(
    ("fault", "accelerator", "reason"),
    [
        ("crash", "cpu", "Segmentation fault / exit code 139, crashed"),
        ("killed", "cpu", "Killed / exit code 137, killed, perhaps for its memory"),
        ("truncated", "cpu", "The log ends before the benchmark does."),
        ("gpu_refused", "gpu", "Failed to apply GPU delegate."),
        ("no_gpu", "gpu", "GPU acceleration is unsupported on this platform"),
    ],
)
def test_what_a_run_dies_of_is_told(
    fault, accelerator, reason, start_phone, tflite_file, tmp_path
):
    with make_session(
        start_phone(), tmp_path, fault=fault, accelerators=(accelerator,)
    ) as session:
        (record,) = android.measure_all(session, [tflite_file])
    assert record.status == "not measured" and record.median_ms is None
    assert reason in record.reason
    assert record.notes() == [record.reason]


def test_a_gpu_that_takes_parts_is_measured(start_phone, tflite_file, tmp_path):
    with make_session(
        start_phone(), tmp_path, fault="gpu_partial", accelerators=("gpu",)
    ) as session:
        (record,) = android.measure_all(session, [tflite_file])
    assert record.status == "measured" and record.partitions == 1
    assert record.notes() == ["parts of it ran elsewhere"]


def test_another_delegate_is_not_taken_for_the_gpu(start_phone, tflite_file, tmp_path):
    with make_session(
        start_phone(), tmp_path, fault="no_gpu", accelerators=("gpu",)
    ) as session:
        flags = (*AT_ONCE, "--use_xnnpack=true")
        session.setup = dataclasses.replace(session.setup, tool_flags=flags)
        (record,) = android.measure_all(session, [tflite_file])
    assert record.status == "not measured"
    assert "GPU acceleration is unsupported" in record.reason


def test_a_damaged_result_leaves_the_log(
    start_phone, tflite_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        adb.Device, "pull", lambda self, remote, local: Path(local).write_bytes(b"")
    )
    with make_session(start_phone(), tmp_path, accelerators=("cpu",)) as session:
        (record,) = android.measure_all(session, [tflite_file])
    assert record.status == "measured" and record.source == "log"


def test_a_run_that_does_not_end_is_stopped_and_told(
    start_phone, tflite_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(android, "RUN_TIMEOUT_S", 1.0)
    phone = start_phone()
    with make_session(phone, tmp_path, accelerators=("cpu",)) as session:
        flags = ("--min_secs=60",)
        session.setup = dataclasses.replace(session.setup, tool_flags=flags)
        (record,) = android.measure_all(session, [tflite_file])
        place = session.store.put(session.setup.tools["classic"]).place
    assert record.status == "not measured" and "did not end within" in record.reason
    running = subprocess.run(["pgrep", "-f", Path(place).name], capture_output=True)
    assert running.returncode == 1


def test_an_app_that_does_not_end_is_stopped(
    start_phone, tflite_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(android, "RUN_TIMEOUT_S", 0.3)
    monkeypatch.setattr(android, "APK_STEP_S", 0.05)
    monkeypatch.setattr(adb.Device, "install", lambda _, path: None)
    phone = start_phone()
    for name in ("app", "bin/pidof"):
        (phone.folder / name).write_text("#!/bin/sh\necho 7\n")
        (phone.folder / name).chmod(0o755)
    session = make_session(phone, tmp_path, "apk", accelerators=("cpu",))
    with session:
        (record,) = android.measure_all(session, [tflite_file])
        log = (phone.folder / "am.log").read_text()
    assert "did not end within 0.3 s" in record.reason
    assert log.splitlines()[-1] == f"force-stop {benchmark_tool.APK_PACKAGE}"


def test_what_an_npu_needs_is_told(tflite_file, tmp_path):
    libraries, compiled = tmp_path / "npu", tmp_path / "compiled.tflite"
    libraries.mkdir()
    compiled.write_bytes(b"TFL3 DISPATCH_OP")
    benchmark_tool.check_npu([compiled], libraries)
    with pytest.raises(ValueError, match="No NPU can run .*tiny.tflite: .*plugin"):
        benchmark_tool.check_npu([compiled, tflite_file], libraries)
    (libraries / "libLiteRtCompilerPlugin_Qualcomm.so").write_bytes(b"")
    benchmark_tool.check_npu([tflite_file], libraries)
    with pytest.raises(ValueError, match="takes --npu_libraries"):
        benchmark_tool.check_npu([compiled], None)


def test_heat_before_a_run_is_told_too(start_phone, tflite_file, tmp_path):
    phone = start_phone(dumpsys={"thermalservice": "Thermal Status: 3\n"})
    with make_session(phone, tmp_path, accelerators=("cpu",)) as session:
        (record,) = android.measure_all(session, [tflite_file])
    assert record.notes() == ["throttled: thermal status severe"]


def test_a_device_without_sha256sum_is_served(start_phone, tflite_file, monkeypatch):
    device = adb.Device(CLIENT, start_phone().address)
    ask = adb.Device.ask
    monkeypatch.setattr(
        adb.Device, "ask", lambda d, c: "" if "sha256sum" in c else ask(d, c)
    )
    for pushed in (tflite_file.stat().st_size, 0):
        store = android_device.Store(device)
        store.put(tflite_file)
        assert store.pushed_bytes == pushed
    monkeypatch.setattr(adb.Device, "ask", lambda *_: "")
    with pytest.raises(adb.AdbError, match="none of sha256sum, md5sum, which tell"):
        android_device.Store(device).put(tflite_file)


def test_without_exit_codes_failures_are_seen(start_phone, tflite_file, tmp_path):
    """Old devices send none, and stderr among stdout."""
    phone = start_phone(features=("cmd",))
    assert adb.Device(CLIENT, phone.address).shell("exit 7").code == 7
    with make_session(phone, tmp_path, fault="crash", accelerators=("cpu",)) as session:
        (record,) = android.measure_all(session, [tflite_file])
    assert "exit code 139" in record.reason


@pytest.mark.parametrize("features", [("shell_v2", "cmd", "stat_v2"), ("cmd",)])
def test_a_device_that_is_lost_ends_the_session(
    features, start_phone, tflite_file, tmp_path
):
    phone = start_phone(features=features)
    phone.drop_when = lambda action: "--graph=" in action
    with pytest.raises(adb.AdbError, match="was lost while it ran `/data/.*--graph="):
        with make_session(phone, tmp_path) as session:
            list(android.measure_all(session, [tflite_file]))


def test_a_full_device_is_told_and_keeps_no_part(start_phone, tflite_file, tmp_path):
    phone = start_phone()
    phone.free_bytes = tflite_file.stat().st_size // 2
    with pytest.raises(adb.AdbError, match="tiny.tflite .*No space left on device"):
        with make_session(phone, tmp_path) as session:
            list(android.measure_all(session, [tflite_file]))
    left = phone.folder / android_device.FOLDER[1:]
    assert [p for p in left.rglob("*") if p.is_file()] == []


def test_a_device_must_be_there_alone_and_let_us_in(start_phone):
    with pytest.raises(adb.AdbError, match="No Android device is connected"):
        adb.find_device(CLIENT)
    locked = start_phone(require_auth=True)
    with pytest.raises(adb.AdbError, match="is unauthorized. Unlock it and allow USB"):
        adb.find_device(CLIENT)
    phone = start_phone()
    with pytest.raises(adb.AdbError, match="Choose one .* with --serial"):
        adb.find_device(CLIENT)
    assert adb.find_device(CLIENT, phone.address).serial == phone.address
    with pytest.raises(adb.AdbError, match="No device has the serial number x"):
        adb.find_device(CLIENT, "x")
    with pytest.raises(adb.AdbError, match="is unauthorized"):
        adb.find_device(CLIENT, locked.address)


def test_the_command_measures_and_the_record_repeats_it(
    start_phone, tflite_file, tmp_path
):
    phone = start_phone()
    tool = write_tool(tmp_path / "benchmark_model")
    output = tmp_path / "latency.jsonl"
    command = [
        *(sys.executable, ROOT / "tflite/benchmark.py", "--target=android"),
        *(tflite_file, f"--benchmark_binary={tool}", "--accelerators=cpu"),
        *("--repeats=2", "--runs=2", "--cool_down=0", f"--output={output}"),
        f"--tool_flags={','.join(AT_ONCE)}",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "tiny.tflite classic cpu x1" in result.stdout
    assert f"pushed {phone.pushed_bytes} bytes" in result.stderr
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["repeat"] for record in records] == [1, 2]
    record = records[0]
    assert record["facts"]["soc"] == "Google Tensor G3"
    assert record["before"]["thermal"] == "none"
    again = adb.Device(CLIENT, phone.address).shell(
        f"mkdir -p {record['command'].rpartition('=')[2].rpartition('/')[0]}; "
        + record["command"]
    )
    assert again.code == 0 and parse_log(again.output)["runs"] == 2


# Logs as the tools print them. The first is of a published run of MobileNet, LiteRT's
# follows its sources.
CLASSIC = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [4]
INFO: Graph: [/data/local/tmp/mobilenet.tflite]
INFO: Use gpu: [1]
INFO: Loaded model /data/local/tmp/mobilenet.tflite
INFO: Created TensorFlow Lite delegate for GPU.
ERROR: Following operations are not supported by GPU delegate:
TRANSPOSE: OP is supported, but tensor type/shape isn't compatible.
INFO: Explicitly applied GPU delegate, and the model graph will be partially executed \
by the delegate w/ 3 delegate kernels.
INFO: The input model file size (MB): 4.2761
INFO: Initialized session in 87.639ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but \
terminate if exceeding 150 seconds.
INFO: count=5 first=106436 curr=105929 min=105929 max=106436 avg=106065 std=193 \
p5=105929 median=105948 p95=106436

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but \
terminate if exceeding 150 seconds.
INFO: count=50 first=105884 curr=105836 min=104979 max=106435 avg=1.05784e+06 std=239 \
p5=105105 median=105801 p95=106217

INFO: Inference timings in us: Init: 87639, First inference: 106436, Warmup (avg): \
106065, Inference (avg): 105784
INFO: Note: as the benchmark tool itself affects memory footprint, the following is \
only APPROXIMATE to the actual memory footprint of the model at runtime.
INFO: Memory footprint delta from the start of the tool (MB): init=14.4414 \
overall=14.8164
"""
LITERT = """INFO: STARTING!
INFO: [benchmark_litert_model.cc:200] Loading model from: /data/local/tmp/a.tflite
INFO: Initialized session in 12.3ms.
INFO: count=2 first=14 curr=16 min=14 max=16 avg=15 std=1 p5=14 median=16 p95=16

INFO: count=14 curr=71450(all same) p5=71450 median=71450 p95=71450

INFO: [benchmark_litert_model.h:88]
========== BENCHMARK RESULTS ==========
INFO: [benchmark_litert_model.h:94] Model initialization: 12.30 ms
INFO: [benchmark_litert_model.h:94] Inference (avg):      71.45 ms (14 runs)
INFO: [benchmark_litert_model.h:94] Overall footprint:    14.00 MB
"""


def test_the_classic_log_is_read():
    fields = parse_log(CLASSIC)
    assert fields["runs"] == 50
    assert (fields["median_ms"], fields["p5_ms"], fields["p95_ms"]) == (
        105.801,
        105.105,
        106.217,
    )
    assert fields["mean_ms"] == 1057.84  # of an exponent
    assert (fields["init_ms"], fields["first_ms"]) == (87.639, 106.436)
    assert fields["peak_memory_mb"] == pytest.approx(14.8164 * 1.048576)
    assert benchmark_tool.tool_of(CLASSIC) == "classic"
    assert benchmark_tool.delegation(CLASSIC, "gpu") == {
        "partitions": 3,
        "fully_accelerated": False,
    }
    assert benchmark_tool.delegation(CLASSIC, "cpu")["partitions"] is None
    profiled = CLASSIC + "Timings (microseconds): count=50 first=1 curr=1 avg=1\n"
    assert parse_log(profiled) == fields


def test_an_older_log_has_no_percentiles():
    older = "\n".join(line.partition(" p5=")[0] for line in CLASSIC.splitlines())
    fields = parse_log(older)
    assert fields["median_ms"] is None and fields["mean_ms"] == 1057.84


def test_the_log_of_the_other_tool_is_read():
    fields = parse_log(LITERT)
    assert benchmark_tool.tool_of(LITERT) == "litert"
    assert (fields["runs"], fields["median_ms"]) == (14, 71.45)
    assert (fields["mean_ms"], fields["p95_ms"]) == (71.45, 71.45)
    assert fields["warmup_ms"] == 0.015 and fields["init_ms"] == 12.3
    assert fields["peak_memory_mb"] == pytest.approx(14.68, abs=0.01)


@given(st.integers(0, len(CLASSIC) - 1))
def test_a_log_that_was_cut_is_never_read_wrongly(end):
    try:
        fields = parse_log(CLASSIC[:end])
    except ValueError as error:
        assert "log" in str(error)
    else:
        assert fields["median_ms"] == 105.801


@given(st.binary(max_size=64))
def test_a_damaged_result_is_refused(content):
    with pytest.raises(ValueError, match="The tool's result"):
        parse_result(content)


def test_the_binary_result_is_read():
    result = benchmark_tool.result_class()()
    result.latency_metrics.median_ms = 3.16  # a float of 32 bits
    result.latency_metrics.avg_ms = 3.1624
    result.misc_metrics.num_runs = 7
    result.memory_metrics.overall_footprint_kb = 1000
    newer = b"\x2d\x00\x00\x80\x3f"  # a field 5 that a later tool may add
    fields = parse_result(result.SerializeToString() + newer)
    assert (fields["median_ms"], fields["runs"]) == (3.16, 7)
    assert fields["peak_memory_mb"] == 1.024


def test_a_log_of_a_device_farm_is_taken(tmp_path, tflite_file):
    for name, text in (("a.log", CLASSIC), ("b.log", LITERT), ("cut", CLASSIC[:900])):
        (tmp_path / name).write_text(text)
    logs = [str(tmp_path / "a.log"), str(tmp_path / "b.log")]
    first, second = android.parse_logs(logs, [])
    assert first.file == "/data/local/tmp/mobilenet.tflite"
    assert (first.accelerator, first.num_threads, first.partitions) == ("gpu", 4, 3)
    assert (second.tool, second.accelerator) == ("litert", "cpu")
    lost = CLASSIC.replace("Explicitly applied GPU", "Could not apply GPU")
    (tmp_path / "cpu.log").write_text(lost)
    (on_cpu,) = android.parse_logs([str(tmp_path / "cpu.log")], [])
    assert on_cpu.status == "not measured" and "gpu ran nothing" in on_cpu.reason
    headless = CLASSIC[CLASSIC.index("INFO: Initialized") :]
    (tmp_path / "tail.log").write_text(headless)
    (tail,) = android.parse_logs([str(tmp_path / "tail.log")], [])
    assert (tail.accelerator, tail.variant) == ("unknown", "classic unknown")
    assert tail.file == str(tmp_path / "tail.log")
    (named,) = android.parse_logs(logs[:1], [str(tflite_file)])
    assert len(named.sha256) == 64
    with pytest.raises(ValueError, match="cut, run 1: The log ends before"):
        list(android.parse_logs([str(tmp_path / "cut")], []))
    with pytest.raises(ValueError, match="2 runs in the logs, and 1 files"):
        list(android.parse_logs(logs, ["a.tflite"]))
    (tmp_path / "both.log").write_text("Farm says:\n" + CLASSIC + LITERT)
    runs = list(android.parse_logs([str(tmp_path / "both.log")], []))
    assert [run.median_ms for run in runs] == [105.801, 71.45]


def test_the_app_is_started_and_its_log_read(start_phone, tflite_file, tmp_path):
    """The phone's `am` runs the stand-in with what the app would get of its flags."""
    phone = start_phone()
    tool = write_tool(tmp_path / "benchmark.apk")
    write_tool(phone.folder / "app")
    device = adb.Device(CLIENT, phone.address)
    facts = android_device.read_facts(device)
    setup = android.Setup(
        {"apk": str(tool)}, ("cpu",), runs=3, repeats=2, cool_down_s=0.0
    )
    setup = dataclasses.replace(setup, tool_flags=AT_ONCE)
    installed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adb.Device, "install", lambda _, path: installed.append(path))
        patch.setattr(android, "APK_STEP_S", 0.05)
        with android.Session(device, facts, setup) as session:
            first, second = android.measure_all(session, [tflite_file])
    assert installed == [str(tool)] * 2
    for record in (first, second):
        assert record.status == "measured", record.reason
        assert (record.runs, record.partitions, record.source) == (3, 1, "log")
    assert first.median_ms != second.median_ms or first.mean_ms != second.mean_ms
    log = (phone.folder / "logcat.txt").read_text()
    assert "Unconsumed" not in log and log.count("STARTING!") == 2


def test_a_program_is_downloaded_once(tmp_path, monkeypatch, capfd):
    (tmp_path / "tool").write_bytes(b"program")
    address = (tmp_path / "tool").as_uri()
    tool = dataclasses.replace(
        benchmark_tool.TOOLS["classic"], addresses={"arm64-v8a": address}
    )
    monkeypatch.setitem(benchmark_tool.TOOLS, "classic", tool)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = benchmark_tool.fetch("classic", "arm64-v8a")
    assert path.read_bytes() == b"program"
    assert f"downloading {address}" in capfd.readouterr().err
    os.unlink(tmp_path / "tool")
    assert benchmark_tool.fetch("classic", "arm64-v8a") == path
    path.unlink()
    with pytest.raises(ValueError, match="cannot be downloaded: .*--benchmark_binary"):
        benchmark_tool.fetch("classic", "arm64-v8a")
    assert list(path.parent.iterdir()) == []
    with pytest.raises(ValueError, match="No program classic is published for mips"):
        benchmark_tool.fetch("classic", "mips")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cpu_mask=xyz"], "--cpu_mask is hexadecimal"),
        (["--accelerators=dsp"], "has the accelerators cpu, gpu, npu. Received: --acc"),
        (["--team=A"], "--team is for --target=coreml: remove it."),
        (["--port=1"], "--port is for --target=browser: remove it."),
        (["--adb=/nowhere/adb"], "--adb=/nowhere/adb is no program."),
        (["--accelerators=npu"], "--tools=classic has no npu; litert has all."),
        (["--tools=litert", "--accelerators=npu"], "npu takes --npu_libraries, a fold"),
        (["--tools=best"], "--tools must be some of classic, litert, apk."),
        (["--npu_libraries=tests"], "--npu_libraries=tests holds no .so file."),
        (["--cpu_mask=0xF0"], "error: No Android device is connected."),
    ],
)
def test_errors_of_android(arguments, message, tflite_file):
    command = [sys.executable, "-m", "tflite.benchmark", "--target=android"]
    result = subprocess.run(
        [*command, str(tflite_file), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr
