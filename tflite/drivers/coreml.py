"""Measures Core ML packages on this Mac, or on an iPhone or iPad on a cable.

The benchmarker of coremltools measures. Core ML exists on Apple's systems only.
Elsewhere a record says that nothing was measured.
"""

import asyncio
import collections
import dataclasses
import platform
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from tflite.drivers.measurement import NOT_MEASURED, Measurement, summarize
from tflite.drivers.options import check_choices, option
from tflite.validation.checksum import sha256

# Names of coremltools' `ComputeUnit` by the values of --compute_units.
COMPUTE_UNITS = {"cpu": "CPU_ONLY", "cpu+gpu": "CPU_AND_GPU", "cpu+ane": "CPU_AND_NE"}
THIS_MAC = "mac"
DEVICES = (THIS_MAC, "iphone", "ipad")
NO_CORE_ML = (
    "Core ML runs on macOS only. Run this on a Mac (macOS 13 or later, for a phone "
    "on a cable also Xcode 16), or read docs/coreml.md on Xcode's performance report."
)
NEURAL_ENGINE = "Neural Engine"
UNIT_NAMES = {
    "MLCPUComputeDevice": "CPU",
    "MLGPUComputeDevice": "GPU",
    "MLNeuralEngineComputeDevice": NEURAL_ENGINE,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoreMLOptions:
    """Options of `--target=coreml`."""

    compute_units: tuple[str, ...] = option(
        tuple(COMPUTE_UNITS),
        "Processors that may run the packages, one choice after the other. ane: the "
        "Neural Engine.",
    )
    device: str = option(
        THIS_MAC,
        "Device to measure: this Mac, or the first iPhone or iPad on a cable.",
        enum_values=DEVICES,
    )
    team: str = option(
        "", "Apple development team, which signs the program for --device."
    )
    runs: int = option(
        100, "Measured runs of each package; the paper has 100.", lower_bound=1
    )

    def __post_init__(self) -> None:
        """Raises a ValueError if a compute unit is unknown."""
        check_choices("compute_units", self.compute_units, COMPUTE_UNITS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageMeasurement(Measurement):
    """Latency of one package with some of a device's compute units.

    `accelerator` is a key of `COMPUTE_UNITS`. `init_ms` is the time to load the
    compiled package, without its compilation. `operations` counts those that Core ML
    plans for each unit; `off_engine` lists those that it plans elsewhere though the
    Neural Engine may be used, `type output: unit` each.
    """

    runtime: str = "coreml"
    operations: dict[str, int] = dataclasses.field(default_factory=dict)
    off_engine: list[str] = dataclasses.field(default_factory=list)

    def notes(self) -> list[str]:
        """Returns what a reader must know beside the numbers."""
        off = [f"not on the Neural Engine: {name}" for name in self.off_engine]
        return super().notes() + off


def _not_measured(
    path: str, unit: str, reason: str, device: str = ""
) -> PackageMeasurement:
    return PackageMeasurement(
        file=path,
        sha256=sha256(path),
        accelerator=unit,
        device=device,
        status=NOT_MEASURED,
        reason=reason,
    )


def is_available() -> bool:
    """Returns whether this machine has Core ML."""
    return sys.platform == "darwin"


def _planned(operations: Iterable) -> list[tuple[str, str]]:
    """Returns `(type and output, unit)` of every operation that Core ML plans."""
    planned = []
    for operation in operations:
        usage = operation.compute_device_usage
        if usage is None:  # a constant
            continue
        kind = type(usage.preferred_compute_device).__name__
        outputs = ", ".join(output.name for output in operation.spec.outputs)
        name = f"{operation.spec.type} {outputs}"
        planned.append((name, UNIT_NAMES.get(kind, kind)))
    return planned


async def measure_with(
    benchmarker: Any, path: str, unit: str, device: str, runs: int
) -> PackageMeasurement:
    """Measures one package with an `MLModelBenchmarker` of it."""
    load = await benchmarker.benchmark_load(iterations=1)
    first = await benchmarker.benchmark_predict(iterations=1)
    measured = await benchmarker.benchmark_predict(iterations=runs, warmup=True)
    planned = _planned(await benchmarker.benchmark_operation_execution(iterations=1))
    off_engine = [f"{name}: {used}" for name, used in planned if used != NEURAL_ENGINE]
    return PackageMeasurement(
        file=path,
        sha256=sha256(path),
        accelerator=unit,
        device=device,
        init_ms=load.samples[0],
        first_ms=first.samples[0],
        **summarize(measured.samples),
        operations=dict(collections.Counter(used for _, used in planned)),
        off_engine=off_engine if unit == "cpu+ane" else [],
    )


async def _find_device(options: CoreMLOptions) -> tuple[Any, str]:
    """Returns a device with the runner of coremltools, and its name.

    This Mac is `None`. All others are on a cable.
    """
    kind = options.device
    if kind == THIS_MAC:
        return None, f"{platform.node()}, macOS {platform.mac_ver()[0]}"
    from coremltools.models.ml_program.experimental.remote_device import (
        AppSigningCredentials,
        Device,
        DeviceType,
    )

    if not options.team:
        raise ValueError(
            f"--device={kind} needs --team, which signs the program for the device."
        )
    connected = Device.get_connected_devices(DeviceType(kind))
    if not connected:
        raise ValueError(
            f"No {kind} is connected. Plug it in, unlock it, trust this Mac, and turn "
            "on its developer mode (Settings, Privacy & Security)."
        )
    credentials = AppSigningCredentials(development_team=options.team)
    try:
        device = await connected[0].prepare_for_model_debugging(credentials)
    except Exception as error:  # coremltools has several kinds
        raise RuntimeError(f"{connected[0].name} cannot be used: {error}") from error
    return device, f"{device.name}, {device.type.value} {device.os_version}"


def _benchmarker(path: str, unit: str, device: Any) -> Any:
    from tflite.formats.coreml.package import load_coremltools

    ct = load_coremltools()
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

    model = ct.models.MLModel(
        path,
        compute_units=getattr(ct.ComputeUnit, COMPUTE_UNITS[unit]),
        skip_model_load=True,  # the benchmarker loads it and measures the time
    )
    return MLModelBenchmarker(model, device)


def measure(paths: list[str], options: CoreMLOptions) -> Iterator[PackageMeasurement]:
    """Measures packages with each of the compute units.

    A measurement says why Core ML does not run a package.
    """
    pairs = [(path, unit) for path in paths for unit in options.compute_units]
    if not is_available():
        yield from (_not_measured(path, unit, NO_CORE_ML) for path, unit in pairs)
        return
    from tflite.formats.coreml.package import load_coremltools

    load_coremltools()  # says what to install
    loop = asyncio.new_event_loop()
    try:
        device, name = loop.run_until_complete(_find_device(options))
        for path, unit in tqdm(pairs, "measuring", disable=None, leave=False):
            try:
                benchmarker = _benchmarker(path, unit, device)
                running = measure_with(benchmarker, path, unit, name, options.runs)
                yield loop.run_until_complete(running)
            except Exception as error:  # coremltools has several kinds
                yield _not_measured(path, unit, str(error), name)
    finally:
        loop.close()
