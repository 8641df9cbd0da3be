"""Measures files on an Android device with TFLite's `benchmark_model`."""

import dataclasses
import itertools
import secrets
import shlex
import string
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tflite.drivers import adb, benchmark_tool
from tflite.drivers.adb import AdbError, AdbTimeout, Device
from tflite.drivers.android_device import (
    FOLDER,
    DeviceInfo,
    RemoteCache,
    cool_down,
    read_device_info,
    read_state,
)
from tflite.drivers.measurement import NOT_MEASURED, Measurement, print_progress
from tflite.drivers.options import RunOptions, check_choices, option

RUN_TIMEOUT_S = 600  # without output; the tool itself stops after 150 s
# Programs that this driver started. The pattern does not match the shell that looks.
_OUR_PROGRAMS = f"{FOLDER.rpartition('/')[2]}/[0-9a-f]{{16}}_"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AndroidOptions(RunOptions):
    """Options of `--target=android`."""

    accelerators: tuple[str, ...] = option(
        benchmark_tool.ACCELERATORS, "Processors that run the files."
    )
    tools: tuple[str, ...] = option(
        ("classic",),
        "Programs that measure: classic (TFLite's interpreter) or litert (LiteRT's "
        "compiled model).",
    )
    tool_flags: tuple[str, ...] = option(
        (), "More flags for the program, such as --xnnpack_force_fp16=true."
    )
    benchmark_binary: str | None = option(
        None,
        "Path of your own program. Default: the published one, downloaded once.",
        is_path=True,
    )
    cpu_mask: str = option(
        "", "Hexadecimal mask of the cores to use, such as f0 for cores 4 to 7."
    )
    repeats: int = option(3, "Runs of the program per file.", lower_bound=1)
    cool_down: float = option(
        5.0,
        "Seconds to wait before each run; more while the phone is throttled. 0: do "
        "not wait.",
        lower_bound=0,
    )
    clear: bool = option(False, "Remove the files from the device at the end.")
    serial: str | None = option(
        None, "Serial number of the device, if there are several."
    )
    adb: str | None = option(
        None,
        "Path of the adb client. Default: the one on PATH, in the Android SDK or in "
        "adbutils.",
        is_path=True,
    )

    def __post_init__(self) -> None:
        """Raises a ValueError if an option does not fit."""
        check_choices("accelerators", self.accelerators, benchmark_tool.ACCELERATORS)
        check_choices("tools", self.tools, benchmark_tool.TOOLS)
        if self.benchmark_binary and len(self.tools) > 1:
            raise ValueError(
                "--benchmark_binary is one program: name one program with --tools, "
                f"not {','.join(self.tools)}."
            )
        if self.benchmark_binary and not Path(self.benchmark_binary).is_file():
            raise ValueError(f"There is no file {self.benchmark_binary}.")
        mask = self.cpu_mask.lower().removeprefix("0x")
        if set(mask) - set(string.hexdigits):
            raise ValueError(
                "--cpu_mask must be hexadecimal, such as f0 for cores 4 to 7. "
                f"Received: {self.cpu_mask}."
            )
        object.__setattr__(self, "cpu_mask", mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AndroidMeasurement(Measurement):
    """One run of the program."""

    runtime: str = "benchmark_model"
    tool: str = "classic"  # key of `benchmark_tool.TOOLS`
    tool_sha256: str = ""
    cpu_mask: str = ""  # hexadecimal; "" for all cores
    tool_flags: list[str] = dataclasses.field(default_factory=list)
    command: str = ""  # that ran on the device
    repeat: int = 1  # 1, 2, ... for runs of the same command
    facts: dict = dataclasses.field(default_factory=dict)
    before: dict = dataclasses.field(default_factory=dict)  # state of the device
    after: dict = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def notes(self) -> list[str]:
        """Returns what a reader must know beside the numbers."""
        return super().notes() + self.warnings

    @property
    def variant(self) -> str:
        """The program, its accelerator and its flags."""
        parts = [
            self.tool,
            self.accelerator,
            f"x{self.num_threads}",
            f"mask {self.cpu_mask}" if self.cpu_mask else "",
            *self.tool_flags,
        ]
        return " ".join(filter(None, parts))


@dataclasses.dataclass
class Session:
    """Measures files on one device."""

    device: Device
    info: DeviceInfo
    programs: dict[str, str]  # paths on this machine, by their names in `TOOLS`
    options: AndroidOptions

    def __post_init__(self) -> None:
        """Names the folder of the results."""
        self.cache = RemoteCache(self.device)
        self.folder = f"{FOLDER}/run.{secrets.token_hex(4)}"
        self.result = f"{self.folder}/result.pb"

    def measure(
        self, path: str | Path, tool: str, accelerator: str, repeat: int
    ) -> AndroidMeasurement:
        """Runs a program once on a file. The record says what the program refuses.

        Raises an AdbError if the device is lost, or a file cannot be copied to it.
        """
        graph = self.cache.put(path)
        program = self.cache.put(self.programs[tool], executable=True)
        tool_flags = benchmark_tool.tool_flags(
            tool, accelerator, graph.path, self.options
        )
        command = self._command(program.path, tool_flags)
        before = cool_down(self.device, self.options.cool_down)
        try:
            fields = self._run(command, tool, accelerator)
        except (AdbTimeout, ValueError) as error:
            self._stop_programs()
            fields = {"status": NOT_MEASURED, "reason": str(error)}
        after = read_state(self.device)
        warnings = before.warnings(self.info) + after.warnings(self.info)
        return AndroidMeasurement(
            file=str(path),
            sha256=graph.sha256,
            accelerator=accelerator,
            num_threads=self.options.num_threads,
            device=self.info.title,
            device_id=self.info.serial,
            tool=tool,
            tool_sha256=program.sha256,
            cpu_mask=self.options.cpu_mask,
            tool_flags=list(self.options.tool_flags),
            command=command,
            repeat=repeat,
            facts=dataclasses.asdict(self.info),
            before=dataclasses.asdict(before),
            after=dataclasses.asdict(after),
            warnings=list(dict.fromkeys(warnings)),
            **fields,
        )

    def _command(self, program: str, tool_flags: list[str]) -> str:
        mask = self.options.cpu_mask
        command = ["taskset", mask] if mask else []
        command += [program, *tool_flags, *self.options.tool_flags]
        return shlex.join([*command, f"--result_file_path={self.result}"])

    def _run(self, command: str, tool: str, accelerator: str) -> dict[str, Any]:
        """Runs a program, and returns fields of its measurement.

        Raises an AdbTimeout if the program does not end, or a ValueError if it fails.
        """
        self.device.shell(f"rm -f {self.result}; mkdir -p {self.folder}")
        run = self.device.shell(command, RUN_TIMEOUT_S)
        if run.code:
            raise ValueError(benchmark_tool.failure_reason(run.output, run.code))
        benchmark_tool.check_accelerator(tool, accelerator, run.output)
        if self.device.shell(f"test -s {self.result}").code:
            reason = benchmark_tool.failure_reason(run.output, 0)
            raise ValueError(f"The program wrote no result: {reason}")
        fields = benchmark_tool.parse_result(self.device.read_bytes(self.result))
        return fields | benchmark_tool.delegation(run.output, accelerator)

    def _stop_programs(self) -> None:
        """Stops programs that still run: they outlive their connection."""
        self.device.shell(f"pkill -f '{_OUR_PROGRAMS}'")

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Removes what the runs wrote. Keeps the files that the next session needs."""
        try:
            self._stop_programs()
            self.device.shell(f"rm -rf {self.folder} {FOLDER}/*.part")
        except AdbError:
            if kind is None:  # else the session already ends with an error
                raise


def measure_all(
    session: Session, paths: Iterable[str | Path]
) -> Iterator[AndroidMeasurement]:
    """Measures files in turns, with every program and accelerator."""
    options = session.options
    repeats = range(1, options.repeats + 1)
    runs = [*itertools.product(repeats, paths, session.programs, options.accelerators)]
    progress = tqdm(runs, "measuring", disable=None, leave=False)
    for repeat, path, tool, accelerator in progress:
        yield session.measure(path, tool, accelerator, repeat)


def check(options: AndroidOptions) -> None:
    """Raises an error if no device can be used."""
    adb.use_client(options.adb)
    adb.find_device(options.serial)


def measure(paths: list[str], options: AndroidOptions) -> Iterator[AndroidMeasurement]:
    """Measures files on the device that the options name, and prints each result."""
    adb.use_client(options.adb)
    device = adb.find_device(options.serial)
    info = read_device_info(device)
    print(f"{info.title} ({device.serial})", file=sys.stderr, flush=True)
    if info.cores and options.num_threads > info.cores:
        raise ValueError(
            f"{info.model} has {info.cores} cores. "
            f"Received: --num_threads={options.num_threads}."
        )
    programs = {
        name: options.benchmark_binary or str(benchmark_tool.download(name, info.abi))
        for name in options.tools
    }
    with Session(device, info, programs, options) as session:
        try:
            for measurement in measure_all(session, paths):
                print_progress(measurement)
                yield measurement
        finally:
            print(f"pushed {session.cache.pushed_bytes} bytes", file=sys.stderr)
            if options.clear:
                session.cache.clear()
