"""What an Android device is, how it is at a moment, and the files on it."""

import dataclasses
import functools
import hashlib
import re
import time
from pathlib import Path
from typing import NamedTuple

from tflite.drivers.adb import AdbError, Device
from tflite.drivers.measurement import printable
from tflite.validation.checksum import sha256

FOLDER = "/data/local/tmp/keras_mobilevit"  # where a shell may write and run
COOL_STEP_S, COOL_LIMIT_S = 5, 120  # how a hot phone is waited for
HOT_CELSIUS = 40.0
# PowerManager.THERMAL_STATUS_*
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a device is.

    Attributes:
        serial: by which adb knows it.
        model: maker and name.
        soc: system on a chip.
        abi: for which programs are built.
        android: version of the system.
        sdk: likewise, as a number.
        fingerprint: of the system's build.
        cores: how many.
        max_mhz: highest frequency of each of them.
    """

    serial: str
    model: str
    soc: str
    abi: str
    android: str
    sdk: str
    fingerprint: str
    cores: int
    max_mhz: list[int]

    @property
    def title(self) -> str:
        return ", ".join(
            filter(None, [self.model, self.soc, f"Android {self.android}"])
        )


@dataclasses.dataclass(frozen=True)
class State:
    """How a device is at one moment; `None` of what it does not tell.

    Attributes:
        battery_percent: charge.
        battery_celsius: temperature.
        thermal: one of `THERMAL`.
        allowed_mhz: frequency that each core may reach now.
    """

    battery_percent: int | None
    battery_celsius: float | None
    thermal: str | None
    allowed_mhz: list[int]

    def warnings(self, facts: Facts) -> list[str]:
        """Returns what makes a measurement doubtful."""
        found = []
        if self.thermal not in (None, "none"):
            found.append(f"throttled: thermal status {self.thermal}")
        if self.battery_celsius is not None and self.battery_celsius >= HOT_CELSIUS:
            found.append(f"hot: battery at {self.battery_celsius} °C")
        if any(now < most for now, most in zip(self.allowed_mhz, facts.max_mhz)):
            found.append(f"cores may reach {self.allowed_mhz} MHz of {facts.max_mhz}")
        if self.battery_percent is not None and self.battery_percent < 20:
            found.append(f"battery at {self.battery_percent} %")
        return found


def _frequencies(device: Device, name: str) -> list[int]:
    """Returns a frequency of every core in MHz."""
    folder = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq"
    told = device.ask(f"cat {folder}/{name}")
    return [int(line) // 1000 for line in told.split() if line.isdecimal()]


def read_facts(device: Device) -> Facts:
    """Asks a device what it is."""

    def prop(name: str) -> str:
        return printable(device.ask(f"getprop {name}"))

    maker, model = prop("ro.product.manufacturer"), prop("ro.product.model")
    soc = f"{prop('ro.soc.manufacturer')} {prop('ro.soc.model')}".strip()
    return Facts(
        serial=device.serial,
        model=model if model.lower().startswith(maker.lower()) else f"{maker} {model}",
        soc=soc or prop("ro.board.platform"),
        abi=prop("ro.product.cpu.abi"),
        android=prop("ro.build.version.release"),
        sdk=prop("ro.build.version.sdk"),
        fingerprint=prop("ro.build.fingerprint"),
        cores=len(device.ask("ls -d /sys/devices/system/cpu/cpu[0-9]*").split()),
        max_mhz=_frequencies(device, "cpuinfo_max_freq"),
    )


def _found(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text, re.MULTILINE)
    return int(found[1]) if found else None


def read_state(device: Device) -> State:
    """Asks a device how it is."""
    battery = device.ask("dumpsys battery")
    tenths = _found(r"^\s*temperature: (-?\d+)", battery)
    status = _found(r"^\s*Thermal Status: (\d+)", device.ask("dumpsys thermalservice"))
    return State(
        battery_percent=_found(r"^\s*level: (\d+)", battery),
        battery_celsius=None if tenths is None else tenths / 10,
        thermal=None if status is None else THERMAL[min(status, len(THERMAL) - 1)],
        allowed_mhz=_frequencies(device, "scaling_max_freq"),
    )


def cool_down(device: Device, seconds: float) -> State:
    """Waits, and longer while the device is throttled; returns its state then."""
    time.sleep(seconds)
    end = time.monotonic() + (COOL_LIMIT_S if seconds else 0)
    while True:
        state = read_state(device)
        if state.thermal in (None, "none") or time.monotonic() >= end:
            return state
        time.sleep(COOL_STEP_S)


# Programs of a device that tell a file's content, and how Python does. Old ones lack
# the first.
DIGESTS = {"sha256sum": "sha256", "md5sum": "md5"}


class Stored(NamedTuple):
    """A file on a device: where, and the sha256 of what was copied there."""

    place: str
    sha256: str


@dataclasses.dataclass
class Store:
    """The files on a device, by their content.

    Attributes:
        device: where they are.
        pushed_bytes: what was copied there.
        files: what is there, by the path here.
    """

    device: Device
    pushed_bytes: int = 0
    files: dict[str, Stored] = dataclasses.field(default_factory=dict)

    def put(self, path, executable: bool = False) -> Stored:
        """Copies a file unless it is there already.

        Raises:
            AdbError: if it cannot be copied whole.
        """
        key = str(path)
        if key not in self.files:
            self.files[key] = self._put(path, executable)
        return self.files[key]

    def _put(self, path, executable: bool) -> Stored:
        content, name = sha256(path), re.sub(r"[^\w.-]", "_", Path(path).name)
        remote = f"{FOLDER}/{content[:16]}_{name}"
        stored, digest = Stored(remote, content), self._digest(path)
        if self._holds(remote, digest):
            return stored
        partial = f"{remote}.part"
        self.device.shell(f"mkdir -p {FOLDER}")
        self.device.push(path, partial)
        self.pushed_bytes += Path(path).stat().st_size
        if not self._holds(partial, digest):
            self.device.shell(f"rm -f {partial}")
            raise AdbError(f"{path} did not arrive whole on {self.device.serial}.")
        mode = "755" if executable else "644"
        moved = self.device.shell(f"chmod {mode} {partial} && mv {partial} {remote}")
        if moved.code:
            raise AdbError(f"Storing {path} on the device failed: {moved.output}")
        return stored

    @functools.cached_property
    def _program(self) -> str:
        for program in DIGESTS:
            if self.device.ask(f"command -v {program}"):
                return program
        raise AdbError(
            f"The device {self.device.serial} has none of {', '.join(DIGESTS)}, which "
            "tell whether a file arrived whole."
        )

    def _digest(self, path) -> str:
        return hashlib.new(DIGESTS[self._program], Path(path).read_bytes()).hexdigest()

    def _holds(self, remote: str, digest: str) -> bool:
        return self.device.ask(f"{self._program} {remote}").startswith(digest)

    def clear(self) -> None:
        """Removes everything that was ever put there."""
        self.device.shell(f"rm -rf {FOLDER}")
