"""Measuring on an Android device: the real adb server and client, and a fake device.

The device's benchmark tool is a fake too. It runs models for real.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.adb_device import FakeAdbDevice
from tests.fakes.benchmark_tool import write_benchmark_tool
from tests.helpers.commands import run_here
from tflite.drivers import adb, android, android_device, benchmark_tool
from tflite.drivers.android import AndroidOptions
from tflite.drivers.benchmark_tool import parse_result

adbutils = pytest.importorskip("adbutils", reason="pip install '.[tflite]'")
AT_ONCE = ("--min_secs=0", "--warmup_min_secs=0")


@pytest.fixture(scope="module", autouse=True)
def adb_server(tmp_path_factory):
    """An adb server of our own, which knows no real phone of this machine."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(listener.getsockname()[1]))
        patch.setenv("HOME", str(home))
        patch.setenv("TMPDIR", str(home))
        patch.setenv("ADB_MDNS", "0")
        patch.delenv("ANDROID_SERIAL", raising=False)
        server = subprocess.Popen(
            [
                *(adbutils.adb_path(), "-L", f"acceptfd:{listener.fileno()}"),
                *("server", "nodaemon"),
            ],
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
        yield
        server.terminate()
        server.wait()


@pytest.fixture
def start_phone(tmp_path):
    """Returns a function that starts a fake device and connects it."""
    with contextlib.ExitStack() as phones:

        def start(**options) -> FakeAdbDevice:
            folder = tmp_path / f"phone{len(list(tmp_path.glob('phone*')))}"
            phone = phones.enter_context(FakeAdbDevice(folder, **options))
            phones.callback(adbutils.AdbClient().disconnect, phone.address)
            adbutils.AdbClient().connect(phone.address)
            return phone

        yield start


def make_session(phone, tmp_path, kind="classic", fault=None, **options):
    tool = write_benchmark_tool(tmp_path / f"{kind}_{fault}", kind, fault=fault)
    options = {"tool_flags": AT_ONCE, "runs": 3, "repeats": 1} | options
    device = adb.Device(phone.address)
    return android.Session(
        device,
        android_device.read_device_info(device),
        {kind: str(tool)},
        AndroidOptions(cool_down=0.0, **options),
    )


def test_the_device_is_read(start_phone):
    phone = start_phone(dumpsys={"thermalservice": "Thermal Status: 2\n"})
    device = adb.find_device()
    facts = android_device.read_device_info(device)
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
        pushed = session.cache.pushed_bytes
    assert [r.accelerator for r in records] == ["cpu", "gpu"]
    for record in records:
        assert record.status == "measured" and record.runs == 3
        assert record.warnings == []
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
    assert session.cache.pushed_bytes == 0
    remote = phone.folder / session.cache.put(tflite_file).path[1:]
    remote.write_bytes(remote.read_bytes()[:-1])  # as if something had cut it
    with make_session(phone, tmp_path) as session:
        session.cache.put(tflite_file)
    assert session.cache.pushed_bytes == tflite_file.stat().st_size
    session.cache.clear()
    assert not (phone.folder / android_device.FOLDER[1:]).exists()


def test_the_numbers_are_the_tools_own(start_phone, tflite_file, tmp_path, monkeypatch):
    logs = []
    delegation = benchmark_tool.delegation

    def keep_log(log, accelerator):
        logs.append(log)
        return delegation(log, accelerator)

    monkeypatch.setattr(benchmark_tool, "delegation", keep_log)
    session = make_session(start_phone(), tmp_path, accelerators=("cpu",))
    with session:
        (record,) = android.measure_all(session, [tflite_file])
    _, logged = re.findall(r"count=(\d+) .* p5=(\d+) median=(\d+) p95=(\d+)", logs[0])
    times = (1e3 * record.p5_ms, 1e3 * record.median_ms, 1e3 * record.p95_ms)
    assert [record.runs, *map(round, times)] == [int(number) for number in logged]


@pytest.mark.parametrize(
    ("fault", "accelerator", "reason"),
    [
        ("crash", "cpu", "Segmentation fault / exit code 139, crashed"),
        ("killed", "cpu", "Killed / exit code 137, killed, perhaps for its memory"),
        ("truncated", "cpu", "The program wrote no result: "),
        ("gpu_refused", "gpu", "Failed to apply GPU delegate."),
        ("no_gpu", "gpu", "GPU acceleration is unsupported on this platform"),
    ],
)
def test_the_reason_of_a_failure_is_reported(
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
    assert record.notes() == ["the accelerator does not run every operation"]


def test_another_delegate_is_not_taken_for_the_gpu(start_phone, tflite_file, tmp_path):
    with make_session(
        start_phone(),
        tmp_path,
        fault="no_gpu",
        accelerators=("gpu",),
        tool_flags=(*AT_ONCE, "--use_xnnpack=true"),
    ) as session:
        (record,) = android.measure_all(session, [tflite_file])
    assert record.status == "not measured"
    assert "GPU acceleration is unsupported" in record.reason


def test_a_damaged_result_is_reported(start_phone, tflite_file, tmp_path, monkeypatch):
    monkeypatch.setattr(adb.Device, "read_bytes", lambda self, remote: b"\xff")
    with make_session(start_phone(), tmp_path, accelerators=("cpu",)) as session:
        (record,) = android.measure_all(session, [tflite_file])
    assert record.status == "not measured"
    assert record.reason.startswith("The tool's result is damaged: ")


def test_a_run_that_does_not_end_is_stopped_and_reported(
    start_phone, tflite_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(android, "RUN_TIMEOUT_S", 1.0)
    with make_session(
        start_phone(), tmp_path, accelerators=("cpu",), tool_flags=("--min_secs=600",)
    ) as session:
        (record,) = android.measure_all(session, [tflite_file])
        program = session.cache.put(session.programs["classic"]).path
    assert record.status == "not measured" and "did not end within" in record.reason
    running = subprocess.run(["pgrep", "-f", Path(program).name], capture_output=True)
    assert running.returncode == 1


def test_heat_before_a_run_is_reported(start_phone, tflite_file, tmp_path):
    phone = start_phone(dumpsys={"thermalservice": "Thermal Status: 3\n"})
    with make_session(phone, tmp_path, accelerators=("cpu",)) as session:
        (record,) = android.measure_all(session, [tflite_file])
    assert record.notes() == ["throttled: thermal status severe"]


def test_a_device_without_sha256sum_is_served(start_phone, tflite_file, monkeypatch):
    device = adb.Device(start_phone().address)
    shell_output = adb.Device.shell_output

    def without_sha256sum(device, command):
        return "" if "sha256sum" in command else shell_output(device, command)

    monkeypatch.setattr(adb.Device, "shell_output", without_sha256sum)
    for pushed in (tflite_file.stat().st_size, 0):
        cache = android_device.RemoteCache(device)
        cache.put(tflite_file)
        assert cache.pushed_bytes == pushed
    monkeypatch.setattr(adb.Device, "shell_output", lambda *_: "")
    with pytest.raises(adb.AdbError, match="none of sha256sum, md5sum, which check"):
        android_device.RemoteCache(device).put(tflite_file)


def test_exit_codes_and_errors_of_the_shell_are_returned(start_phone):
    device = adb.Device(start_phone().address)
    assert device.shell("exit 7").code == 7
    failed = device.shell("ls /nowhere")
    assert failed.code and "No such file or directory" in failed.output
    assert device.shell_output("ls /nowhere") == ""
    assert device.shell_output("echo ' word '") == "word"


def test_a_device_that_is_lost_ends_the_session(start_phone, tflite_file, tmp_path):
    phone = start_phone()
    phone.drop_when = lambda action: "--graph=" in action
    with pytest.raises(adb.AdbError, match="was lost while it ran `/data/.*--graph="):
        with make_session(phone, tmp_path) as session:
            list(android.measure_all(session, [tflite_file]))


def test_a_device_that_is_lost_during_a_copy_is_reported(start_phone, tflite_file):
    phone = start_phone()
    phone.drop_when = lambda action: action.startswith(("SEND", "RECV"))
    device = adb.Device(phone.address)
    with pytest.raises(adb.AdbError, match="Copying .*tiny.tflite to the device fail"):
        device.push(tflite_file, "/data/local/tmp/a")
    with pytest.raises(adb.AdbError, match="Reading /data/local/tmp/a from the dev"):
        device.read_bytes("/data/local/tmp/a")


def test_a_full_device_is_reported_and_keeps_no_partial_file(
    start_phone, tflite_file, tmp_path
):
    phone = start_phone()
    phone.free_bytes = tflite_file.stat().st_size // 2
    with pytest.raises(adb.AdbError, match="(?s)tiny.tflite .*No space left on device"):
        with make_session(phone, tmp_path) as session:
            list(android.measure_all(session, [tflite_file]))
    left = phone.folder / android_device.FOLDER[1:]
    assert [p for p in left.rglob("*") if p.is_file()] == []


def test_exactly_one_device_must_accept_the_connection(start_phone):
    with pytest.raises(adb.AdbError, match="No Android device is connected"):
        adb.find_device()
    locked = start_phone(require_auth=True)
    with pytest.raises(adb.AdbError, match="is unauthorized. Unlock it and allow USB"):
        adb.find_device()
    phone = start_phone()
    with pytest.raises(adb.AdbError, match="Choose one .* with --serial"):
        adb.find_device()
    assert adb.find_device(phone.address).serial == phone.address
    with pytest.raises(adb.AdbError, match="No device has the serial number x"):
        adb.find_device("x")
    with pytest.raises(adb.AdbError, match="is unauthorized"):
        adb.find_device(locked.address)


def test_the_client_of_the_sdk_is_found(tmp_path, monkeypatch):
    tools = tmp_path / "sdk" / "platform-tools"
    tools.mkdir(parents=True)
    (tools / "adb").touch(mode=0o755)
    monkeypatch.setenv("ADBUTILS_ADB_PATH", "")  # to restore it at the end
    monkeypatch.delenv("ADBUTILS_ADB_PATH")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("ANDROID_HOME", raising=False)
    monkeypatch.setenv("ANDROID_SDK_ROOT", str(tmp_path / "sdk"))
    adb.use_client(None)
    assert adbutils.adb_path() == str(tools / "adb")


@pytest.mark.parametrize("error", [adbutils.AdbError, RuntimeError])
def test_a_missing_client_is_reported(error, monkeypatch):
    def fail():
        raise error("No adb exe could be found.")

    monkeypatch.setattr(adbutils, "adb_path", fail)
    monkeypatch.setenv("ADBUTILS_ADB_PATH", "")
    for name in adb.SDK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(adb.AdbError, match="on PATH, .* ANDROID_HOME .* set --adb"):
        adb.use_client(None)


def test_the_command_measures_and_the_record_repeats_it(
    start_phone, tflite_file, tmp_path
):
    phone = start_phone()
    tool = write_benchmark_tool(tmp_path / "benchmark_model")
    output = tmp_path / "latency.jsonl"
    result = run_here(
        *("tflite/benchmark.py", "--target=android"),
        *(tflite_file, f"--benchmark_binary={tool}", "--accelerators=cpu"),
        *("--repeats=2", "--runs=2", "--cool_down=0", f"--output={output}"),
        f"--tool_flags={','.join(AT_ONCE)}",
    )
    assert result.returncode == 0, result.stderr
    assert "tiny.tflite classic cpu x1" in result.stdout
    assert f"pushed {phone.pushed_bytes} bytes" in result.stderr
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["repeat"] for record in records] == [1, 2]
    record = records[0]
    assert record["facts"]["soc"] == "Google Tensor G3"
    assert record["before"]["thermal"] == "none"
    again = adb.Device(phone.address).shell(
        f"mkdir -p {record['command'].rpartition('=')[2].rpartition('/')[0]}; "
        + record["command"]
    )
    assert again.code == 0 and "count=2 " in again.output


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


def test_a_program_is_downloaded_once(tmp_path, monkeypatch, capfd):
    (tmp_path / "tool").write_bytes(b"program")
    address = (tmp_path / "tool").as_uri()
    tool = dataclasses.replace(
        benchmark_tool.TOOLS["classic"], addresses={"arm64-v8a": address}
    )
    monkeypatch.setitem(benchmark_tool.TOOLS, "classic", tool)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = benchmark_tool.download("classic", "arm64-v8a")
    assert path.read_bytes() == b"program"
    assert f"downloading {address}" in capfd.readouterr().err
    os.unlink(tmp_path / "tool")
    assert benchmark_tool.download("classic", "arm64-v8a") == path
    path.unlink()
    with pytest.raises(ValueError, match="cannot be downloaded: .*--benchmark_binary"):
        benchmark_tool.download("classic", "arm64-v8a")
    assert list(path.parent.iterdir()) == []
    with pytest.raises(ValueError, match="No classic program is published for mips"):
        benchmark_tool.download("classic", "mips")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cpu_mask=xyz"], "--cpu_mask must be hexadecimal"),
        (["--accelerators=npu"], "some of: cpu, gpu. Received: --accelerators=npu"),
        (["--team=A"], "--team is for --target=coreml: remove it."),
        (["--port=1"], "--port is for --target=browser: remove it."),
        (["--adb=/nowhere/adb"], "--adb=/nowhere/adb is not an executable file."),
        (["--tools=best"], "some of: classic, litert. Received: --tools=best"),
        (["--tools=classic,litert", "--benchmark_binary=a"], "is one program"),
        (["--benchmark_binary=/nowhere/a"], "There is no file /nowhere/a."),
        (["--cpu_mask=0xF0"], "error: No Android device is connected."),
    ],
)
def test_errors_of_android(arguments, message, tflite_file):
    result = run_here(
        "tflite/benchmark.py", "--target=android", tflite_file, *arguments
    )
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr
