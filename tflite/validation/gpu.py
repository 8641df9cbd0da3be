"""Checks that LiteRT's GPU accelerator takes a whole file and agrees with the CPU.

The accelerator runs on Vulkan. Without a GPU it runs on a software Vulkan, SwiftShader,
which comes with Chromium. The check says nothing about speed.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ICD = "VK_ICD_FILENAMES"  # the variable that names Vulkan's drivers
SOFTWARE_DRIVERS = (
    "/usr/lib/chromium/vk_swiftshader_icd.json",  # Debian
    "/usr/lib/chromium-browser/vk_swiftshader_icd.json",  # Ubuntu
    "/opt/google/chrome/vk_swiftshader_icd.json",
)
NO_DEVICE = "Failed to initialize WebGPU environment"  # LiteRT's error for any file
TIMEOUT_S = 600


@dataclasses.dataclass(frozen=True)
class GpuCheckResult:
    """Result of running a file on the GPU accelerator.

    `driver` is the path of the Vulkan driver's description. `max_abs` is the largest
    difference between the outputs on the GPU and on the CPU; `None` if the file did not
    run. `error` says what went wrong.
    """

    driver: str
    fully_accelerated: bool
    max_abs: float | None
    error: str = ""


def find_driver() -> str | None:
    """Returns the driver in `VK_ICD_FILENAMES`, else a software driver."""
    named = os.environ.get(ICD)
    return named or next((p for p in SOFTWARE_DRIVERS if Path(p).is_file()), None)


def require_driver() -> str:
    """Returns the Vulkan driver; raises a ValueError if there is none."""
    driver = find_driver()
    if driver is None:
        raise ValueError(
            "The GPU check needs a Vulkan driver. Install Chromium, which brings "
            "SwiftShader (Debian: apt install chromium libvulkan1), or set "
            f"{ICD} to the JSON file of another driver."
        )
    return driver


def _environment(driver: str, folder: str) -> dict[str, str]:
    # Chromium keeps a Vulkan loader beside its driver.
    libraries = [str(Path(driver).parent), os.environ.get("LD_LIBRARY_PATH", "")]
    return os.environ | {
        ICD: driver,
        "XDG_RUNTIME_DIR": folder,
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
    }


def check_gpu(path, image: np.ndarray) -> GpuCheckResult:
    """Runs a file on the GPU accelerator, in a process of its own, which may crash.

    `image` is an input of the file's shape. Raises a ValueError if there is no Vulkan
    driver, or it does not start.
    """
    driver = require_driver()
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/image.npy", image)
        file = str(Path(path).resolve())
        command = [sys.executable, "-m", "tflite.validation.gpu", file, folder]
        try:
            process = subprocess.run(
                command,
                cwd=Path(__file__).parents[2],
                env=_environment(driver, folder),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            error = f"did not finish within {TIMEOUT_S} s"
            return GpuCheckResult(driver, False, None, error)
        if NO_DEVICE in process.stderr:
            raise ValueError(
                f"The Vulkan driver {driver} does not start. Set {ICD} to another "
                "driver, or unset it for SwiftShader (apt install chromium libvulkan1)."
            )
        result = Path(folder, "result.json")
        if process.returncode or not result.exists():
            return GpuCheckResult(driver, False, None, _reason(process))
        return GpuCheckResult(driver, **json.loads(result.read_text("utf-8")))


def _reason(process: subprocess.CompletedProcess) -> str:
    """Returns the lines of a failed run that say what the GPU does not take."""
    lines = process.stderr.splitlines()
    for word in ("not supported", "delegate", "Error"):
        matches = [line.strip() for line in lines if word in line]
        if matches:
            return " / ".join(matches[-3:])
    return f"ended with code {process.returncode}"


def _difference(name: str, values: np.ndarray, reference: np.ndarray) -> float:
    """Returns the largest difference; for classes, the fraction that differs."""
    if name == "classes":
        return float(np.mean(values != reference))
    return float(np.abs(values - reference).max())


def _compared(outputs: dict, reference: dict) -> dict:
    """Returns `max_abs` for a `GpuCheckResult`, or an `error` if it is not finite."""
    for where, found in (("CPU", reference), ("GPU", outputs)):
        for name, values in found.items():
            if not np.all(np.isfinite(values)):
                error = f"its {name} are not finite on the {where}"
                return {"max_abs": None, "error": error}
    return {"max_abs": max(_difference(n, outputs[n], reference[n]) for n in reference)}


def _check_here(path: str, folder: str) -> None:
    """Checks a file in this process and writes `result.json` into the folder."""
    from ai_edge_litert.compiled_model import CompiledModel, HardwareAccelerator

    image = np.load(f"{folder}/image.npy")

    def run(accelerator) -> tuple[bool, dict[str, np.ndarray]]:
        model = CompiledModel.from_file(path, hardware_accel=accelerator)
        inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
        inputs[0].write(np.ascontiguousarray(image))
        model.run_by_index(0, inputs, outputs)
        (key,) = model.get_signature_list()
        details = model.get_output_tensor_details(key)
        values = {}
        for buffer, name in zip(outputs, model.get_signature_by_index(0)["outputs"]):
            count = int(np.prod(details[name]["shape"]))
            read = buffer.read(count, details[name]["dtype"])
            values[name] = np.asarray(read, np.float64)
        return model.is_fully_accelerated(), values

    fully, outputs = run(HardwareAccelerator.GPU)
    _, reference = run(HardwareAccelerator.CPU)
    result = {"fully_accelerated": bool(fully), **_compared(outputs, reference)}
    Path(folder, "result.json").write_text(json.dumps(result, allow_nan=False), "utf-8")


if __name__ == "__main__":
    _check_here(sys.argv[1], sys.argv[2])
