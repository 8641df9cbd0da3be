"""Measures Core ML packages: on this Mac, or on an iPhone or iPad on a cable.

By coremltools's own benchmarker. Core ML exists on Apple's systems only; elsewhere a
record says that nothing was measured.
"""

import asyncio
import collections
import dataclasses
import platform
import sys
from collections.abc import Iterator

from tqdm import tqdm

from tflite.drivers.measurement import NOT_MEASURED, Measurement, summary
from tflite.validation.checksum import sha256

# What may run a package, by the names of coremltools's `ComputeUnit`.
COMPUTE_UNITS = {"cpu": "CPU_ONLY", "cpu+gpu": "CPU_AND_GPU", "cpu+ane": "CPU_AND_NE"}
RUNS = 100  # as in the paper, table 3
THIS_MAC = "mac"
DEVICES = (THIS_MAC, "iphone", "ipad")
NEEDED = (
    "Core ML runs on macOS only. Run this on a Mac (macOS 13 or later, for a phone "
    "on a cable also Xcode 16), or read docs/coreml.md on Xcode's performance report."
)
DEVICE_NAMES = {
    "MLCPUComputeDevice": "CPU",
    "MLGPUComputeDevice": "GPU",
    "MLNeuralEngineComputeDevice": "Neural Engine",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageMeasurement(Measurement):
    """One package's latency with some of a device's compute units.

    `accelerator` is a key of `COMPUTE_UNITS`; `init_ms` is loading the compiled
    package, without its compilation.

    Attributes:
        operations: how many each compute unit runs, as Core ML plans it.
        off_engine: operations that are not planned on the Neural Engine though it may
            be used, `kind output: unit` each.
    """

    runtime: str = "coreml"
    operations: dict[str, int] = dataclasses.field(default_factory=dict)
    off_engine: list[str] = dataclasses.field(default_factory=list)

    def notes(self) -> list[str]:
        off = [f"not on the Neural Engine: {name}" for name in self.off_engine]
        return super().notes() + off


def check_units(units) -> None:
    """Raises a ValueError if one is not known."""
    unknown = [unit for unit in units if unit not in COMPUTE_UNITS]
    if unknown or not units:
        raise ValueError(
            f"Expected some of: {', '.join(COMPUTE_UNITS)}. Received: "
            f"--compute_units={','.join(units)}."
        )


def not_measured(
    paths, units, reason: str = NEEDED, device: str = ""
) -> list[PackageMeasurement]:
    """Returns the records of packages that Core ML does not run."""
    return [
        PackageMeasurement(
            file=path,
            sha256=sha256(path),
            accelerator=unit,
            device=device,
            status=NOT_MEASURED,
            reason=reason,
        )
        for path in paths
        for unit in units
    ]


def is_available() -> bool:
    """Tells whether this machine has Core ML."""
    return sys.platform == "darwin"


def _planned(information) -> list[tuple[str, str]]:
    """Returns `(kind and output, unit)` of every operation that Core ML plans."""
    planned = []
    for operation in information:
        usage = operation.compute_device_usage
        if usage is None:  # of constants
            continue
        kind = type(usage.preferred_compute_device).__name__
        outputs = ", ".join(output.name for output in operation.spec.outputs)
        name = f"{operation.spec.type} {outputs}"
        planned.append((name, DEVICE_NAMES.get(kind, kind)))
    return planned


async def measure_with(benchmarker, path: str, unit: str, device: str, runs: int):
    """Measures one package.

    Args:
        benchmarker: an `MLModelBenchmarker` of it.
        path: of the package.
        unit: a key of `COMPUTE_UNITS`.
        device: name and system of the device.
        runs: measured predictions.

    Returns:
        A `PackageMeasurement`.
    """
    load = await benchmarker.benchmark_load(iterations=1)
    first = await benchmarker.benchmark_predict(iterations=1)
    measured = await benchmarker.benchmark_predict(iterations=runs, warmup=True)
    planned = _planned(await benchmarker.benchmark_operation_execution(iterations=1))
    uses_engine = unit == "cpu+ane"
    return PackageMeasurement(
        file=path,
        sha256=sha256(path),
        accelerator=unit,
        device=device,
        init_ms=load.samples[0],
        first_ms=first.samples[0],
        **summary(measured.samples),
        operations=dict(collections.Counter(unit for _, unit in planned)),
        off_engine=[
            f"{name}: {unit}"
            for name, unit in planned
            if uses_engine and unit != "Neural Engine"
        ],
    )


async def _connect(kind: str, team: str):
    """Finds a device on a cable and starts coremltools's runner on it."""
    from coremltools.models.ml_program.experimental.remote_device import (
        AppSigningCredentials,
        Device,
        DeviceType,
    )

    if not team:
        raise ValueError(f"--device={kind} takes --team, which signs the runner on it.")
    connected = Device.get_connected_devices(DeviceType(kind))
    if not connected:
        raise ValueError(
            f"No {kind} is connected. Plug it in, unlock it, trust this Mac, and turn "
            "on its developer mode (Settings, Privacy & Security)."
        )
    credentials = AppSigningCredentials(development_team=team)
    try:
        device = await connected[0].prepare_for_model_debugging(credentials)
    except Exception as error:  # of several kinds of coremltools's own
        raise RuntimeError(f"{connected[0].name} cannot be used: {error}") from error
    return device, f"{device.name}, {device.type.value} {device.os_version}"


async def _device(kind: str, team: str):
    """Returns coremltools's device, `None` for this Mac, and what it is called."""
    if kind != THIS_MAC:
        return await _connect(kind, team)
    return None, f"{platform.node()}, macOS {platform.mac_ver()[0]}"


def _benchmarker(path: str, unit: str, device):
    """Returns coremltools's benchmarker of a package."""
    from tflite.formats.coreml.package import load_coremltools

    ct = load_coremltools()
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

    model = ct.models.MLModel(
        path,
        compute_units=getattr(ct.ComputeUnit, COMPUTE_UNITS[unit]),
        skip_model_load=True,  # the benchmarker loads it, and takes the time
    )
    return MLModelBenchmarker(model, device)


def measure_all(
    paths: list[str],
    units: list[str],
    kind: str = THIS_MAC,
    team: str = "",
    runs: int = RUNS,
) -> Iterator[PackageMeasurement]:
    """Measures packages with each of some compute units.

    Args:
        paths: of the packages.
        units: keys of `COMPUTE_UNITS`.
        kind: `mac` for this machine, `iphone` or `ipad` for the first one connected.
        team: the development team that signs coremltools's runner for it.
        runs: measured predictions.

    Yields:
        A `PackageMeasurement` for each package and unit, as it is measured. One that
        Core ML refuses says so; the others are measured.

    Raises:
        ValueError: without coremltools, or without such a device.
        RuntimeError: if the device cannot be used.
    """
    from tflite.formats.coreml.package import load_coremltools

    load_coremltools()  # says what to install
    loop = asyncio.new_event_loop()
    try:
        device, name = loop.run_until_complete(_device(kind, team))
        pairs = [(path, unit) for path in paths for unit in units]
        for path, unit in tqdm(pairs, "measuring", disable=None, leave=False):
            try:
                made = _benchmarker(path, unit, device)
                measuring = measure_with(made, path, unit, name, runs)
                found = loop.run_until_complete(measuring)
            except Exception as error:  # of several kinds of coremltools's own
                (found,) = not_measured([path], [unit], str(error), name)
            yield found
    finally:
        loop.close()
