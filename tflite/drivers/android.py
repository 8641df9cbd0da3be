"""Measures files on an Android phone on a cable, with its `benchmark_model`."""

import contextlib
import dataclasses
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from tflite.drivers import benchmark_tool
from tflite.drivers.adb import AdbError, AdbTimeout, Device
from tflite.drivers.android_device import (
    FOLDER,
    Facts,
    Store,
    Stored,
    cool_down,
    read_state,
)
from tflite.drivers.measurement import NOT_MEASURED, Measurement
from tflite.validation.checksum import sha256

APK_STEP_S = 1.0  # between looks at its log
RUN_TIMEOUT_S = 600  # of one run of the tool, which itself stops after 150 s
# Programs that this driver started; the pattern does not match the shell that looks.
_OURS = f"{FOLDER.rpartition('/')[2]}/[0-9a-f]{{16}}_"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AndroidMeasurement(Measurement):
    """One run of the tool.

    Attributes:
        tool: a key of `tflite.drivers.benchmark_tool.TOOLS`.
        tool_sha256: of the program.
        cpu_mask: hexadecimal mask of the cores, "" for all.
        tool_flags: further flags of the tool.
        command: what ran on the device.
        repeat: 1, 2, ... of the same.
        source: where the numbers come from, `result` (binary) or `log`.
        facts: of the device.
        before, after: its states around the run.
        warnings: what makes it doubtful.
    """

    runtime: str = "benchmark_model"
    tool: str = "classic"
    tool_sha256: str = ""
    cpu_mask: str = ""
    tool_flags: list[str] = dataclasses.field(default_factory=list)
    command: str = ""
    repeat: int = 1
    source: str = "log"
    facts: dict = dataclasses.field(default_factory=dict)
    before: dict = dataclasses.field(default_factory=dict)
    after: dict = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def notes(self) -> list[str]:
        return super().notes() + self.warnings

    @property
    def variant(self) -> str:
        parts = [
            self.tool,
            self.accelerator,
            self.num_threads and f"x{self.num_threads}",
            self.cpu_mask and f"mask {self.cpu_mask}",
            *self.tool_flags,
        ]
        return " ".join(filter(None, parts))


@dataclasses.dataclass(frozen=True)
class Setup:
    """How files are measured.

    Attributes:
        tools: `{tool: path of its program here}`, keys of `TOOLS`.
        accelerators: names; a tool that lacks one is passed over.
        num_threads: CPU threads.
        cpu_mask: hexadecimal mask of the cores, "" for all; not for the app.
        runs, warmup_runs: at least so many inferences.
        repeats: runs of the tool for each file.
        cool_down_s: seconds to wait before each, and longer while the phone is
            throttled; 0 for no waiting at all.
        npu_libraries: folder with the vendor's dispatch library, for the NPU.
        tool_flags: further flags of the tool.
    """

    tools: dict[str, str]
    accelerators: tuple[str, ...] = ("cpu", "gpu")
    num_threads: int = 1
    cpu_mask: str = ""
    runs: int = 50
    warmup_runs: int = 5
    repeats: int = 3
    cool_down_s: float = 5.0
    npu_libraries: str | None = None
    tool_flags: tuple[str, ...] = ()


def _run_tool(device: Device, command: str, result: str) -> tuple[dict, str]:
    """Runs the tool; returns the fields and the log.

    Raises:
        ValueError: if the tool fails; the message tells why.
    """
    completed = device.shell(command, RUN_TIMEOUT_S)
    log = completed.output
    if completed.code:
        raise ValueError(benchmark_tool.failure(log, completed.code))
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "result.pb")
        # An old tool writes none, a full device a cut one; the log has most of it.
        with contextlib.suppress(AdbError, ValueError):
            device.pull(result, local)
            fields = benchmark_tool.parse_result(local.read_bytes())
            return fields | {"source": "result"}, log
    return benchmark_tool.parse_log(log) | {"source": "log"}, log


