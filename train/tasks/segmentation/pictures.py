"""Pictures of a segmenter's work: the true classes beside the predicted ones."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from keras_mobilevit.drawing import BACKGROUND, OPACITY, add_legend, draw_classes
from train.data.masks import IGNORE_INDEX, decode_mask
from train.tasks.drawing import GRAY, at_viewing_size, side_by_side
from train.tasks.segmentation.postprocess import main_logits


def draw_examples(class_names: Sequence[str], batch: dict, outputs) -> list[np.ndarray]:
    """Draws truth and prediction side by side: see `train.tasks.task.Task.pictures`."""
    return [
        _draw_example(
            {name: value[index] for name, value in batch.items()},
            class_map,
            class_names,
        )
        for index, class_map in enumerate(main_logits(outputs).argmax(axis=-1))
    ]


def _draw_example(
    example: dict, class_map: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    image = at_viewing_size(example["image"], example["image_size"])
    truth, found = (
        _resize_classes(classes, image.shape[:2])
        for classes in (decode_mask(example["full_mask"]).numpy(), class_map)
    )
    is_partial = (truth == IGNORE_INDEX).any()
    caption = "truth (dark: not counted)" if is_partial else "truth"
    picture = side_by_side(
        {
            caption: _draw_mask(image, truth, class_names),
            "prediction": _draw_mask(image, found, class_names),
        }
    )
    labels = map(int, np.union1d(truth, found))
    names = {label: class_names[label] for label in labels if label != IGNORE_INDEX}
    shown = {label: name for label, name in names.items() if name != BACKGROUND}
    return add_legend(picture, shown)


def _resize_classes(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(classes.astype(np.uint8))
    return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))


def _draw_mask(
    image: np.ndarray, classes: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    """Colors an image by its classes; pixels that do not count are dark."""
    is_ignored = classes == IGNORE_INDEX
    colored = draw_classes(image, np.where(is_ignored, 0, classes), class_names)
    dark = np.round((1 - OPACITY) * image + OPACITY * GRAY).astype(np.uint8)
    return np.where(is_ignored[..., None], dark, colored)
