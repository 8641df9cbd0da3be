"""Exports of other projects' networks."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from benchmarks import onnx_baselines
from keras_mobilevit import VARIANTS, DeepLabV3
from keras_mobilevit.configs import FAMILIES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/onnx_baselines.py"


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=cwd, capture_output=True, text=True
    )


def run_code(code: str, cwd):
    """Runs code in its own process: PyTorch may crash beside TensorFlow."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_every_family_has_a_segmenter():
    assert set(onnx_baselines.SEGMENTERS) == {family.title for family in FAMILIES}


def skip_without(*packages: str) -> None:
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"pip install '.[peers]': no {', '.join(missing)}")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--model=resnet50", "--output=a.onnx"), "deeplabv3_mobilevitv2_200"),
        (
            ("--model=mobilevit_s", "--output=a.tflite"),
            "must end in .onnx. Received: a",
        ),
        (("--model=mobilevit_s", "--output=a.onnx", "--size=0"), "size"),
        (("b", "--model=mobilevit_s", "--output=a.onnx"), "Unexpected arguments: b"),
    ],
)
def test_errors(arguments, message, tmp_path):
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "package, model",
    [("timm", "mobilevit_xxs"), ("transformers", "deeplabv3_mobilevit_xxs")],
)
def test_a_missing_package_is_an_error(package, model, tmp_path, monkeypatch):
    # The real PyTorch may crash beside TensorFlow, and is not reached.
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError, match=rf"pip install '.\[peers\]' first: .*{package}"
    ):
        onnx_baselines.export(model, None, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_missing_package_is_reported(tmp_path):
    code = f"""
import sys
sys.modules["timm"] = None
sys.argv = ["onnx_baselines.py", "--model=mobilevit_xxs", "--output=a.onnx"]
import runpy
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    result = run_code(code, tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: pip install '.[peers]'")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "package, model, size, shape",
    [
        ("timm", "mobilevit_xxs", 64, [1, 1000]),
        ("timm", "mobilevitv2_050", 64, [1, 1000]),
        ("transformers", "deeplabv3_mobilevit_xxs", 128, [1, 21, 8, 8]),
        ("transformers", "deeplabv3_mobilevitv2_050", 128, [1, 21, 8, 8]),
    ],
)
def test_a_network_is_exported(package, model, size, shape, tmp_path):
    skip_without(package, "torch", "onnxscript", "onnxruntime")
    result = run(
        f"--model={model}", f"--size={size}", "--output=out/a.onnx", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "out").iterdir()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert image.shape == [1, 3, size, size]
    (output,) = session.run(None, {image.name: np.ones(image.shape, np.float32)})
    assert list(output.shape) == shape
    assert 1e-6 < np.abs(output).max() < 1e6


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_segmenter_has_as_many_weights_as_ours(variant, tmp_path):
    skip_without("torch", "transformers")
    code = f"""
from benchmarks import onnx_baselines
model = onnx_baselines.BUILDERS["deeplabv3_"]({variant!r})
print(sum(weight.numel() for weight in model.parameters()))
"""
    result = run_code(code, tmp_path)
    ours = DeepLabV3(variant, weights=None)
    count = sum(int(np.prod(weight.shape)) for weight in ours.trainable_weights)
    assert result.stdout.split()[-1:] == [str(count)], result.stderr
