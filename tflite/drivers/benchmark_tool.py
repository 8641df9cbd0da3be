"""Both programs called `benchmark_model`: where they are, their flags, what they say.

The classic one runs a file with TFLite's interpreter, LiteRT's with its compiled model.
Both write the same binary result, and a log that has most of it.
"""

import dataclasses
import functools
import hashlib
import http.client
import os
import re
import shlex
import shutil
import sys
import urllib.request
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from tflite.drivers.measurement import printable

TIMEOUT_S = 60  # of a download on which nothing comes
LINES_TOLD = 4  # of those that say why a run failed
KIB = 1024 / 1e6  # in MB


@dataclasses.dataclass(frozen=True)
class Tool:
    """One of the programs.

    Attributes:
        addresses: of the published program, by the ABI of the device.
        accelerators: flags that choose one, by its name. LiteRT's tool tells no
            partitions, so it must refuse what it cannot run whole.
        end: pattern of what its log has at the end only.
    """

    addresses: dict[str, str]
    accelerators: dict[str, tuple[str, ...]]
    end: str


_CLASSIC = (
    "https://storage.googleapis.com/tensorflow-nightly-public/prod/tensorflow/release/"
    "lite/tools/nightly/latest/"
)
_LITERT = "https://storage.googleapis.com/litert/binaries/2.3.0/"
_ALONE = ("--use_cpu=false", "--require_full_delegation=true")
TOOLS = {
    "classic": Tool(
        {
            "arm64-v8a": f"{_CLASSIC}android_aarch64_benchmark_model",
            "armeabi-v7a": f"{_CLASSIC}android_arm_benchmark_model",
        },
        {
            # Said aloud, since the tool tells partitions only then.
            "cpu": ("--use_xnnpack=true",),
            "gpu": ("--use_gpu=true",),
        },
        r"Inference timings in us: .*Inference \(avg\): \d",
    ),
    "litert": Tool(
        {"arm64-v8a": f"{_LITERT}android_arm64/benchmark_model"},
        {
            "cpu": ("--use_cpu=true",),
            "gpu": ("--use_gpu=true", *_ALONE),
            "npu": ("--use_npu=true", *_ALONE),
        },
        r"Inference \(avg\): +\d.* ms",
    ),
}
# The classic tool as an app: scheduled as apps are, which a shell's programs are not.
TOOLS["apk"] = dataclasses.replace(
    TOOLS["classic"],
    addresses={
        abi: f"{address}.apk" for abi, address in TOOLS["classic"].addresses.items()
    },
)
APK_PACKAGE = "org.tensorflow.lite.benchmark"

# The operation in which a file that was compiled for an NPU holds its program.
NPU_OPERATION = b"DISPATCH_OP"
NPU_NEEDS = (
    "LiteRT's NPU runs what was compiled for its chip: files compiled ahead of time "
    "(ai_edge_litert.aot), or, with the vendor's compiler plugin "
    "(libLiteRtCompilerPlugin_*.so) in the folder of --npu_libraries, any file."
)

# What the classic tool says of a delegate that it was told to use.
DELEGATES = {"cpu": "XNNPACK", "gpu": "GPU", "nnapi": "NNAPI"}
_WHOLE = "applied {} delegate, and the model graph will be completely executed"
_PARTS = (
    r"applied {} delegate, and the model graph will be partially executed by the "
    r"delegate w/ (\d+) delegate kernels"
)
_NOTHING = "Though {} delegate is explicitly applied, the model graph will not be"
# Microseconds: of the warm-up, then of the measured runs. The profiler has such lines
# too ("Timings (microseconds): count=...").
_COUNT = re.compile(r"^(?!.*Timings).*?\bcount=(\d+)((?: \w+=[^\s(]+)+)", re.MULTILINE)
# Lines that say why a run failed.
_TELLING = re.compile(
    r"error|fail|not supported|unsupported|cannot|can't|unable|killed|no such|denied"
    r"|segmentation|aborted|refus|no space",
    re.IGNORECASE,
)

# tensorflow/lite/tools/benchmark/proto/benchmark_result.proto: name, number, type.
_FLOAT, _INT64, _INT32, _STRING = 2, 3, 5, 9
_FIELDS = {
    "LatencyMetrics": (
        ("avg_ms", 1, _FLOAT),
        ("min_ms", 2, _FLOAT),
        ("max_ms", 3, _FLOAT),
        ("stddev_ms", 4, _FLOAT),
        ("median_ms", 5, _FLOAT),
        ("p5_ms", 6, _FLOAT),
        ("p95_ms", 7, _FLOAT),
        ("init_ms", 8, _FLOAT),
        ("first_inference_ms", 9, _FLOAT),
        ("average_warm_up_ms", 10, _FLOAT),
    ),
    "MemoryMetrics": (
        ("init_footprint_kb", 1, _INT64),
        ("overall_footprint_kb", 2, _INT64),
        ("peak_mem_mb", 3, _FLOAT),
    ),
    "MiscMetrics": (
        ("model_size_mb", 1, _FLOAT),
        ("num_runs", 2, _INT32),
        ("num_warmup_runs", 3, _INT32),
        ("model_throughput_in_mb_per_sec", 4, _FLOAT),
    ),
    "BenchmarkResult": (
        ("name", 1, _STRING),
        ("latency_metrics", 2, "LatencyMetrics"),
        ("memory_metrics", 3, "MemoryMetrics"),
        ("misc_metrics", 4, "MiscMetrics"),
    ),
}
_PACKAGE = "tflite.tools.benchmark"


