"""Runs `.tflite` files on images: python arm_runner.py IMAGES.npy OUTPUT.npz FILE...

It runs on the emulated machine of tests/helpers/arm.py, which has only NumPy and
LiteRT.
"""

import sys
from pathlib import Path

import numpy as np

from keras_mobilevit.litert import LiteRTModel


def main(images: str, output: str, *files: str) -> None:
    found = {}
    for file in files:
        model, name = LiteRTModel(file, num_threads=1), Path(file).name
        found[f"{name}/partitions"] = model.xnnpack_partitions()
        for key, values in model.predict(np.load(images)).items():
            found[f"{name}/outputs/{key}"] = values
    np.savez(output, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
