"""The runtimes of `--target=host`, as one table."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Session:
    """A model that is ready to run."""

    input_shape: tuple[int, ...]
    dtype: np.dtype  # of its only input
    invoke: Callable[[np.ndarray], object]  # runs the model on one input
    xnnpack_partitions: int | None = None  # pieces of the graph; `None` without XNNPACK


def _missing(package: str, error: ImportError) -> ValueError:
    return ValueError(f"{package} is not installed: pip install '.[peers]' ({error}).")


def _litert(path: str, num_threads: int) -> Session:
    from keras_mobilevit.litert import LiteRTModel

    # `host` has checked the file before the time counts.
    model = LiteRTModel(path, num_threads, is_checked=True)
    dtype = np.dtype(model.input["dtype"])
    partitions = model.xnnpack_partitions()
    return Session(model.input_shape, dtype, model.invoke, partitions)


def _onnxruntime(path: str, num_threads: int) -> Session:
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("ONNX Runtime", error) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has several kinds
        raise ValueError(f"{path} is not an ONNX model: {error}") from error
    (image,) = session.get_inputs()
    shape = tuple(image.shape)
    return Session(
        shape, np.dtype(np.float32), lambda x: session.run(None, {image.name: x})
    )


def _openvino(path: str, num_threads: int) -> Session:
    try:
        import openvino
    except ImportError as error:
        raise _missing("OpenVINO", error) from error
    core = openvino.Core()
    properties = {
        "INFERENCE_NUM_THREADS": num_threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        compiled = core.compile_model(core.read_model(path), "CPU", properties)
    except RuntimeError as error:
        raise ValueError(f"{path} is not an ONNX model: {error}") from error
    request = compiled.create_infer_request()
    shape = tuple(compiled.input(0).shape)
    return Session(shape, np.dtype(np.float32), lambda x: request.infer([x]))


@dataclasses.dataclass(frozen=True)
class Runtime:
    """One runtime."""

    suffix: str  # of its files
    modules: tuple[str, ...]  # to import before the clock starts
    # Makes a session from a path and a number of threads. Raises a ValueError if the
    # file is not such a model, or the runtime is not installed.
    load: Callable[[str, int], Session]


RUNTIMES = {
    "litert": Runtime(
        ".tflite", ("ai_edge_litert.interpreter", "keras_mobilevit.litert"), _litert
    ),
    "onnxruntime": Runtime(".onnx", ("onnxruntime",), _onnxruntime),
    "openvino": Runtime(".onnx", ("openvino",), _openvino),
}


def runtimes_of(path: str | Path) -> list[str]:
    """Returns the names of the runtimes that take a file, or raises a ValueError."""
    suffix = Path(path).suffix
    names = [name for name, runtime in RUNTIMES.items() if runtime.suffix == suffix]
    if not names:
        hint = " Use --target=coreml for packages." if suffix == ".mlpackage" else ""
        raise ValueError(f"{path} is neither a .tflite nor a .onnx file.{hint}")
    return names