def compiler_plugins(folder) -> list[Path]:
    """Returns a vendor's libraries that compile files on the phone."""
    return sorted(Path(folder).glob("*CompilerPlugin*.so"))


def check_npu(paths, folder) -> None:
    """Raises a ValueError if an NPU cannot run some file.

    Args:
        paths: of the files.
        folder: of the vendor's libraries, or `None`.
    """
    if folder is None:
        raise ValueError(
            "--accelerators=npu takes --npu_libraries, a folder with the vendor's "
            f"dispatch library (libLiteRtDispatch_*.so). {NPU_NEEDS}"
        )
    if compiler_plugins(folder):
        return
    plain = [path for path in paths if NPU_OPERATION not in Path(path).read_bytes()]
    if plain:
        raise ValueError(
            f"No NPU can run {', '.join(map(str, plain))}: not compiled for one, and "
            f"{folder} holds no compiler plugin. {NPU_NEEDS}"
        )


@functools.cache
def result_class() -> type[message.Message]:
    """Returns the class of the binary result, `tflite.tools.benchmark.BenchmarkResult`.

    Made here, since no package on PyPI carries it.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="benchmark_result.proto", package=_PACKAGE, syntax="proto2"
    )
    for message_name, fields in _FIELDS.items():
        described = file.message_type.add(name=message_name)
        for name, number, kind in fields:
            field = described.field.add(name=name, number=number, label=1)
            if isinstance(kind, str):
                field.type, field.type_name = 11, f".{_PACKAGE}.{kind}"
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName(f"{_PACKAGE}.BenchmarkResult")
    return message_factory.GetMessageClass(found)


def parse_result(content: bytes) -> dict:
    """Reads a binary result.

    Args:
        content: of the file that `--result_file_path` names.

    Returns:
        Fields of a `Measurement`.

    Raises:
        ValueError: if it is none, or has no median.
    """
    try:
        result = result_class().FromString(content)
    except message.DecodeError as error:
        raise ValueError(f"The tool's result is damaged: {error}") from error
    latency, memory = result.latency_metrics, result.memory_metrics
    if not latency.HasField("median_ms"):
        raise ValueError("The tool's result has no median.")
    whole = {  # floats of 32 bits that were whole microseconds
        "init_ms": latency.init_ms,
        "first_ms": latency.first_inference_ms,
        "median_ms": latency.median_ms,
        "p5_ms": latency.p5_ms,
        "p95_ms": latency.p95_ms,
    }
    fields = {name: round(value, 3) for name, value in whole.items()} | {
        "warmup_ms": latency.average_warm_up_ms,
        "mean_ms": latency.avg_ms,
        "runs": result.misc_metrics.num_runs,
    }
    if memory.HasField("overall_footprint_kb"):
        fields["peak_memory_mb"] = memory.overall_footprint_kb * KIB
    return fields


def delegation(log: str, accelerator: str) -> dict:
    """Returns how much of the graph an accelerator's delegate took.

    Args:
        log: of the classic tool, which tells it of delegates that it was told to use.
        accelerator: whose.

    Returns:
        `{"partitions", "fully_accelerated"}`, both `None` if the log tells nothing.
    """
    name = DELEGATES.get(accelerator, accelerator)
    if _WHOLE.format(name) in log:
        return {"partitions": 1, "fully_accelerated": True}
    if found := re.findall(_PARTS.format(name), log):
        return {"partitions": int(found[-1]), "fully_accelerated": False}
    if _NOTHING.format(name) in log:
        return {"partitions": 0, "fully_accelerated": False}
    return {"partitions": None, "fully_accelerated": None}


def refuse_other_accelerator(tool: str, accelerator: str, log: str) -> None:
    """Raises a ValueError if a file ran on the CPU though it was told to run elsewhere.

    The classic tool goes on there if there is no GPU, or the GPU takes nothing.
    """
    if tool == "litert" or accelerator in ("cpu", "unknown"):
        return
    if not delegation(log, accelerator)["partitions"]:
        raise ValueError(f"The {accelerator} ran nothing of it. {failure(log, 0)}")


def tool_of(log: str) -> str:
    """Returns which of `TOOLS` wrote a log to its end.

    Raises:
        ValueError: if none did.
    """
    for name, tool in TOOLS.items():  # the app is the classic one
        if re.search(tool.end, log):
            return name
    raise ValueError("The log ends before the benchmark does.")


def _milliseconds(counted: str) -> dict[str, float]:
    values = dict(pair.split("=") for pair in counted.split())
    return {name: float(value) / 1e3 for name, value in values.items()}


def parse_log(log: str) -> dict:
    """Reads what a tool wrote to stdout and stderr, or into Android's log.

    Args:
        log: of one run.

    Returns:
        Fields of a `Measurement`, without the percentiles that old tools do not print.

    Raises:
        ValueError: if it ends too early.
    """
    tool_of(log)
    counts = _COUNT.findall(log)
    if len(counts) != 2:
        raise ValueError(
            f"The log has {len(counts)} lines with count=. Expected two, of the "
            "warm-up and of the runs."
        )
    (_, warmup), (runs, measured) = counts
    warmup, measured = _milliseconds(warmup), _milliseconds(measured)
    same = None if "avg" in measured else measured["curr"]  # all are, or only one is
    fields = {
        "runs": int(runs),
        "first_ms": warmup.get("first", warmup["curr"]),
        "warmup_ms": warmup.get("avg", warmup["curr"]),
        "mean_ms": measured.get("avg", same),
    }
    for name in ("median", "p5", "p95"):
        fields[f"{name}_ms"] = measured.get(name, same)
    if found := re.search(r"Initialized session in (\S+?)ms", log):
        fields["init_ms"] = float(found[1])
    memory = re.search(r"Memory footprint delta.*overall=(\S+)", log) or re.search(
        r"Overall footprint:\s+(\S+) MB", log
    )
    if memory:
        fields["peak_memory_mb"] = float(memory[1]) * 1024 * KIB
    return fields


def split_log(log: str) -> list[str]:
    """Returns the logs of the runs that a log holds; itself if it does not tell."""
    starts = [found.start() for found in re.finditer(r"^.*STARTING!", log, re.M)]
    if not starts:
        return [log]
    return [log[a:b] for a, b in zip(starts, [*starts[1:], len(log)])]


def graph_of(log: str) -> str:
    """Returns the path of the file that a log is of; "" if it does not tell."""
    found = re.search(r"(?:Loaded model|Loading model from:) (.+?)\s*$", log, re.M)
    found = found or re.search(r"Graph: \[(.+?)\]", log)
    return printable(found[1]) if found else ""


def num_threads_of(log: str) -> int | None:
    """Returns the number of CPU threads, if a log tells."""
    found = re.search(r"(?:Num threads|num_threads): \[(\d+)\]", log)
    return int(found[1]) if found else None


def accelerator_of(log: str) -> str:
    """Returns what should run the file, by the parameters at the start of a log."""
    for name in ("gpu", "npu", "nnapi"):
        if re.search(rf"use[ _]{name}: \[(1|true)\]", log, re.IGNORECASE):
            return name
    return "cpu" if "STARTING!" in log else "unknown"


def fetch(tool: str, abi: str) -> Path:
    """Downloads a published program, once, and says from where.

    Args:
        tool: a key of `TOOLS`.
        abi: of the device.

    Returns:
        Its path in the cache of the user.

    Raises:
        ValueError: if none is published for such a device, or it cannot be reached.
    """
    from keras_mobilevit.files import atomic_write  # loads Keras

    address = TOOLS[tool].addresses.get(abi)
    if address is None:
        raise ValueError(
            f"No program {tool} is published for {abi}. Build it, and name it with "
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
            urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer,
            atomic_write(path) as temporary,
            open(temporary, "wb") as file,
        ):
            shutil.copyfileobj(answer, file)
            announced = answer.headers["Content-Length"]
            if announced and file.tell() != int(announced):
                raise OSError(f"it ended after {file.tell()} of {announced} bytes")
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        raise ValueError(
            f"{address} cannot be downloaded: {why}. Download it elsewhere, and name "
            "it with --benchmark_binary."
        ) from error
    return path


def failure(log: str, code: int) -> str:
    """Returns why a run failed: the last lines that tell, and the exit code."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if _TELLING.search(line)] or lines
    parts = list(dict.fromkeys(telling))[-LINES_TOLD:]
    if code:
        ended = {137: ", killed, perhaps for its memory", 139: ", crashed"}
        parts.append(f"exit code {code}{ended.get(code, '')}")
    return printable(" / ".join(parts))


def tool_flags(
    tool: str, accelerator: str, graph: str, num_threads: int, runs: int, warmup: int
) -> list[str]:
    """Returns a program's flags for a measurement.

    Args:
        tool: a key of `TOOLS`.
        accelerator: one that it has.
        graph: path of the `.tflite` on the device.
        num_threads: CPU threads.
        runs: measured inferences; more if they take less than a second.
        warmup: inferences before them; more if they take less than half a second.
    """
    return [
        f"--graph={graph}",
        f"--num_threads={num_threads}",
        f"--num_runs={runs}",
        f"--warmup_runs={warmup}",
        *TOOLS[tool].accelerators[accelerator],
    ]


def apk_command(flags: list[str]) -> str:
    """Returns the shell command that starts the app with flags, split at spaces."""
    activity = f"{APK_PACKAGE}/.BenchmarkModelActivity"
    return f"am start -S -n {activity} --es args {shlex.quote(' '.join(flags))}"
