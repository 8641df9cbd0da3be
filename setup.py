"""Packages the library alone: `train/` and `tflite/` are run from a checkout."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (ROOT / "keras_mobilevit/__init__.py").read_text()
).group(1)

TRAIN = [
    "absl-py",
    "defusedxml",
    "importlib_resources",  # tensorflow-datasets imports it without asking for it
    "keras-cv",
    "matplotlib",
    "pillow",
    "pycocotools",
    "scikit-learn",
    "tensorboard",
    "tensorflow>=2.18",
    "tensorflow-datasets",
    "tqdm",
]
TFLITE = [
    *TRAIN,
    "ai-edge-litert",
    "ai-edge-quantizer",
    "flatbuffers",
    "protobuf",
    "segno",
    "tensorflow-model-optimization",
    "tf_keras",
]
PEERS = [
    *TFLITE,
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "timm",
    "torch",
    "transformers",
]
COREML = [*TFLITE, "coremltools>=9.0"]
DEV = [*COREML, "adbutils", "hypothesis", "jax", "pytest", "ruff"]

setup(
    name="keras-mobilevit",
    version=VERSION,
    description="MobileViT for Keras: models, multi-scale training, TFLite, Core ML.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["keras_mobilevit", "keras_mobilevit.*"]),
    python_requires=">=3.10",
    # Older versions of Keras run code from a .keras file in spite of `safe_mode`.
    install_requires=["huggingface_hub", "keras>=3.12", "numpy", "safetensors"],
    extras_require={
        "train": TRAIN,
        "tflite": TFLITE,
        "coreml": COREML,
        "peers": PEERS,
        "dev": DEV,
    },
)
