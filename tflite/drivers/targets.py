"""What can measure files, as one table: each with its flags and what it shows."""

import contextlib
import dataclasses
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from tflite.drivers import (
    adb,
    android,
    android_device,
    benchmark_tool,
    browser,
    coreml,
    host,
)
from tflite.drivers.measurement import Measurement
from tflite.drivers.runtimes import runtimes_of
from tflite.validation.checksum import sha256

RUNS = 50  # of packages as many as in the paper, see drivers/coreml.py
_TIMES = (
    # heading, field
    ("first", "first_ms"),
    ("warm-up", "warmup_ms"),
    ("mean", "mean_ms"),
    ("median", "median_ms"),
    ("p5", "p5_ms"),
    ("p95", "p95_ms"),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of device.

    Attributes:
        purpose: in a line.
        measure: from paths and flags to measurements, as they come.
        suffixes: of the files that it takes.
        flags: names of those that it heeds, of all that some target has.
        columns: `(heading, field)` of its table, before the ratio.
        ends_by_hand: whether it goes on until it is interrupted.
        may_refuse: whether some of its accelerators may not take a file, which is a
            result like others.
        check: raises what can be told before any file is read, from the flags.
    """

    purpose: str
    measure: Callable[[list[str], object], Iterator[Measurement]]
    suffixes: tuple[str, ...]
    flags: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    ends_by_hand: bool = False
    may_refuse: bool = False
    check: Callable[[object], None] = lambda args: None


def _on_host(paths: list[str], args) -> Iterator[Measurement]:
    contenders = [(path, name) for path in paths for name in runtimes_of(path)]
    yield from host.measure_all(
        contenders,
        args.num_threads,
        args.runs or RUNS,
        args.warmup_runs,
        args.rounds,
    )


def _with_core_ml(paths: list[str], args) -> Iterator[Measurement]:
    coreml.check_units(args.compute_units)
    if not coreml.is_available():
        yield from coreml.not_measured(paths, args.compute_units)
        return
    yield from coreml.measure_all(
        paths, args.compute_units, args.device, args.team, args.runs or coreml.RUNS
    )


def _accelerators(args, known, default) -> tuple[str, ...]:
    chosen = default if args.accelerators is None else tuple(args.accelerators)
    if not chosen or set(chosen) - set(known):
        raise ValueError(
            f"--target={args.target} has the accelerators {', '.join(known)}. "
            f"Received: --accelerators={','.join(chosen)}."
        )
    return chosen


def _tell(measurement: Measurement) -> None:
    """Says a result as it comes, where one waits for the next."""
    median = measurement.median_ms
    told = measurement.reason if median is None else f"{median:.2f} ms"
    name = f"{Path(measurement.file).name} {measurement.variant}"
    tqdm.write(f"{measurement.device}: {name}: {told}", file=sys.stderr)


def _android_accelerators(args) -> tuple[str, ...]:
    """Returns those that were asked for, each of which some tool must have."""
    chosen = _accelerators(args, ("cpu", "gpu", "npu"), ("cpu", "gpu"))
    tools = [benchmark_tool.TOOLS[name] for name in args.tools]
    for name in chosen:
        if not any(name in tool.accelerators for tool in tools):
            raise ValueError(
                f"--tools={','.join(args.tools)} has no {name}; litert has all."
            )
    return chosen


def _check_android(args) -> None:
    unknown = [name for name in args.tools if name not in benchmark_tool.TOOLS]
    if unknown or not args.tools:
        raise ValueError(
            f"--tools must be some of {', '.join(benchmark_tool.TOOLS)}. "
            f"Received: --tools={','.join(args.tools)}."
        )
    _android_accelerators(args)
    if len(args.tools) > 1 and (args.benchmark_binary or args.benchmark_sha256):
        raise ValueError(
            "--benchmark_binary and --benchmark_sha256 are of one program: name it "
            "with --tools."
        )
    if args.cpu_mask and "apk" in args.tools:
        raise ValueError("--cpu_mask is not for --tools=apk, which Android schedules.")
    if args.benchmark_binary and not Path(args.benchmark_binary).is_file():
        raise ValueError(f"There is no file {args.benchmark_binary}.")
    if set(_cpu_mask(args)) - set(string.hexdigits):
        raise ValueError(
            f"--cpu_mask is hexadecimal, f0 for cores 4 to 7. Received: {args.cpu_mask}"
        )
    folder = args.npu_libraries
    if folder is not None and not list(Path(folder).glob("*.so")):
        raise ValueError(f"--npu_libraries={folder} holds no .so file.")
    if not args.parse:
        if "npu" in _android_accelerators(args):
            benchmark_tool.check_npu([], folder)
        adb.find_device(adb.find_adb(args.adb), args.serial)


def _cpu_mask(args) -> str:
    return args.cpu_mask.lower().removeprefix("0x")


def _programs(args, abi: str) -> dict[str, str]:
    """Returns the tools by name: the named program, or downloads."""
    if args.benchmark_binary:
        return {args.tools[0]: args.benchmark_binary}
    return {name: str(benchmark_tool.fetch(name, abi)) for name in args.tools}


def _check_hash(programs: dict[str, str], expected: str | None) -> None:
    for path in programs.values():
        if expected and sha256(path) != expected.lower():
            raise ValueError(
                f"{path} has the sha256 {sha256(path)}. Expected: {expected}."
            )


def _on_android(paths: list[str], args) -> Iterator[Measurement]:
    if args.parse:
        yield from android.parse_logs(args.parse, paths)
        return
    if "npu" in _android_accelerators(args):
        benchmark_tool.check_npu(paths, args.npu_libraries)
    device = adb.find_device(adb.find_adb(args.adb), args.serial)
    facts = android_device.read_facts(device)
    print(f"{facts.title} ({device.serial})", file=sys.stderr, flush=True)
    if facts.cores and args.num_threads > facts.cores:
        raise ValueError(
            f"{facts.model} has {facts.cores} cores. "
            f"Received: --num_threads={args.num_threads}."
        )
    programs = _programs(args, facts.abi)
    _check_hash(programs, args.benchmark_sha256)
    setup = android.Setup(
        tools=programs,
        accelerators=_android_accelerators(args),
        num_threads=args.num_threads,
        cpu_mask=_cpu_mask(args),
        runs=args.runs or RUNS,
        warmup_runs=args.warmup_runs,
        repeats=args.repeats,
        cool_down_s=args.cool_down,
        npu_libraries=args.npu_libraries,
        tool_flags=tuple(args.tool_flags),
    )
    with android.Session(device, facts, setup) as session:
        try:
            for measurement in android.measure_all(session, paths):
                _tell(measurement)
                yield measurement
        finally:
            print(f"pushed {session.store.pushed_bytes} bytes", file=sys.stderr)
            if args.clear:
                session.store.clear()


def _in_browsers(paths: list[str], args) -> Iterator[Measurement]:
    accelerators = _accelerators(args, browser.ACCELERATORS, browser.ACCELERATORS)
    server = browser.PageServer(
        paths,
        args.host,
        args.port,
        accelerators,
        args.num_threads,
        args.runs or RUNS,
        args.warmup_runs,
        args.certificate,
        args.key,
    )
    with server:
        _invite(server.address, args.browsers)
        for measurement in browser.measurements(server, args.browsers):
            _tell(measurement)
            yield measurement


def _check_browser(args) -> None:
    _accelerators(args, browser.ACCELERATORS, browser.ACCELERATORS)
    browser.runtime_version()


def _invite(address: str, browsers: int | None) -> None:
    """Says where the page is, for people with a phone in their hand."""
    with contextlib.suppress(ImportError):
        import segno

        segno.make(address).terminal(out=sys.stderr, compact=True)
    end = f"{browsers} browser(s) have measured" if browsers else "Ctrl-C"
    print(f"Open {address}\nuntil {end}.", file=sys.stderr, flush=True)
    if address.startswith("https:"):
        print(
            "By the name that the certificate is of, if that is another.",
            file=sys.stderr,
            flush=True,
        )
    if not address.startswith(("https:", "http://127.")):
        print(
            "Browsers give WebGPU and threads to HTTPS (--certificate) or localhost "
            "only; see docs/latency.md.",
            file=sys.stderr,
            flush=True,
        )


_ANDROID_FLAGS = (
    "accelerators",
    "adb",
    "benchmark_binary",
    "benchmark_sha256",
    "clear",
    "cool_down",
    "cpu_mask",
    "npu_libraries",
    "num_threads",
    "parse",
    "repeats",
    "runs",
    "serial",
    "tool_flags",
    "tools",
    "warmup_runs",
)
TARGETS = {
    "host": Target(
        "this machine's CPU",
        _on_host,
        (".tflite", ".onnx"),
        ("num_threads", "rounds", "runs", "warmup_runs"),
        (
            ("init", "init_ms"),
            *_TIMES,
            ("memory MB", "peak_memory_mb"),
            ("partitions", "partitions"),
        ),
    ),
    "android": Target(
        "an Android phone on a cable",
        _on_android,
        (".tflite",),
        _ANDROID_FLAGS,
        (
            ("init", "init_ms"),
            *_TIMES,
            ("memory MB", "peak_memory_mb"),
            ("partitions", "partitions"),
        ),
        may_refuse=True,
        check=_check_android,
    ),
    "browser": Target(
        "every browser that opens a page",
        _in_browsers,
        (".tflite",),
        (
            "accelerators",
            "browsers",
            "certificate",
            "host",
            "key",
            "num_threads",
            "port",
            "runs",
            "warmup_runs",
        ),
        (("init", "init_ms"), *_TIMES, ("difference", "max_abs_difference")),
        ends_by_hand=True,
        may_refuse=True,
        check=_check_browser,
    ),
    "coreml": Target(
        "this Mac, or an iPhone or iPad on a cable",
        _with_core_ml,
        (".mlpackage",),
        ("compute_units", "device", "runs", "team"),
        (
            ("load", "init_ms"),
            *(pair for pair in _TIMES if pair[0] != "warm-up"),
        ),
    ),
}


def check_flags(args) -> None:
    """Raises what is wrong whatever the files are: a ValueError or an AdbError."""
    heeded = TARGETS[args.target].flags
    for name in sorted({name for row in TARGETS.values() for name in row.flags}):
        if args[name].present and name not in heeded:
            targets = [key for key, row in TARGETS.items() if name in row.flags]
            raise ValueError(
                f"--{name} is for --target={' or '.join(targets)}: remove it."
            )
    TARGETS[args.target].check(args)


def check_paths(paths: list[str], target: str) -> None:
    """Raises a ValueError if a file is missing, or another target's."""
    missing = [path for path in paths if not Path(path).exists()]
    if missing:
        raise ValueError(f"There is no file {', '.join(missing)}.")
    for path in paths:
        suffix = Path(path).suffix
        if suffix in TARGETS[target].suffixes:
            continue
        others = [key for key, row in TARGETS.items() if suffix in row.suffixes]
        hint = f" --target={' or '.join(others)} takes it." if others else ""
        if suffix == ".keras":
            hint = " Convert it first, with tflite/convert.py."
        raise ValueError(
            f"{path} is no {' or '.join(TARGETS[target].suffixes)}, which "
            f"--target={target} takes.{hint}"
        )
