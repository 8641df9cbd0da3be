"""What `benchmarks/training.py` measures of input: pipelines from JPEG files to batches.

Each pipeline is a function from settings and an order of the files to batches of random
crops in uint8, and loads its library itself; see `benchmarks.steps`.

  ours          train.data.pipeline.train_batches
  bare          the same crop and resizing in one tf.data map, without what makes ours
                a pipeline for training: no flip, no care for unreadable files, one size
  torchvision   ImageFolder, RandomResizedCrop and RandomHorizontalFlip in a DataLoader
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from benchmarks.workers import processor, seconds_of, serve, versions

ENVIRONMENT = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
JPEG_SUFFIXES = (".jpg", ".jpeg")
_JPEG_START = b"\xff\xd8\xff"
AHEAD = 128  # images that a pipeline decodes before they are asked for, at most


@dataclasses.dataclass(frozen=True)
class InputSettings:
    """What a worker measures.

    Attributes:
        pipeline: a key of `PIPELINES`.
        folder: of the class folders.
        files: paths of the JPEG files in it that are read.
        labels: of the files.
        size: side of the images of a batch.
        batch: images in a batch.
        threads: of the CPU, and of the pipeline.
    """

    pipeline: str
    folder: str
    files: tuple[str, ...]
    labels: tuple[int, ...]
    size: int
    batch: int
    threads: int


def _is_jpeg(path: Path) -> bool:
    if path.suffix.lower() not in JPEG_SUFFIXES:
        return False
    with open(path, "rb") as file:
        return file.read(len(_JPEG_START)) == _JPEG_START


def list_jpegs(folder: Path, at_most: int) -> tuple[list, list, list]:
    """Lists JPEG files from all over a folder of class folders.

    Args:
        folder: holds `<class>/*`.
        at_most: about as many files are looked at.

    Returns:
        Paths, labels, and the paths that were passed over since they are no JPEG.

    Raises:
        ValueError: if there is no such folder or no JPEG in it.
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
            f"No JPEG files among the {len(found)} looked at in {folder}/<class>/. "
            f"Expected some that end in {' or '.join(JPEG_SUFFIXES)}."
        )
    paths, labels = map(list, zip(*jpegs))
    taken = set(paths)
    return paths, labels, [str(file) for file, _ in found if str(file) not in taken]


def _set_threads(count: int) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)


def _with_threads(dataset, count: int):
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = count
    return dataset.with_options(options)


def our_batches(settings: InputSettings, order: np.ndarray):
    """The batches that train/loop.py trains on, of one size."""
    import tensorflow as tf

    from train.config import TrainConfig
    from train.data.pipeline import train_batches
    from train.data.sampler import BatchShape
    from train.data.sources import Source

    files = np.array(settings.files)[order]
    labels = np.array(settings.labels, np.int32)[order]
    examples = {"path": files, "label": labels, "id": files}
    source = Source(
        settings.folder,
        tuple(map(str, range(max(settings.labels) + 1))),
        {"train": len(order)},
        lambda split, seed: tf.data.Dataset.from_tensor_slices(examples),
    )
    shape = BatchShape(settings.size, settings.size, settings.batch)
    schedule = [shape] * (len(order) // settings.batch)
    batches = train_batches(source, TrainConfig(), schedule, epoch=0)
    batches = _with_threads(batches, settings.threads)
    return (batch["image"] for batch in batches)


def bare_batches(settings: InputSettings, order: np.ndarray):
    """The least that TensorFlow can do for a random crop of each file."""
    import tensorflow as tf

    from train.config import TrainConfig
    from train.data.augment import random_crop_window

    crop_scale = TrainConfig().crop_scale

    def load(place, path):
        encoded = tf.io.read_file(path)
        height, width = tf.unstack(tf.io.extract_jpeg_shape(encoded)[:2])
        seed = tf.stack([tf.constant(0, tf.int64), place])
        window = random_crop_window(height, width, crop_scale, seed)
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, [settings.size] * 2, antialias=True)
        return tf.saturate_cast(tf.round(image), tf.uint8)

    files = tf.data.Dataset.from_tensor_slices(np.array(settings.files)[order])
    images = files.enumerate().map(load, num_parallel_calls=settings.threads)
    batches = images.batch(settings.batch, drop_remainder=True)
    return iter(_with_threads(batches, settings.threads))


def torchvision_batches(settings: InputSettings, order: np.ndarray):
    """Torchvision's usual pipeline, `[batch, 3, height, width]`."""
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


PIPELINES = {
    "ours": our_batches,
    "bare": bare_batches,
    "torchvision": torchvision_batches,
}
_PACKAGES = {
    "ours": ("tensorflow",),
    "bare": ("tensorflow",),
    "torchvision": ("torchvision", "torch", "pillow"),
}


def random_order(num_files: int, count: int, seed: int) -> np.ndarray:
    """Returns `count` indices of files, each file about as often as any other."""
    rng = np.random.default_rng(seed)
    rounds = -(-count // num_files)
    return np.concatenate([rng.permutation(num_files) for _ in range(rounds)])[:count]


def _take(batches, count: int) -> None:
    for _ in range(count):
        next(batches)


def batches_ahead(batch: int, threads: int) -> int:
    """Returns how many batches must pass before the clock is started.

    By then the pipeline is as full as it stays, and as many are left when the clock
    stops: it sees neither the filling nor the end. torchvision's loader holds two
    batches a process.
    """
    return max(-(-AHEAD // batch), 2 * threads + 2)


def images_of_turn(steps: int, batch: int, threads: int) -> int:
    """Returns how many images a turn is given."""
    return (steps + 2 * batches_ahead(batch, threads)) * batch


def start(settings: dict):
    """Prepares a pipeline; see `benchmarks.workers.serve`."""
    settings = InputSettings(**settings)
    pipeline = PIPELINES[settings.pipeline]
    if "tensorflow" in _PACKAGES[settings.pipeline]:
        _set_threads(settings.threads)
    turns = itertools.count()

    def turn(request: dict) -> dict:
        steps, shape = request["steps"], (settings.batch, settings.threads)
        count = images_of_turn(steps, *shape)
        # A new one each turn, gone at its end, so that nothing is decoded meanwhile.
        order = random_order(len(settings.files), count, seed=next(turns))
        batches = pipeline(settings, order)
        _take(batches, batches_ahead(*shape))
        seconds = seconds_of(lambda: _take(batches, steps))
        # Batches come in bursts, as many as there are threads: only the mean counts.
        return {"seconds": [seconds / steps]}

    greeting = {
        "accelerator": "cpu",
        "device": processor(),
        "versions": versions(*_PACKAGES[settings.pipeline]),
    }
    return greeting, turn


if __name__ == "__main__":
    serve(start)
