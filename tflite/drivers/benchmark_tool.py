"""The two programs called `benchmark_model`: addresses, flags and results.

The classic program runs a file with TFLite's interpreter, LiteRT's with its compiled
model. Both write the same binary result. Only the log names the delegates.
"""

import dataclasses
import functools
import hashlib
import http.client
import os
import re
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tflite.drivers.measurement import printable
from tflite.drivers.options import RunOptions

TIMEOUT_S = 60  # for a download that does not progress
REASON_LINES = 4  # lines of a log that a failure shows
KIB = 1024 / 1e6  # in MB


@dataclasses.dataclass(frozen=True)
class Tool:
    """One of the programs."""

    addresses: dict[str, str]  # by the device's ABI
    accelerators: dict[str, tuple[str, ...]]  # flags by accelerator


_CLASSIC = (
    "https://storage.googleapis.com/tensorflow-nightly-public/prod/tensorflow/release/"
    "lite/tools/nightly/latest/"
)
_LITERT = "https://storage.googleapis.com/litert/binaries/2.3.0/"
TOOLS = {
    "classic": Tool(
        {
            "arm64-v8a": f"{_CLASSIC}android_aarch64_benchmark_model",
            "armeabi-v7a": f"{_CLASSIC}android_arm_benchmark_model",
        },
        {
            # XNNPACK is the default, but the tool logs its partitions only if asked.
            "cpu": ("--use_xnnpack=true",),
            "gpu": ("--use_gpu=true",),
        },
    ),
    "litert": Tool(
        {"arm64-v8a": f"{_LITERT}android_arm64/benchmark_model"},
        {
            "cpu": ("--use_cpu=true",),
            # It logs no partitions, so it must refuse a graph that the GPU splits.
            "gpu": (
                "--use_gpu=true",
                "--use_cpu=false",
                "--require_full_delegation=true",
            ),
        },
    ),
}
ACCELERATORS = ("cpu", "gpu")

# What the classic tool logs about a delegate that a flag chose.
DELEGATES = {"cpu": "XNNPACK", "gpu": "GPU"}
_WHOLE = "applied {} delegate, and the model graph will be completely executed"
_PARTS = (
    r"applied {} delegate, and the model graph will be partially executed by the "
    r"delegate w/ (\d+) delegate kernels"
)
_NOTHING = "Though {} delegate is explicitly applied, the model graph will not be"
# Lines that say why a run failed.
_REASON = re.compile(
    r"error|fail|not supported|unsupported|cannot|can't|unable|killed|no such|denied"
    r"|segmentation|aborted|refus|no space",
    re.IGNORECASE,
)

# Name, number and type of the fields that are read; all are in
# tensorflow/lite/tools/benchmark/proto/benchmark_result.proto.
_FLOAT, _INT64, _INT32 = 2, 3, 5
_FIELDS: dict[str, tuple[tuple[str, int, int | str], ...]] = {
    "LatencyMetrics": (
        ("avg_ms", 1, _FLOAT),
        ("median_ms", 5, _FLOAT),
        ("p5_ms", 6, _FLOAT),
        ("p95_ms", 7, _FLOAT),
        ("init_ms", 8, _FLOAT),
        ("first_inference_ms", 9, _FLOAT),
        ("average_warm_up_ms", 10, _FLOAT),
    ),
    "MemoryMetrics": (("overall_footprint_kb", 2, _INT64),),
    "MiscMetrics": (("num_runs", 2, _INT32),),
    "BenchmarkResult": (
        ("latency_metrics", 2, "LatencyMetrics"),
        ("memory_metrics", 3, "MemoryMetrics"),
        ("misc_metrics", 4, "MiscMetrics"),
    ),
}
_PACKAGE = "tflite.tools.benchmark"