def _run_apk(device: Device, command: str) -> tuple[dict, str]:
    """Starts the tool's app and reads Android's log until it is done.

    Raises:
        ValueError: if it fails, or does not end.
    """
    start = f"keras_mobilevit {secrets.token_hex(8)}"
    device.shell(f"log -t tflite {shlex.quote(start)}")
    started = device.shell(command)
    if started.code or "Error" in started.output:
        raise ValueError(benchmark_tool.failure(started.output, started.code))
    end = time.monotonic() + RUN_TIMEOUT_S
    while time.monotonic() < end:
        time.sleep(APK_STEP_S)
        is_running = device.ask(f"pidof {benchmark_tool.APK_PACKAGE}")
        log = device.ask("logcat -d -v raw -s tflite:V litert:V").rpartition(start)[2]
        with contextlib.suppress(ValueError):  # it is not done
            return benchmark_tool.parse_log(log), log
        if not is_running:
            raise ValueError(f"The app ended early. {benchmark_tool.failure(log, 1)}")
    raise ValueError(f"The app did not end within {RUN_TIMEOUT_S} s.")


class Session:
    """Measures files on one device.

    Args:
        device: that works.
        facts: what it is.
        setup: how to measure.

    Attributes:
        store: the files on the device.
    """

    def __init__(self, device: Device, facts: Facts, setup: Setup):
        self.device, self.facts, self.setup = device, facts, setup
        self.store = Store(device)
        self.folder = f"{FOLDER}/run.{secrets.token_hex(4)}"  # of what one run leaves

    def _flags(self, tool: str, accelerator: str, graph: str) -> list[str]:
        setup = self.setup
        flags = benchmark_tool.tool_flags(
            tool, accelerator, graph, setup.num_threads, setup.runs, setup.warmup_runs
        )
        if accelerator == "npu" and setup.npu_libraries:
            folder = self._put_libraries()
            flags.append(f"--dispatch_library_path={folder}")
            if benchmark_tool.compiler_plugins(setup.npu_libraries):
                flags.append(f"--compiler_plugin_library_path={folder}")
        return [*flags, *setup.tool_flags]

    def _prepare(self, tool: str, program: Stored, flags: list[str]):
        """Returns the command, and a function that runs it like `_run_tool`."""
        if tool == "apk":
            self._install(self.setup.tools[tool])
            command = benchmark_tool.apk_command(flags)
            return command, lambda: _run_apk(self.device, command)
        result = f"{self.folder}/result.pb"
        self.device.shell(f"rm -f {result}; mkdir -p {self.folder}")
        parts = [program.place, *flags]
        if self.setup.cpu_mask:
            parts = ["taskset", self.setup.cpu_mask, *parts]
        command = shlex.join([*parts, f"--result_file_path={result}"])
        return command, lambda: _run_tool(self.device, command, result)

    def _install(self, apk: str) -> None:
        """Installs the app unless this very one is there."""
        package = benchmark_tool.APK_PACKAGE
        installed = self.device.ask(f"pm path {package}").removeprefix("package:")
        content = self.device.ask(f"sha256sum {installed}") if installed else ""
        if not content.startswith(sha256(apk)):
            self.device.install(apk)

    def _put_libraries(self) -> str:
        """Links the vendor's libraries by their own names in a folder."""
        folder = f"{self.folder}/npu"
        for path in sorted(Path(self.setup.npu_libraries).glob("*.so")):
            library = shlex.quote(f"{folder}/{path.name}")
            place = self.store.put(path).place
            done = self.device.shell(f"mkdir -p {folder} && ln -sf {place} {library}")
            if done.code:
                raise AdbError(f"Linking {path} on the device failed: {done.output}")
        return folder

    def measure(self, path, tool: str, accelerator: str, repeat: int):
        """Runs the tool once on a file; what it refuses is told in the record.

        Raises:
            AdbError: if the device is lost, or a file cannot be copied to it.
        """
        graph = self.store.put(path)
        program = self.store.put(self.setup.tools[tool], executable=True)
        flags = self._flags(tool, accelerator, graph.place)
        command, run = self._prepare(tool, program, flags)
        before = cool_down(self.device, self.setup.cool_down_s)
        try:
            fields, log = run()
            benchmark_tool.refuse_other_accelerator(tool, accelerator, log)
            fields |= benchmark_tool.delegation(log, accelerator)
        except (AdbTimeout, ValueError) as error:
            self._stop()
            fields = {"status": NOT_MEASURED, "reason": str(error)}
        after = read_state(self.device)
        doubts = before.warnings(self.facts) + after.warnings(self.facts)
        return AndroidMeasurement(
            file=str(path),
            sha256=graph.sha256,
            accelerator=accelerator,
            num_threads=self.setup.num_threads,
            device=self.facts.title,
            device_id=self.facts.serial,
            tool=tool,
            tool_sha256=program.sha256,
            cpu_mask=self.setup.cpu_mask,
            tool_flags=list(self.setup.tool_flags),
            command=command,
            repeat=repeat,
            facts=dataclasses.asdict(self.facts),
            before=dataclasses.asdict(before),
            after=dataclasses.asdict(after),
            warnings=list(dict.fromkeys(doubts)),
            **fields,
        )

    def _stop(self) -> None:
        """Ends what still runs: the tool outlives a connection that was given up.

        Android's shell may not end an app's process, but may have it stopped.
        """
        self.device.shell(f"pkill -f '{_OURS}'")
        if "apk" in self.setup.tools:
            self.device.shell(f"am force-stop {benchmark_tool.APK_PACKAGE}")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Removes what runs left, but for the files that the next run needs."""
        try:
            self._stop()
            self.device.shell(f"rm -rf {self.folder} {FOLDER}/*.part")
        except AdbError:
            if kind is None:  # else the device was lost before, and that is being told
                raise


def measure_all(session: Session, paths: Iterable) -> Iterator[AndroidMeasurement]:
    """Measures files with every tool and accelerator, in turns.

    Args:
        session: on a device.
        paths: of `.tflite` files.

    Yields:
        An `AndroidMeasurement` for each run, as it ends.

    Raises:
        AdbError: if the device is lost, or a file cannot be copied to it.
    """
    setup = session.setup
    pairs = [
        (tool, accelerator)
        for tool in setup.tools
        for accelerator in setup.accelerators
        if accelerator in benchmark_tool.TOOLS[tool].accelerators
    ]
    runs = [
        (path, tool, accelerator, repeat)
        for repeat in range(1, setup.repeats + 1)
        for path in paths
        for tool, accelerator in pairs
    ]
    for run in tqdm(runs, "measuring", disable=None, leave=False):
        yield session.measure(*run)


def _read_log(path) -> str:
    return Path(path).read_text("utf-8-sig", "replace")


def parse_logs(logs: list[str], paths: list[str]) -> Iterator[AndroidMeasurement]:
    """Reads logs of the tool from elsewhere, from a device farm for example.

    Args:
        logs: paths of the logs, of one run or several each.
        paths: of the `.tflite` files that were measured, one for each run; or none.

    Yields:
        An `AndroidMeasurement` for each.

    Raises:
        ValueError: if a log is not whole.
    """
    runs = [
        (path, run)
        for path in logs
        for run in benchmark_tool.split_log(_read_log(path))
    ]
    if paths and len(paths) != len(runs):
        raise ValueError(
            f"There are {len(runs)} runs in the logs, and {len(paths)} files: name one "
            "for each run."
        )
    for index, (path, log) in enumerate(runs):
        try:
            tool = benchmark_tool.tool_of(log)
            fields = benchmark_tool.parse_log(log)
        except ValueError as error:
            raise ValueError(f"{path}, run {index + 1}: {error}") from error
        accelerator = benchmark_tool.accelerator_of(log)
        fields |= benchmark_tool.delegation(log, accelerator)
        try:
            benchmark_tool.refuse_other_accelerator(tool, accelerator, log)
        except ValueError as error:
            fields = {"status": NOT_MEASURED, "reason": str(error)}
        yield AndroidMeasurement(
            file=paths[index] if paths else benchmark_tool.graph_of(log) or path,
            sha256=sha256(paths[index]) if paths else "",
            accelerator=accelerator,
            num_threads=benchmark_tool.num_threads_of(log),
            device=f"log {Path(path).name}",
            tool=tool,
            **fields,
        )
