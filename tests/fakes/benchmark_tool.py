"""A fake `benchmark_model`, which runs models with LiteRT on this machine's CPU.

It takes the flags of the real programs, and prints and writes what they do. See
tflite/tools/benchmark/benchmark_model.cc, benchmark_tflite_model.cc and
litert/tools/benchmark_litert_model.h of LiteRT.
"""

import itertools
import os
import resource
import signal
import struct
import sys
import time
from pathlib import Path

FAULTS = (None, "crash", "killed", "truncated", "gpu_refused", "gpu_partial", "no_gpu")
_SHARED_FLAGS = dict(  # name and default
    graph="",
    num_runs=50,
    min_secs=1.0,
    max_secs=150.0,
    run_delay=-1.0,
    num_threads=-1,
    warmup_runs=1,
    warmup_min_secs=0.5,
    report_peak_memory_footprint=False,
    require_full_delegation=False,
    use_gpu=False,
    gpu_backend="",
    allow_fp16=False,
    result_file_path="",
)
_FLAGS = {
    "classic": _SHARED_FLAGS
    | dict(
        use_xnnpack=False,
        xnnpack_force_fp16=False,
        gpu_precision_loss_allowed=True,
        enable_op_profiling=False,
        input_layer="",
        input_layer_shape="",
    ),
    "litert": _SHARED_FLAGS | dict(use_cpu=True),
}
_GPU_UNSUPPORTED = """Following operations are not supported by GPU delegate:
TRANSPOSE: OP is supported, but tensor type/shape isn't compatible.
97 operations will run on the GPU, and the remaining 2 operations will run on the \
CPU."""
_GPU_REFUSALS = (
    "TfLiteGpuDelegate Init: FromTensorConverter: Batch size != 1 is not supported.",
    "TfLiteGpuDelegate Prepare: delegate is not initialized",
    "Node number 99 (TfLiteGpuDelegateV2) failed to prepare.",
    "Restored original execution plan after delegate application failure.",
)


def write_benchmark_tool(path, kind="classic", fault=None) -> Path:
    """Writes a fake `benchmark_model`, which can be pushed to a fake device.

    Args:
        path: of the program.
        kind: "classic" (Interpreter) or "litert" (CompiledModel).
        fault: one of `FAULTS`. "crash" and "killed" end by SIGSEGV and SIGKILL in the
            measured runs. "truncated" stops in the middle of a line with exit code 0.
            The others are results of --use_gpu=true.
    """
    if fault not in FAULTS:
        raise ValueError(f"fault must be one of {FAULTS}. Received: {fault}")
    path = Path(path)
    path.write_text(
        f"#!{sys.executable}\nimport sys\n\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import benchmark_tool\n\n"
        f"benchmark_tool.run_benchmark(sys.argv[1:], {kind!r}, {fault!r})\n"
    )
    path.chmod(0o755)
    return path


def run_benchmark(arguments: list[str], kind: str, fault=None):
    """Does what `benchmark_model` does, and ends the process."""
    _info("STARTING!")
    flags, given = _parse(arguments, _FLAGS[kind])
    _info("Log parameter values verbosely: [0]")
    for name in given:  # the real tool has longer names
        value = flags[name]
        _info(f"{name}: [{value if isinstance(value, str) else f'{value:g}'}]")
    memory, begin = _memory_kb(), _now_us()
    if kind == "classic":
        interpreter = _classic_interpreter(flags, given, fault)
    else:
        interpreter = _litert_interpreter(flags, fault)
    init_us, init_kb = _now_us() - begin, _memory_kb() - memory
    size_mb = os.path.getsize(flags["graph"]) / 1e6
    _info(f"The input model file size (MB): {size_mb:g}")
    _info(f"Initialized session in {init_us / 1e3:g}ms.")

    limits = (flags["max_secs"], flags["run_delay"])
    runs = (flags["warmup_runs"], flags["warmup_min_secs"])
    warmup = _measure(interpreter.invoke, *runs, *limits)
    if fault in ("crash", "killed"):
        os.kill(os.getpid(), signal.SIGSEGV if fault == "crash" else signal.SIGKILL)
    runs = (flags["num_runs"], flags["min_secs"])
    measured = _measure(interpreter.invoke, *runs, *limits)
    input_bytes = sum(
        interpreter.get_tensor(d["index"]).nbytes
        for d in interpreter.get_input_details()
    )
    peak = flags["report_peak_memory_footprint"]
    _report(
        kind,
        {
            "size_mb": size_mb,
            "init_us": init_us,
            "warmup": warmup,
            "measured": measured,
            "init_kb": init_kb,
            "overall_kb": _memory_kb() - memory,
            "peak_mb": _memory_kb() / 1024 if peak else 0.0,
            "speed": input_bytes / measured["avg"] * 1e6 / (1 << 20),
        },
        flags["result_file_path"],
        fault == "truncated",
    )
    sys.exit(0)


