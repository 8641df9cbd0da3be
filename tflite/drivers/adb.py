"""Android devices through the library adbutils, which talks to the adb server.

The adb client itself pushes files: the push of adbutils has no timeout and drops the
device's reason for a failure.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

TIMEOUT_S = 60  # for commands that take a moment
PUSH_BYTES_PER_S = 1e5  # the slowest connection that a push still waits for
SDK_VARIABLES = ("ANDROID_HOME", "ANDROID_SDK_ROOT")
# What to do about a state that `adb devices` shows.
_ADVICE = {
    "unauthorized": "Unlock it and allow USB debugging from this computer.",
    "authorizing": "Unlock it and allow USB debugging from this computer.",
    "offline": "Unplug it and plug it in again, or run `adb reconnect`.",
}


class AdbError(RuntimeError):
    """The device cannot be reached, or a transfer failed."""


class AdbTimeout(AdbError):
    """A command did not end in time."""


@dataclasses.dataclass(frozen=True)
class ShellResult:
    """Result of a command that ended on a device."""

    output: str  # stdout and stderr
    code: int


def use_client(path: str | None) -> None:
    """Makes adbutils use the adb client at `path`, or else one that is found.

    The order is PATH, the Android SDK, and the client that adbutils includes.
    """
    if path is not None:
        if not os.access(path, os.X_OK):
            raise ValueError(f"--adb={path} is not an executable file.")
        os.environ["ADBUTILS_ADB_PATH"] = path
        return
    client = _sdk_client()
    if client and not shutil.which("adb"):
        os.environ.setdefault("ADBUTILS_ADB_PATH", client)
    _find_client()


def _sdk_client() -> str | None:
    """Returns the adb client of the SDK that an environment variable names, if any."""
    sdks = [os.environ[name] for name in SDK_VARIABLES if os.environ.get(name)]
    folders = [os.path.join(sdk, "platform-tools") for sdk in sdks]
    return shutil.which("adb", path=os.pathsep.join(folders)) if folders else None


def _find_client() -> str:
    """Returns the path of the adb client that adbutils uses."""
    adbutils = _import_adbutils()
    try:
        return adbutils.adb_path()
    except (adbutils.AdbError, RuntimeError) as error:  # depends on the version
        raise AdbError(
            "No adb client was found on PATH, in the Android SDK that ANDROID_HOME or "
            "ANDROID_SDK_ROOT names, or in the package adbutils. Install Android's "
            "platform tools, or set --adb to the path of the client."
        ) from error


@contextlib.contextmanager
def _adb_errors(failure: str) -> Iterator[None]:
    """Turns an error of adbutils or of its connection into an `AdbError`."""
    import adbutils

    try:
        yield
    except adbutils.AdbTimeout as error:
        raise AdbTimeout(f"{failure}: there was no answer in time.") from error
    except (adbutils.AdbError, OSError, EOFError, ValueError) as error:
        reason = error.args[0] if error.args else error
        raise AdbError(f"{failure}: {reason}") from error


def _import_adbutils() -> ModuleType:
    try:
        import adbutils
    except ImportError as error:
        raise AdbError(
            f"--target=android needs adbutils: pip install '.[tflite]' ({error})."
        ) from error
    return adbutils


def _client():
    return _import_adbutils().AdbClient()


def find_device(serial: str | None = None) -> "Device":
    """Returns the device with a serial number.

    The default is `ANDROID_SERIAL`, or the only device. Raises an AdbError if no
    device, several devices or an unusable device were found.
    """
    serial = serial or os.environ.get("ANDROID_SERIAL") or None
    client = _client()
    with _adb_errors("Listing the Android devices failed"):
        devices = {device.serial: device.state for device in client.list()}
    names = ", ".join(f"{name} ({state})" for name, state in devices.items())
    if not devices:
        raise AdbError(
            "No Android device is connected. Turn on USB debugging in its developer "
            "options and plug it in; `adb devices` must list it."
        )
    if serial is None and len(devices) > 1:
        raise AdbError(f"Choose one of the devices with --serial: {names}.")
    serial = serial or next(iter(devices))
    if serial not in devices:
        raise AdbError(f"No device has the serial number {serial}. Found: {names}.")
    state = devices[serial]
    if state != "device":
        advice = _ADVICE.get(state, "See `adb devices`.")
        raise AdbError(f"The device {serial} is {state}. {advice}")
    return Device(serial)


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that can be used."""

    serial: str

    def shell(self, command: str, timeout: float = TIMEOUT_S) -> ShellResult:
        """Runs a shell command to its end, whatever its exit code.

        Raises an AdbTimeout if the command prints nothing for so many seconds, or an
        AdbError if the connection breaks.
        """
        device = _client().device(self.serial)
        try:
            with _adb_errors(
                f"The device {self.serial} was lost while it ran `{command}`"
            ):
                # The first version of the shell protocol, which every device has: the
                # shell prints the exit code last, so a broken connection is noticed.
                result = device.shell2(f"exec 2>&1\n( {command}\n)", timeout)
        except AdbTimeout as error:
            raise AdbTimeout(
                f"`{command}` did not end within {timeout:.0f} s."
            ) from error
        return ShellResult(result.output.replace("\r\n", "\n"), result.returncode)

    def shell_output(self, command: str) -> str:
        """Returns the stripped output of a command; "" if it fails."""
        result = self.shell(command)
        return "" if result.code else result.output.strip()

    def push(self, local: str | Path, remote: str) -> None:
        """Copies a file to the device. Removes a partial copy."""
        seconds = TIMEOUT_S + Path(local).stat().st_size / PUSH_BYTES_PER_S
        command = [_find_client(), "-s", self.serial, "push", str(local), remote]
        try:
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise AdbTimeout(
                f"Copying {local} to the device did not end within {seconds:.0f} s."
            ) from error
        if result.returncode:
            with contextlib.suppress(AdbError):  # the device may be lost
                self.shell(f"rm -f {remote}")
            reason = result.stdout.strip() or f"exit code {result.returncode}"
            raise AdbError(
                f"Copying {local} to the device failed: {reason.splitlines()[-1]}"
            )

    def read_bytes(self, remote: str) -> bytes:
        """Returns the content of a file on the device."""
        device = _client().device(self.serial)
        with _adb_errors(f"Reading {remote} from the device failed"):
            return device.sync.read_bytes(remote)
