"""An Android device: what it is, its state, and the files on it."""

import dataclasses
import functools
import hashlib
import re
import time
from pathlib import Path

from tflite.drivers.adb import AdbError, Device
from tflite.drivers.measurement import printable
from tflite.validation.checksum import sha256

FOLDER = "/data/local/tmp/keras_mobilevit"  # where the shell may write and execute
COOL_STEP_S, COOL_LIMIT_S = 5, 120  # how long to wait for a throttled phone
HOT_CELSIUS = 40.0
LOW_BATTERY_PERCENT = 20
# PowerManager.THERMAL_STATUS_*
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
# Programs that compute a file's checksum, and their names in hashlib. Old devices lack
# the first.
DIGESTS = {"sha256sum": "sha256", "md5sum": "md5"}


@dataclasses.dataclass(frozen=True)
class DeviceInfo:
    """The model, chip and system of a device."""

    serial: str  # in adb
    model: str  # manufacturer and name
    soc: str  # system on a chip
    abi: str  # of the programs that it runs
    android: str  # version
    sdk: str  # API level
    fingerprint: str  # of the system's build
    cores: int
    max_mhz: list[int]  # of each core

    @property
    def title(self) -> str:
        """The model, its chip and its system."""
        parts = [self.model, self.soc, f"Android {self.android}"]
        return ", ".join(filter(None, parts))


@dataclasses.dataclass(frozen=True)
class State:
    """A device's state at one moment. What it does not report is `None`."""

    battery_percent: int | None
    battery_celsius: float | None
    thermal: str | None  # one of `THERMAL`
    allowed_mhz: list[int]  # frequency that each core may reach now

    def warnings(self, info: DeviceInfo) -> list[str]:
        """Returns what makes a measurement doubtful."""
        found = []
        if self.thermal not in (None, "none"):
            found.append(f"throttled: thermal status {self.thermal}")
        if self.battery_celsius is not None and self.battery_celsius >= HOT_CELSIUS:
            found.append(f"hot: battery at {self.battery_celsius} °C")
        if any(now < most for now, most in zip(self.allowed_mhz, info.max_mhz)):
            found.append(f"cores may reach {self.allowed_mhz} MHz of {info.max_mhz}")
        percent = self.battery_percent
        if percent is not None and percent < LOW_BATTERY_PERCENT:
            found.append(f"battery at {percent} %")
        return found


def _frequencies(device: Device, name: str) -> list[int]:
    """Returns a frequency of every core in MHz."""
    folder = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq"
    output = device.shell_output(f"cat {folder}/{name}")
    return [int(line) // 1000 for line in output.split() if line.isdecimal()]


def read_device_info(device: Device) -> DeviceInfo:
    """Reads the model, chip and system of a device."""

    def prop(name: str) -> str:
        return printable(device.shell_output(f"getprop {name}"))

    maker, model = prop("ro.product.manufacturer"), prop("ro.product.model")
    soc = f"{prop('ro.soc.manufacturer')} {prop('ro.soc.model')}".strip()
    cores = device.shell_output("ls -d /sys/devices/system/cpu/cpu[0-9]*").split()
    return DeviceInfo(
        serial=device.serial,
        model=model if model.lower().startswith(maker.lower()) else f"{maker} {model}",
        soc=soc or prop("ro.board.platform"),
        abi=prop("ro.product.cpu.abi"),
        android=prop("ro.build.version.release"),
        sdk=prop("ro.build.version.sdk"),
        fingerprint=prop("ro.build.fingerprint"),
        cores=len(cores),
        max_mhz=_frequencies(device, "cpuinfo_max_freq"),
    )


def _find_number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text, re.MULTILINE)
    return int(found[1]) if found else None


def read_state(device: Device) -> State:
    """Reads a device's state."""
    battery = device.shell_output("dumpsys battery")
    thermal = device.shell_output("dumpsys thermalservice")
    tenths = _find_number(r"^\s*temperature: (-?\d+)", battery)
    status = _find_number(r"^\s*Thermal Status: (\d+)", thermal)
    return State(
        battery_percent=_find_number(r"^\s*level: (\d+)", battery),
        battery_celsius=None if tenths is None else tenths / 10,
        thermal=None if status is None else THERMAL[min(status, len(THERMAL) - 1)],
        allowed_mhz=_frequencies(device, "scaling_max_freq"),
    )


def cool_down(device: Device, seconds: float) -> State:
    """Waits, longer while the device is throttled. Returns its state afterwards."""
    time.sleep(seconds)
    end = time.monotonic() + (COOL_LIMIT_S if seconds else 0)
    while True:
        state = read_state(device)
        if state.thermal in (None, "none") or time.monotonic() >= end:
            return state
        time.sleep(COOL_STEP_S)


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file on a device, with the checksum of the local file."""

    path: str
    sha256: str


@dataclasses.dataclass
class RemoteCache:
    """The files on a device. Their names contain the checksum of their content."""

    device: Device
    pushed_bytes: int = 0
    files: dict[str, RemoteFile] = dataclasses.field(default_factory=dict)

    def put(self, path: str | Path, executable: bool = False) -> RemoteFile:
        """Copies a file unless the device has it."""
        key = str(path)
        if key not in self.files:
            self.files[key] = self._put(path, executable)
        return self.files[key]

    def _put(self, path: str | Path, executable: bool) -> RemoteFile:
        content, name = sha256(path), re.sub(r"[^\w.-]", "_", Path(path).name)
        file = RemoteFile(f"{FOLDER}/{content[:16]}_{name}", content)
        digest = self._digest(path)
        if self._holds(file.path, digest):
            return file
        partial = f"{file.path}.part"
        self.device.shell(f"mkdir -p {FOLDER}")
        self.device.push(path, partial)
        self.pushed_bytes += Path(path).stat().st_size
        if not self._holds(partial, digest):
            self.device.shell(f"rm -f {partial}")
            raise AdbError(f"The copy of {path} on {self.device.serial} is damaged.")
        mode = "755" if executable else "644"
        moved = self.device.shell(f"chmod {mode} {partial} && mv {partial} {file.path}")
        if moved.code:
            raise AdbError(f"Storing {path} on the device failed: {moved.output}")
        return file

    @functools.cached_property
    def _program(self) -> str:
        for program in DIGESTS:
            if self.device.shell_output(f"command -v {program}"):
                return program
        raise AdbError(
            f"The device {self.device.serial} has none of {', '.join(DIGESTS)}, which "
            "check the copy of a file."
        )

    def _digest(self, path: str | Path) -> str:
        return hashlib.new(DIGESTS[self._program], Path(path).read_bytes()).hexdigest()

    def _holds(self, remote: str, digest: str) -> bool:
        output = self.device.shell_output(f"{self._program} {remote}")
        return output.startswith(digest)

    def clear(self) -> None:
        """Removes all files that any session copied."""
        self.device.shell(f"rm -rf {FOLDER}")