def _info(text: str, end="\n"):
    print(f"INFO: {text}", end=end, flush=True)


def _error(text: str, severity="ERROR", end="\n"):
    print(f"{severity}: {text}", end=end, file=sys.stderr, flush=True)


def _give_up(*errors: str):
    for error in (*errors, "Benchmarking failed."):
        _error(error)
    sys.exit(1)


def _now_us() -> int:
    return time.perf_counter_ns() // 1000


def _memory_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _parse(arguments: list[str], defaults: dict):
    """Returns the values of all flags, and the names of the given flags."""
    flags, given, unknown = dict(defaults), [], []
    for argument in arguments:
        name, _, text = argument.removeprefix("--").partition("=")
        if name not in flags:
            unknown.append(argument)
            continue
        try:
            if isinstance(defaults[name], bool):
                value = {"true": True, "1": True, "false": False, "0": False}[text]
            else:
                value = type(defaults[name])(text)
        except (KeyError, ValueError):
            _give_up(f"Failed to parse flag '{name}' against argv '{argument}'")
        flags[name] = value
        given.append(name)
    if unknown:  # only a warning
        print(f"WARN: Unconsumed cmdline flags: {' '.join(unknown)}", flush=True)
    return flags, given


def _load(flags: dict, resolver=None):
    # The tests import this module without LiteRT.
    from ai_edge_litert import interpreter as litert

    options = {"num_threads": max(flags["num_threads"], 1)}
    if resolver:
        options["experimental_op_resolver_type"] = litert.OpResolverType[resolver]
    interpreter = litert.Interpreter(flags["graph"], **options)
    interpreter.allocate_tensors()
    return interpreter


def _classic_interpreter(flags: dict, given: list[str], fault):
    if not flags["graph"]:
        _give_up("Please specify the name of your TF Lite input file with --graph")
    if not os.path.exists(flags["graph"]):
        _give_up(
            f"Could not open '{flags['graph']}'.",
            f"Failed to load model {flags['graph']}",
        )
    _info(f"Loaded model {flags['graph']}")
    plain = "use_xnnpack" in given and not flags["use_xnnpack"]
    resolver = "BUILTIN_WITHOUT_DEFAULT_DELEGATES" if plain else None
    delegates = []  # name, kernels, whether that is the whole graph
    if flags["use_gpu"] and fault == "no_gpu":
        print("WARN: GPU acceleration is unsupported on this platform.", flush=True)
    elif flags["use_gpu"]:
        _error("Created TensorFlow Lite delegate for GPU.", "INFO")
        _info("GPU delegate created.")
        if fault in ("gpu_refused", "gpu_partial"):
            _error(_GPU_UNSUPPORTED)
        if fault == "gpu_refused":
            _error(_GPU_REFUSALS[0])
            _error("Created 0 GPU delegate kernels.", "INFO")
            _give_up(*_GPU_REFUSALS[1:], "Failed to apply GPU delegate.")
        delegates.append(("GPU", 1, fault != "gpu_partial"))
    interpreter = _load(flags, resolver)
    if flags["use_xnnpack"]:
        _info("XNNPACK delegate created.")
        delegates.append(("XNNPACK", *_partitions(interpreter)))
    if flags["require_full_delegation"] and not (delegates and delegates[0][2]):
        _give_up("Disallowed CPU fallback detected.")
    for name, kernels, whole in delegates:
        if whole:
            what = "completely executed by the delegate."
        else:
            what = f"partially executed by the delegate w/ {kernels} delegate kernels."
        text = f"Explicitly applied {name} delegate, and the model graph will be {what}"
        if not kernels:
            text = (
                f"Though {name} delegate is explicitly applied, the model graph will "
                "not be executed by the delegate."
            )
        _info(text)
    return interpreter


