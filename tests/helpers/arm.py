"""An emulated ARM CPU that runs `.tflite` files, to compare outputs but not speed.

On phones XNNPACK picks other kernels than on x86: NEON for float32, float16 arithmetic
for files that allow it, dot products for int8. QEMU's Cortex-A76 runs these kernels.
Nothing is installed: Debian packages and Python wheels are unpacked into a folder.
"""

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".arm"
RUNNER = ROOT / "tests" / "helpers" / "arm_runner.py"
CONSTRAINTS = ROOT / "constraints.txt"
PREPARE_TIMEOUT_S, RUN_TIMEOUT_S = 600, 3600
CPU = "cortex-a76"
PYTHON = "3.11"  # Debian 12's
EMULATOR = "usr/bin/qemu-aarch64-static"
PACKAGES = (
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libssl3",
    "libbz2-1.0",
    "liblzma5",
    "libuuid1",
    "libcrypt1",
)
WHEELS = ("numpy", "ai-edge-litert")
# apt keeps its lists and packages in a folder of ours. So it needs no root and leaves
# the system unchanged.
APT = """
Dir::State "{folder}/state";
Dir::State::status "/dev/null";
Dir::Cache "{folder}/cache";
APT::Architectures {{ "{native}"; "arm64"; }};
APT::Sandbox::User "";
Acquire::Languages "none";
"""
# A Cortex-A76's. The host's own file describes another CPU, and XNNPACK would crash.
CPU_INFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid \
asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
SYSTEM_FILES = {
    "proc/cpuinfo": CPU_INFO,
    **{
        f"sys/devices/system/cpu/{name}": "0\n"
        for name in ("possible", "present", "online")
    },
}


@dataclasses.dataclass(frozen=True)
class Result:
    """The outputs of a file on the ARM CPU.

    Attributes:
        outputs: real numbers `[images, ...]` by the names of the outputs.
        partitions: number of partitions that XNNPACK runs.
    """

    outputs: dict[str, np.ndarray]
    partitions: int


@dataclasses.dataclass(frozen=True)
class ArmMachine:
    """An emulated ARM CPU with Python, NumPy and LiteRT.

    Attributes:
        folder: the folder that `prepare` filled.

    Example:

    >>> machine = prepare()
    >>> machine.run([Path("mobilevit_xxs_fp16.tflite")], images, tmp_path)
    {'mobilevit_xxs_fp16.tflite': Result(outputs={'logits': ...}, partitions=1)}
    """

    folder: Path

    def run(self, files, images: np.ndarray, scratch: Path) -> dict[str, Result]:
        """Runs every file on every image, one by one.

        Args:
            files: paths of `.tflite` files with different names.
            images: float32 `[images, height, width, channels]` in the range that the
                files take.
            scratch: folder for the images and the outputs.

        Returns:
            The results by the names of the files.

        Raises:
            RuntimeError: if the program on the emulated machine fails.
        """
        np.save(scratch / "images.npy", images)
        output = scratch / "outputs.npz"
        root, paths = self.folder / "root", (self.folder / "site", ROOT)
        _call(
            [
                self.folder / EMULATOR,
                *("-cpu", CPU, "-L", root),
                *("-E", f"PYTHONPATH={os.pathsep.join(map(str, paths))}"),
                *("-E", f"PYTHONHOME={root / 'usr'}"),
                root / f"usr/bin/python{PYTHON}",
                *(RUNNER, scratch / "images.npy", output, *files),
            ],
            RUN_TIMEOUT_S,
        )
        with np.load(output) as found:
            return {Path(file).name: _result(found, file) for file in files}


def _result(found, file) -> Result:
    name = Path(file).name
    prefix = f"{name}/outputs/"
    outputs = {
        key.removeprefix(prefix): found[key] for key in found if key.startswith(prefix)
    }
    return Result(outputs, int(found[f"{name}/partitions"]))


def _call(command, timeout_s: float = PREPARE_TIMEOUT_S, **options) -> str:
    """Runs a program and returns its output.

    Raises:
        RuntimeError: if it is missing, fails or takes too long.
    """
    words = [str(word) for word in command]
    name = Path(words[0]).name
    try:
        found = subprocess.run(
            words, capture_output=True, text=True, timeout=timeout_s, **options
        )
    except FileNotFoundError as error:
        raise RuntimeError(f"There is no program {name} on this machine.") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{name} took more than {timeout_s:g} seconds.") from error
    if found.returncode:
        lines = (found.stderr + found.stdout).strip().splitlines()[-5:]
        raise RuntimeError(
            f"{name} ended with code {found.returncode}: {' '.join(lines)}"
        )
    return found.stdout


def _unpack_packages(folder: Path) -> None:
    """Downloads Debian packages and unpacks them into `root/`, and QEMU beside it."""
    native = _call(["dpkg", "--print-architecture"]).strip()
    for name in ("state/lists/partial", "cache/archives/partial", "debs"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "apt.conf"
    configuration.write_text(APT.format(folder=folder, native=native))
    apt = functools.partial(
        _call,
        cwd=folder / "debs",
        env=os.environ | {"APT_CONFIG": str(configuration)},
    )
    apt(["apt-get", "update"])
    apt(["apt-get", "download", f"qemu-user-static:{native}"])
    (emulator,) = (folder / "debs").glob("qemu-user-static_*.deb")
    _call(["dpkg", "-x", emulator, folder / "qemu"])
    (folder / EMULATOR).parent.mkdir(parents=True)
    shutil.move(folder / "qemu" / EMULATOR, folder / EMULATOR)
    emulator.unlink()
    apt(["apt-get", "download", *(f"{name}:arm64" for name in PACKAGES)])
    for package in sorted((folder / "debs").glob("*.deb")):
        _call(["dpkg", "-x", package, folder / "root"])
    for name in ("state", "cache", "debs", "qemu"):
        shutil.rmtree(folder / name)
    configuration.unlink()


def _write_system_files(root: Path) -> None:
    """Writes the files that describe the CPU; QEMU prefers them to the host's."""
    for name, content in SYSTEM_FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def _install_wheels(site: Path) -> None:
    platforms = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
    _call(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", site),
            *("--only-binary=:all:", "--implementation=cp", "--no-compile"),
            *(f"--python-version={PYTHON}", f"--constraint={CONSTRAINTS}"),
            *(f"--platform={platform}_aarch64" for platform in platforms),
            *WHEELS,
        ]
    )


def _recipe() -> str:
    """Describes the content of a folder, so that another recipe rebuilds it."""
    wheels = [
        line
        for line in CONSTRAINTS.read_text().splitlines()
        if line.split("==")[0] in WHEELS
    ]
    return "\n".join([*PACKAGES, *wheels, *SYSTEM_FILES.values()])


def prepare(folder: Path = FOLDER) -> ArmMachine:
    """Builds the emulated machine, unless the folder holds it already.

    Args:
        folder: the folder of the machine.

    Returns:
        The `ArmMachine`.

    Raises:
        RuntimeError: if apt or dpkg is missing, or a download fails.
    """
    marker, recipe = folder / "recipe.txt", _recipe()
    if marker.is_file() and marker.read_text() == recipe:
        return ArmMachine(folder)
    shutil.rmtree(folder, ignore_errors=True)
    _unpack_packages(folder.resolve())
    _write_system_files(folder / "root")
    _install_wheels(folder / "site")
    marker.write_text(recipe)  # last, so that a half-built folder has none
    return ArmMachine(folder)
