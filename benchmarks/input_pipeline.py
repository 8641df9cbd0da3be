"""Input pipelines that `benchmarks/training.py` measures: from JPEG files to batches.

A pipeline is a function from settings and an order of the files to batches of random
crops in uint8. It imports its own library; see `benchmarks.steps`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.workers import describe, seconds_of, set_tensorflow_threads

ENVIRONMENT = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
JPEG_SUFFIXES = (".jpg", ".jpeg")
_JPEG_START = b"\xff\xd8\xff"
AHEAD = 128  # a pipeline decodes at most so many images in advance


@dataclasses.dataclass(frozen=True)
class InputSettings:
    """The input pipeline that a worker measures."""

    pipeline: str  # a key of `PIPELINES`
    folder: str  # of the class folders
    files: tuple[str, ...]  # JPEG files to read
    labels: tuple[int, ...]  # of the files
    size: int  # side of the images of a batch
    batch: int
    threads: int


def _is_jpeg(path: Path) -> bool:
    if path.suffix.lower() not in JPEG_SUFFIXES:
        return False
    with open(path, "rb") as file:
        return file.read(len(_JPEG_START)) == _JPEG_START


def list_jpegs(folder: Path, at_most: int) -> tuple[list[str], list[int], list[str]]:
    """Lists JPEG files among about `at_most`, evenly spaced over the class folders.

    Returns their paths and labels, and the paths that are not JPEG files.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Expected {folder}/<class>/*.")
    classes = sorted(child for child in folder.iterdir() if child.is_dir())
    found = [
        (file, label)
        for label, child in enumerate(classes)
        for file in sorted(child.iterdir())
        if file.is_file()
    ]
    found = found[:: max(1, len(found) // at_most)]
    jpegs = [(str(file), label) for file, label in found if _is_jpeg(file)]
    if not jpegs:
        raise ValueError(
            f"No JPEG files among the {len(found)} checked in {folder}/<class>/. "
            f"Expected some that end in {' or '.join(JPEG_SUFFIXES)}."
        )
    paths, labels = [path for path, _ in jpegs], [label for _, label in jpegs]
    taken = set(paths)
    return paths, labels, [str(file) for file, _ in found if str(file) not in taken]


def _with_threads(dataset, count: int):
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = count
    return dataset.with_options(options)


def our_batches(settings: InputSettings, order: np.ndarray) -> Iterator:
    """Makes the batches that train/loop.py trains on, in one size."""
    from train.config import TrainConfig
    from train.data.pipeline import train_batches
    from train.data.sampler import BatchShape
    from train.data.source import indexed_source

    files = np.array(settings.files)[order]
    labels = np.array(settings.labels, np.int32)[order]
    class_names = tuple(map(str, range(max(settings.labels) + 1)))
    columns = {"path": files, "label": labels, "id": files}
    source = indexed_source(settings.folder, class_names, {"train": columns})
    shape = BatchShape(settings.size, settings.size, settings.batch)
    schedule = [shape] * (len(order) // settings.batch)
    batches = train_batches(source, TrainConfig(), schedule, epoch=0)
    batches = _with_threads(batches, settings.threads)
    return (batch["image"] for batch in batches)


def bare_batches(settings: InputSettings, order: np.ndarray) -> Iterator:
    """Makes batches with the fewest steps that TensorFlow needs for random crops.

    Flips, several sizes and the handling of unreadable files are left out.
    """
    import tensorflow as tf

    from train.config import TrainConfig
    from train.data.augment import random_crop_window

    crop_scale = TrainConfig().crop_scale

    def load(position, path):
        encoded = tf.io.read_file(path)
        height, width = tf.unstack(tf.io.extract_jpeg_shape(encoded)[:2])
        seed = tf.stack([tf.constant(0, tf.int64), position])
        window = random_crop_window(height, width, crop_scale, seed)
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, [settings.size] * 2, antialias=True)
        return tf.saturate_cast(tf.round(image), tf.uint8)

    files = tf.data.Dataset.from_tensor_slices(np.array(settings.files)[order])
    images = files.enumerate().map(load, num_parallel_calls=settings.threads)
    batches = images.batch(settings.batch, drop_remainder=True)
    return iter(_with_threads(batches, settings.threads))


def torchvision_batches(settings: InputSettings, order: np.ndarray) -> Iterator:
    """Makes batches with torchvision's usual pipeline, `[batch, 3, height, width]`."""
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(1)  # each of the loader's processes has one too
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(settings.size),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    dataset = datasets.ImageFolder(
        settings.folder,
        transform,
        is_valid_file=set(settings.files).__contains__,
        allow_empty=True,
    )
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=settings.batch,
        sampler=order.tolist(),
        num_workers=settings.threads,
        drop_last=True,
    )
    return (images for images, _ in loader)


# The function and the packages of each pipeline.
PIPELINES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "ours": (our_batches, ("tensorflow",)),
    "bare": (bare_batches, ("tensorflow",)),
    "torchvision": (torchvision_batches, ("torchvision", "torch", "pillow")),
}


def random_order(num_files: int, count: int, seed: int) -> np.ndarray:
    """Returns `count` indices of files, each file about as often as any other."""
    rng = np.random.default_rng(seed)
    rounds = -(-count // num_files)
    return np.concatenate([rng.permutation(num_files) for _ in range(rounds)])[:count]


def _take(batches: Iterator, count: int) -> None:
    for _ in range(count):
        next(batches)


def batches_ahead(batch: int, threads: int) -> int:
    """Returns how many batches to take before the clock starts.

    By then the pipeline's buffers are full. As many batches are left when the clock
    stops, so the time includes neither the start nor the end of the pipeline.
    torchvision's loader holds two batches for each process.
    """
    return max(-(-AHEAD // batch), 2 * threads + 2)


def images_of_turn(steps: int, batch: int, threads: int) -> int:
    """Returns the number of images of a turn."""
    return (steps + 2 * batches_ahead(batch, threads)) * batch


def start(settings: dict) -> tuple[dict, Callable[[dict], dict]]:
    """Prepares a pipeline; see `benchmarks.workers.Candidate`."""
    own = InputSettings(**settings)
    make_batches, packages = PIPELINES[own.pipeline]
    if "tensorflow" in packages:
        set_tensorflow_threads(own.threads)
    seeds = itertools.count()

    def measure(request: dict) -> dict:
        steps = request["steps"]
        count = images_of_turn(steps, own.batch, own.threads)
        # A new pipeline each turn, so that none decodes between turns.
        order = random_order(len(own.files), count, seed=next(seeds))
        batches = make_batches(own, order)
        _take(batches, batches_ahead(own.batch, own.threads))
        seconds = seconds_of(lambda: _take(batches, steps))
        # Batches come in bursts, so only the mean counts.
        return {"seconds": [seconds / steps]}

    return describe(packages), measure