def _partitions(interpreter):
    """Returns how many nodes XNNPACK runs, and whether they are the whole graph."""
    operations = interpreter._get_ops_details()
    nodes = [o for o in operations if o["op_name"] == "DELEGATE"]
    ends = {d["index"] for d in interpreter.get_output_details()}
    begins = {d["index"] for d in interpreter.get_input_details()}
    whole = len(nodes) == 1 and (
        ends <= set(nodes[0]["outputs"]) and begins <= set(nodes[0]["inputs"])
    )
    return len(nodes), whole


def _litert_interpreter(flags: dict, fault):
    _litert_log(f"Loading model from: {flags['graph']}", ".cc:200")
    if not os.path.exists(flags["graph"]):
        _litert_log("Failed to load model.", ".cc:204", "ERROR")
        _give_up()
    if flags["require_full_delegation"] and flags["use_cpu"]:
        text = "Requesting full delegation and CPU acceleration are incompatible."
        _litert_log(text, ".cc:74", "ERROR")
        os.abort()
    refused = fault in ("gpu_refused", "no_gpu")
    partial = fault == "gpu_partial" and flags["require_full_delegation"]
    if flags["use_gpu"] and (refused or partial):
        _litert_log("Failed to compile model.", ".cc:228", "ERROR")
        _give_up()
    return _load(flags)


def _litert_log(text: str, line=".h:94", severity="INFO", end="\n"):
    _error(f"[benchmark_litert_model{line}] {text}", severity, end)


def _measure(invoke, runs: int, min_secs: float, max_secs: float, delay: float):
    _info(
        f"Running benchmark for at least {runs} iterations and at least {min_secs:g} "
        f"seconds but terminate if exceeding {max_secs:g} seconds."
    )
    times, begin = [], _now_us()
    now = begin
    while (len(times) < runs or now < begin + min_secs * 1e6) and (
        now <= begin + max_secs * 1e6
    ):
        start = _now_us()
        invoke()
        times.append(_now_us() - start)
        time.sleep(max(delay, 0))
        now = _now_us()
    return _statistics(times)


