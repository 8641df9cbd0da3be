"""Packages only the library: `train/` and `tflite/` run from a checkout."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (ROOT / "keras_mobilevit/__init__.py").read_text("utf-8")
).group(1)

# Other versions run code from a .keras file in spite of `safe_mode`, or read files that
# an HDF5 file inside it refers to.
KERAS = "keras>=3.12.4, !=3.13.*, !=3.14.0, !=3.15.0"

# `python -m keras_mobilevit predict`, of `.tflite` files too.
PREDICT = ["ai-edge-litert", "pillow", "tensorflow>=2.18"]
TRAIN = [
    *PREDICT,
    "absl-py",
    "defusedxml",
    "importlib_resources",  # tensorflow-datasets imports but does not require it
    "matplotlib",
    "pycocotools",
    "scikit-learn",
    "tensorboard",
    "tensorflow-datasets",
    "tqdm",
]
TFLITE = [
    *TRAIN,
    "adbutils",
    "ai-edge-quantizer",
    "flatbuffers",
    "jax",  # Keras's NumPy backend, with which measuring starts fast, imports it
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
DOCS = [
    "jax",  # Keras's NumPy backend, with which the build starts fast, imports it
    "mkdocs-material",
    "mkdocstrings[python]",
]
COREML = [*TFLITE, "coremltools>=9.0"]
DEV = [
    *COREML,
    *DOCS,
    "hypothesis",
    "ipykernel",  # runs the notebooks
    "keras-cv",  # an independent reference for boxes
    "mypy",
    "nbclient",
    "nbformat",
    "pytest",
    "pytest-xdist",
    "ruff",
]

setup(
    name="keras-mobilevit",
    version=VERSION,
    description="MobileViT for Keras: models, multi-scale training, TFLite, Core ML.",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["keras_mobilevit", "keras_mobilevit.*"]),
    package_data={"keras_mobilevit": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=["huggingface_hub>=1.0", KERAS, "numpy", "safetensors"],
    extras_require={
        "predict": PREDICT,
        "train": TRAIN,
        "tflite": TFLITE,
        "coreml": COREML,
        "peers": PEERS,
        "docs": DOCS,
        "dev": DEV,
    },
)