@functools.cache
def result_class() -> Any:
    """Returns the class of the result, `tflite.tools.benchmark.BenchmarkResult`.

    It is made here because no package on PyPI contains it.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="benchmark_result.proto", package=_PACKAGE, syntax="proto2"
    )
    for message_name, fields in _FIELDS.items():
        message = file.message_type.add(name=message_name)
        for name, number, kind in fields:
            field = message.field.add(name=name, number=number, label=1)
            if isinstance(kind, str):
                field.type, field.type_name = 11, f".{_PACKAGE}.{kind}"
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName(f"{_PACKAGE}.BenchmarkResult")
    return message_factory.GetMessageClass(descriptor)


def parse_result(content: bytes) -> dict[str, Any]:
    """Reads a binary result, as fields of a `Measurement`.

    Raises a ValueError if the content is not a result, or has no median.
    """
    from google.protobuf.message import DecodeError

    try:
        result = result_class().FromString(content)
    except DecodeError as error:
        raise ValueError(f"The tool's result is damaged: {error}") from error
    latency, memory = result.latency_metrics, result.memory_metrics
    if not latency.HasField("median_ms"):
        raise ValueError("The tool's result has no median.")
    microseconds = {  # whole numbers, which the tool stores as 32-bit milliseconds
        "init_ms": latency.init_ms,
        "first_ms": latency.first_inference_ms,
        "median_ms": latency.median_ms,
        "p5_ms": latency.p5_ms,
        "p95_ms": latency.p95_ms,
    }
    fields = {name: round(value, 3) for name, value in microseconds.items()} | {
        "warmup_ms": latency.average_warm_up_ms,
        "mean_ms": latency.avg_ms,
        "runs": result.misc_metrics.num_runs,
    }
    if memory.HasField("overall_footprint_kb"):
        fields["peak_memory_mb"] = memory.overall_footprint_kb * KIB
    return fields


def delegation(log: str, accelerator: str) -> dict[str, Any]:
    """Returns how much of the graph an accelerator's delegate took.

    The log is of the classic tool, which logs the delegates that its flags choose. If
    it does not say, the values are `None`.
    """
    name = DELEGATES[accelerator]
    if _WHOLE.format(name) in log:
        return {"partitions": 1, "fully_accelerated": True}
    if found := re.findall(_PARTS.format(name), log):
        return {"partitions": int(found[-1]), "fully_accelerated": False}
    if _NOTHING.format(name) in log:
        return {"partitions": 0, "fully_accelerated": False}
    return {"partitions": None, "fully_accelerated": None}


def check_accelerator(tool: str, accelerator: str, log: str) -> None:
    """Raises a ValueError if a file ran on the CPU though a flag chose the GPU.

    The classic tool falls back to the CPU if there is no GPU, or if the GPU's delegate
    takes no operation.
    """
    if tool == "litert" or accelerator == "cpu":
        return
    if not delegation(log, accelerator)["partitions"]:
        reason = failure_reason(log, 0)
        raise ValueError(f"The {accelerator} ran no operation. {reason}")


def download(tool: str, abi: str) -> Path:
    """Downloads a published program into the user's cache once."""
    from keras_mobilevit.files import atomic_write  # loads Keras

    address = TOOLS[tool].addresses.get(abi)
    if address is None:
        raise ValueError(
            f"No {tool} program is published for {abi}. Build it, and name it with "
            "--benchmark_binary."
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    version = hashlib.sha256(address.encode()).hexdigest()[:16]
    path = cache / "keras_mobilevit" / version / address.rpartition("/")[2]
    if path.exists():
        return path
    print(f"downloading {address}", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            urllib.request.urlopen(address, timeout=TIMEOUT_S) as response,
            atomic_write(path) as temporary,
            open(temporary, "wb") as file,
        ):
            shutil.copyfileobj(response, file)
            size = response.headers["Content-Length"]
            if size and file.tell() != int(size):
                raise OSError(f"received {file.tell()} of {size} bytes")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"{address} cannot be downloaded: {reason}. Download it elsewhere, and "
            "name it with --benchmark_binary."
        ) from error
    return path


def failure_reason(log: str, code: int) -> str:
    """Returns why a run failed: the last error lines, and the exit code."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reasons = [line for line in lines if _REASON.search(line)] or lines
    parts = list(dict.fromkeys(reasons))[-REASON_LINES:]
    if code:
        meaning = {137: ", killed, perhaps for its memory", 139: ", crashed"}
        parts.append(f"exit code {code}{meaning.get(code, '')}")
    return printable(" / ".join(parts))


def tool_flags(
    tool: str, accelerator: str, graph: str, options: RunOptions
) -> list[str]:
    """Returns the flags of a program for a measurement; `graph` is on the device.

    The tool adds runs until the warm-up takes half a second and the measured runs a
    second.
    """
    return [
        f"--graph={graph}",
        f"--num_threads={options.num_threads}",
        f"--num_runs={options.runs}",
        f"--warmup_runs={options.warmup_runs}",
        *TOOLS[tool].accelerators[accelerator],
    ]