def _statistics(times: list[int]) -> dict:
    """Prints and returns the statistics of tsl::StatWithPercentiles<int64_t>."""
    count, low, high = len(times), min(times), max(times)
    average = sum(times) / count
    deviation = int((sum(t * t for t in times) / count - average**2) ** 0.5)
    percentiles = {n: sorted(times)[count * n // 100] for n in (5, 50, 95)}
    if low == high:
        text = f"count={count} curr={low}" + ("(all same)" if count > 1 else "")
    else:
        text = (
            f"count={count} first={times[0]} curr={times[-1]} min={low} max={high} "
            f"avg={average:g} std={deviation}"
        )
    p5, median, p95 = percentiles.values()
    _info(f"{text} p5={p5} median={median} p95={p95}\n")
    return {
        "count": count,
        "first": times[0],
        "min": low,
        "max": high,
        "avg": average,
        "std": deviation,
        "p5": p5,
        "median": median,
        "p95": p95,
    }


def _report(kind: str, result: dict, path: str, truncated: bool):
    classic = kind == "classic"
    log = _info if classic else _litert_log
    for text in _classic_lines(result) if classic else _litert_lines(result):
        if truncated and "Inference" in text:
            log(text[: len(text) // 2], end="")
            return
        log(text)
    if not path:
        return
    log(f"Saving benchmark result to: {path}")
    try:
        Path(path).write_bytes(_encode(result))
        log(f"Saved benchmark result to: {path}")
    except OSError:  # only a message
        _error(f"Failed to save benchmark result to: {path}")


def _classic_lines(r: dict):
    yield (
        f"Inference timings in us: Init: {r['init_us']}, First inference: "
        f"{r['warmup']['first']}, Warmup (avg): {r['warmup']['avg']:g}, "
        f"Inference (avg): {r['measured']['avg']:g}"
    )
    yield (
        "Note: as the benchmark tool itself affects memory footprint, the following is "
        "only APPROXIMATE to the actual memory footprint of the model at runtime. Take "
        "the information at your discretion."
    )
    yield (
        "Memory footprint delta from the start of the tool (MB): "
        f"init={r['init_kb'] / 1024:g} overall={r['overall_kb'] / 1024:g}"
    )
    if r["peak_mb"]:
        yield (
            "Overall peak memory footprint (MB) via periodic monitoring: "
            f"{r['peak_mb']:g}"
        )


def _litert_lines(r: dict):
    warmup, measured = r["warmup"], r["measured"]
    yield "\n========== BENCHMARK RESULTS =========="
    yield f"Model initialization: {r['init_us'] / 1e3:.2f} ms"
    yield f"Warmup (first):       {warmup['first'] / 1e3:.2f} ms"
    yield f"Warmup (avg):         {warmup['avg'] / 1e3:.2f} ms ({warmup['count']} runs)"
    yield (
        f"Inference (avg):      {measured['avg'] / 1e3:.2f} ms "
        f"({measured['count']} runs)"
    )
    yield f"Inference (min):      {measured['min'] / 1e3:.2f} ms"
    yield f"Inference (max):      {measured['max'] / 1e3:.2f} ms"
    yield f"Inference (std):      {measured['std'] / 1e3:.2f}"
    yield f"Throughput:           {r['speed']:.2f} MB/s"
    yield "\nMemory Usage:"
    yield f"Init footprint:       {r['init_kb'] / 1024:.2f} MB"
    yield f"Overall footprint:    {r['overall_kb'] / 1024:.2f} MB"
    if r["peak_mb"]:
        yield f"Peak memory:          {r['peak_mb']:.2f} MB"
    else:
        yield "Peak memory usage not available. (peak_mem_mb <= 0)"
    yield "======================================\n"


def _encode(r: dict) -> bytes:
    """Returns the result as an encoded tflite.tools.benchmark.BenchmarkResult."""
    times = r["measured"]
    names = ("avg", "min", "max", "std", "median", "p5", "p95")
    latency = [times[name] / 1e3 for name in names]
    others = (r["init_us"], r["warmup"]["first"], r["warmup"]["avg"])
    latency += [value / 1e3 for value in others]
    memory = [r["init_kb"], r["overall_kb"], *([r["peak_mb"]] if r["peak_mb"] else [])]
    misc = [r["size_mb"], times["count"], r["warmup"]["count"], r["speed"]]
    return b"".join(
        _field(number, b"".join(itertools.starmap(_field, enumerate(values, 1))))
        for number, values in enumerate((latency, memory, misc), 2)
    )


def _field(number: int, value) -> bytes:
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, bytes):
        return bytes([number << 3 | 2]) + _varint(len(value)) + value
    return bytes([number << 3]) + _varint(value)


def _varint(value: int) -> bytes:
    low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return low + _varint(value >> 7) if value > 0x7F else low
