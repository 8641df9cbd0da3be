"""Asks LiteRT's GPU accelerator whether it takes a file whole, and compares outputs.

It runs on Vulkan, also on a software Vulkan without any GPU: SwiftShader, which comes
with Chromium. That says whether a GPU takes the graph and computes the same, nothing of
its speed.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ICD = "VK_ICD_FILENAMES"  # the variable by which Vulkan finds its drivers
SOFTWARE_DRIVERS = (
    "/usr/lib/chromium/vk_swiftshader_icd.json",  # Debian
    "/usr/lib/chromium-browser/vk_swiftshader_icd.json",  # Ubuntu
    "/opt/google/chrome/vk_swiftshader_icd.json",
)
NO_DEVICE = "Failed to initialize WebGPU environment"  # of LiteRT, whatever the file
TIMEOUT_S = 600


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the accelerator says of a file.

    Attributes:
        driver: the Vulkan driver's description file.
        fully_accelerated: whether it takes every operation.
        max_abs: largest difference of an output from the CPU's; `None` if it did not
            run.
        error: what went wrong, or "".
    """

    driver: str
    fully_accelerated: bool
    max_abs: float | None
    error: str = ""


def find_driver() -> str | None:
    """Returns the Vulkan driver: of `VK_ICD_FILENAMES`, or a software one."""
    named = os.environ.get(ICD)
    return named or next((p for p in SOFTWARE_DRIVERS if Path(p).is_file()), None)


def require_driver() -> str:
    """Returns the driver, or raises a ValueError that says how to get one."""
    driver = find_driver()
    if driver is None:
        raise ValueError(
            "The GPU check takes a Vulkan driver. SwiftShader comes with Chromium "
            "(Debian: apt install chromium libvulkan1); or name the JSON file of "
            f"another in {ICD}."
        )
    return driver


def check_gpu(path, image: np.ndarray) -> Verdict:
    """Runs a file on the GPU accelerator, in a process that may die.

    Args:
        path: of the `.tflite` with a signature.
        image: an input of the file's shape.

    Returns:
        The `Verdict`; a crash is one too.

    Raises:
        ValueError: if there is no Vulkan driver, or it does not start.
    """
    driver = require_driver()
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/image.npy", image)
        file = str(Path(path).resolve())
        command = [sys.executable, "-m", "tflite.validation.gpu", file, folder]
        # Chromium's own Vulkan loader stands beside its driver.
        libraries = [str(Path(driver).parent), os.environ.get("LD_LIBRARY_PATH", "")]
        environment = os.environ | {
            ICD: driver,
            "XDG_RUNTIME_DIR": folder,
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        }
        try:
            process = subprocess.run(
                command,
                cwd=Path(__file__).parents[2],
                env=environment,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return Verdict(driver, False, None, f"not done after {TIMEOUT_S} s")
        if NO_DEVICE in process.stderr:
            raise ValueError(
                f"The Vulkan driver {driver} does not start. Name another in {ICD}, or "
                "leave it unset for SwiftShader (apt install chromium libvulkan1)."
            )
        result = Path(folder, "result.json")
        if process.returncode or not result.exists():
            return Verdict(driver, False, None, _reason(process))
        return Verdict(driver, **json.loads(result.read_text("utf-8")))


def _reason(process) -> str:
    """Picks the lines of a failed run that say what the GPU does not take."""
    lines = process.stderr.splitlines()
    for word in ("not supported", "delegate", "Error"):
        telling = [line.strip() for line in lines if word in line]
        if telling:
            return " / ".join(telling[-3:])
    return f"ended with code {process.returncode}"


def _difference(name: str, values: np.ndarray, reference: np.ndarray) -> float:
    """Returns the largest difference; of classes, which are no amounts, their part."""
    if name == "classes":
        return float(np.mean(values != reference))
    return float(np.abs(values - reference).max())


def _compared(outputs: dict, reference: dict) -> dict:
    """Returns `max_abs` of a `Verdict`, or its `error` where there is no number."""
    for where, found in (("CPU", reference), ("GPU", outputs)):
        for name, values in found.items():
            if not np.all(np.isfinite(values)):
                error = f"its {name} are not finite on the {where}"
                return {"max_abs": None, "error": error}
    return {"max_abs": max(_difference(n, outputs[n], reference[n]) for n in reference)}


def _check_here(path: str, folder: str) -> None:
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
