"""The flags of all targets of `tflite/benchmark.py`."""

import os

from absl import flags

from tflite.drivers import coreml, targets

PATHS = ("adb", "benchmark_binary", "certificate", "key", "npu_libraries", "output")


def expand_paths(args) -> None:
    """Replaces `~`, which shells leave in `--flag=~/file`."""
    for name in PATHS:
        if args[name].value:
            args[name].value = os.path.expanduser(args[name].value)
    args["parse"].value = [os.path.expanduser(path) for path in args.parse or []]


def define_flags() -> None:
    """Defines the flags of all targets."""
    purposes = "; ".join(
        f"{name}: {row.purpose}" for name, row in targets.TARGETS.items()
    )
    flags.DEFINE_enum(
        "target", "host", list(targets.TARGETS), f"What measures. {purposes}."
    )
    _define_common_flags()
    _define_android_flags()
    _define_browser_flags()
    _define_core_ml_flags()


def _define_common_flags() -> None:
    flags.DEFINE_integer("num_threads", 1, "CPU threads.", lower_bound=1)
    flags.DEFINE_integer(
        "runs",
        None,
        f"Measured invocations of each. By default {targets.RUNS}, of packages "
        f"{coreml.RUNS} as in the paper. Android's tool goes on for a second at least.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "warmup_runs", 5, "Invocations before them, not measured.", lower_bound=1
    )
    flags.DEFINE_integer(
        "rounds", 10, "Host: turns in which each does its runs.", lower_bound=1
    )
    flags.DEFINE_list(
        "accelerators",
        None,
        "What runs the files. Android: cpu, gpu (both by default), npu. Browser: wasm, "
        "webgpu (both by default).",
    )


def _define_android_flags() -> None:
    flags.DEFINE_string("serial", None, "Android: which device, if there are several.")
    flags.DEFINE_string(
        "adb", None, "Android: the client, by default from PATH, the SDK or adbutils."
    )
    flags.DEFINE_list(
        "tools",
        ["classic"],
        "Android: programs that measure. classic (TFLite's interpreter), litert "
        "(LiteRT's compiled model; has the NPU), apk (classic as an app, scheduled as "
        "apps are).",
    )
    flags.DEFINE_string(
        "benchmark_binary",
        None,
        "Android: such a program that you have. By default it is downloaded once.",
    )
    flags.DEFINE_string("benchmark_sha256", None, "Android: refuse any other program.")
    flags.DEFINE_string(
        "cpu_mask", "", "Android: cores that may be used, hexadecimal: f0 for 4 to 7."
    )
    flags.DEFINE_integer(
        "repeats", 3, "Android: runs of the tool for each file.", lower_bound=1
    )
    flags.DEFINE_float(
        "cool_down",
        5.0,
        "Android: seconds before each run; longer while the phone is throttled. 0 for "
        "no waiting at all.",
        lower_bound=0,
    )
    flags.DEFINE_string(
        "npu_libraries",
        None,
        "Android: folder with the NPU's dispatch library (.so), and for files that "
        "were not compiled ahead of time the vendor's compiler plugin.",
    )
    flags.DEFINE_list(
        "tool_flags", [], "Android: more of the tool's own, --xnnpack_force_fp16=true."
    )
    flags.DEFINE_bool(
        "clear", False, "Android: remove the files from the device at the end."
    )
    flags.DEFINE_multi_string(
        "parse",
        None,
        "Android: measure nothing, but read this log of the tool's output, of a device "
        "farm for example; several times for several logs. The files may be named too, "
        "one for each log.",
    )


def _define_browser_flags() -> None:
    flags.DEFINE_string(
        "host",
        "127.0.0.1",
        "Browser: address to serve on, or this machine's name, which browsers shall "
        "use; 0.0.0.0 for the whole local network.",
    )
    flags.DEFINE_integer(
        "port",
        0,
        "Browser: TCP port to serve on; 0 for any free one.",
        lower_bound=0,
        upper_bound=65535,
    )
    flags.DEFINE_string(
        "certificate",
        None,
        "Browser: PEM file, to serve HTTPS: without it browsers have WebGPU and "
        "threads on localhost only.",
    )
    flags.DEFINE_string("key", None, "Browser: PEM file of the certificate's key.")
    flags.DEFINE_integer(
        "browsers",
        None,
        "Browser: end after so many have measured everything. By default at Ctrl-C.",
        lower_bound=1,
    )


def _define_core_ml_flags() -> None:
    flags.DEFINE_list(
        "compute_units",
        list(coreml.COMPUTE_UNITS),
        "Core ML: what may run the packages, one after the other.",
    )
    flags.DEFINE_enum(
        "device",
        coreml.THIS_MAC,
        coreml.DEVICES,
        "Core ML: this Mac, or the first such device on a cable.",
    )
    flags.DEFINE_string(
        "team", "", "Core ML: development team that signs the runner for --device."
    )
