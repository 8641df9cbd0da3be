"""Android devices through the `adb` client."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

TIMEOUT_S = 60  # of what is done in a moment
_SDK = ("ANDROID_HOME", "ANDROID_SDK_ROOT")
_EXIT = "exit code: "
# What to do about a state of `adb devices`.
_ADVICE = {
    "unauthorized": "Unlock it and allow USB debugging from this computer.",
    "authorizing": "Unlock it and allow USB debugging from this computer.",
    "offline": "Pull the cable and plug it in again, or run `adb reconnect`.",
}


class AdbError(RuntimeError):
    """A device that cannot be reached, or a transfer that failed."""


class AdbTimeout(AdbError):
    """A command that did not end."""


@dataclasses.dataclass(frozen=True)
class Completed:
    """A command that ended on a device.

    Attributes:
        output: what it wrote to stdout and stderr, as it came.
        code: its exit code.
    """

    output: str
    code: int


def find_adb(path: str | None = None) -> str:
    """Finds the client.

    Args:
        path: where it is. By default it is looked for on PATH, in the Android SDK that
            `ANDROID_HOME` names, and in the package adbutils, which carries one.

    Returns:
        Its path.

    Raises:
        ValueError: if there is none.
    """
    if path:
        if not os.access(path, os.X_OK):
            raise ValueError(f"--adb={path} is no program.")
        return path
    folders = [os.environ[name] for name in _SDK if os.environ.get(name)]
    candidates = [shutil.which("adb")]
    candidates += [shutil.which("adb", path=f"{f}/platform-tools") for f in folders]
    package = importlib.util.find_spec("adbutils")
    if package:
        folder = Path(package.origin).parent / "binaries"
        candidates.append(shutil.which("adb", path=str(folder)))
    found = next(filter(None, candidates), None)
    if found is None:
        raise ValueError(
            "There is no adb on PATH or under ANDROID_HOME. Install Android's platform "
            "tools, pip install adbutils (which carries it), or name it with --adb."
        )
    return found


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise AdbTimeout(
            f"`adb {' '.join(command[1:])}` did not end within {timeout:.0f} s."
        ) from error


def _told(result: subprocess.CompletedProcess) -> str:
    """Returns why the client failed, in its own last words."""
    lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {result.returncode}"


def list_devices(adb: str) -> dict[str, str]:
    """Returns `{serial: state}`; the state of one that works is `device`."""
    result = _run([adb, "devices"], TIMEOUT_S)
    if result.returncode:
        raise AdbError(f"`adb devices` failed: {result.stderr.strip()}")
    lines = result.stdout.partition("List of devices attached")[2].splitlines()
    pairs = (line.split(None, 1) for line in lines if line.strip())
    return {serial: state.split(";")[0].strip() for serial, state in pairs}


def find_device(adb: str, serial: str | None = None) -> "Device":
    """Returns the device of a serial number, of `ANDROID_SERIAL`, or the only one.

    Raises:
        AdbError: if there is none, there are several, or it does not let us in.
    """
    serial = serial or os.environ.get("ANDROID_SERIAL") or None
    devices = list_devices(adb)
    shown = ", ".join(f"{name} ({state})" for name, state in devices.items())
    if not devices:
        raise AdbError(
            "No Android device is connected. Turn on USB debugging in its developer "
            f"options and plug it in; `{adb} devices` must list it."
        )
    if serial is None and len(devices) > 1:
        raise AdbError(f"Choose one of the devices with --serial: {shown}.")
    serial = serial or next(iter(devices))
    if serial not in devices:
        raise AdbError(f"No device has the serial number {serial}. There are: {shown}.")
    state = devices[serial]
    if state != "device":
        advice = _ADVICE.get(state.split()[0], "See `adb devices`.")
        raise AdbError(f"The device {serial} is {state}. {advice}")
    return Device(adb, serial)


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that works.

    Attributes:
        adb: path of the client.
        serial: by which adb knows it.
    """

    adb: str
    serial: str

    def _adb(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess:
        return _run([self.adb, "-s", self.serial, *arguments], timeout)

    def shell(self, command: str, timeout: float = TIMEOUT_S) -> Completed:
        """Runs a command of the device's shell to its end, whatever its exit code.

        The code is printed by the shell itself: old devices do not send it, and a
        connection that breaks ends the client as if all were well.

        Raises:
            AdbError: if the connection breaks.
        """
        text = f'exec 2>&1\n( {command}\n)\ncode=$?; echo; echo "{_EXIT}$code"'
        result = self._adb("shell", text, timeout=timeout)
        output = result.stdout.replace("\r\n", "\n")
        found = re.search(rf"\n{_EXIT}(\d+)\s*$", output)
        if not found:
            told = result.stderr.strip() or "the connection broke"
            raise AdbError(
                f"The device {self.serial} was lost while it ran `{command}`: {told}"
            )
        return Completed(output[: found.start()], int(found[1]))

    def ask(self, command: str) -> str:
        """Returns what a command says, without spaces around; "" if it fails."""
        completed = self.shell(command)
        return "" if completed.code else completed.output.strip()

    def push(self, local, remote: str) -> None:
        """Copies a file to the device; a broken copy does not stay there."""
        seconds = TIMEOUT_S + Path(local).stat().st_size / 1e5
        result = self._adb("push", str(local), remote, timeout=seconds)
        if result.returncode:
            with contextlib.suppress(AdbError):  # of a device that is lost
                self.shell(f"rm -f {remote}")
            raise AdbError(f"Copying {local} to the device failed: {_told(result)}")

    def pull(self, remote: str, local) -> None:
        """Copies a file from the device."""
        result = self._adb("pull", remote, str(local), timeout=TIMEOUT_S)
        if result.returncode:
            raise AdbError(f"Copying {remote} from the device failed: {_told(result)}")

    def install(self, apk) -> None:
        """Installs an app, in place of any other version."""
        result = self._adb("install", "-r", "-d", "-g", str(apk), timeout=5 * TIMEOUT_S)
        if result.returncode:
            raise AdbError(f"Installing {apk} failed: {_told(result)}")
