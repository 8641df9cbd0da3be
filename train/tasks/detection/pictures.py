"""Pictures of a detector's work: the true boxes beside the predicted ones."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_mobilevit.detection import detect
from keras_mobilevit.drawing import draw_boxes, draw_named_boxes
from train.tasks.drawing import at_viewing_size, side_by_side

MIN_SCORE = 0.3  # the default of `python -m keras_mobilevit predict`


def draw_examples(
    class_names: Sequence[str], batch: dict, outputs: dict
) -> list[np.ndarray]:
    """Draws truth and prediction side by side: see `train.tasks.task.Task.pictures`."""
    size = batch["image"].shape[1:3]
    found = detect(outputs, size, score_threshold=MIN_SCORE)
    found = {n: ops.convert_to_numpy(found[n]) for n in ("boxes", "scores", "classes")}
    return [
        _draw_example(
            {name: value[index] for name, value in batch.items()},
            {name: value[index] for name, value in found.items()},
            class_names,
        )
        for index in range(len(batch["image"]))
    ]


def _draw_example(example: dict, found: dict, class_names: Sequence[str]) -> np.ndarray:
    image = at_viewing_size(example["image"], example["image_size"])
    is_real, is_found = example["classes"] >= 0, found["classes"] >= 0
    classes = example["classes"][is_real]
    # The score counts these neither as found nor as missed.
    names = [
        f"{class_names[label]} (not counted)" if is_crowd else class_names[label]
        for label, is_crowd in zip(classes, example["is_crowd"][is_real])
    ]
    truth = draw_named_boxes(image, example["boxes"][is_real], classes, names)
    found = {name: value[is_found] for name, value in found.items()}
    predicted = draw_boxes(image, **found, labels=class_names)
    return side_by_side(
        {"truth": truth, f"predictions above {100 * MIN_SCORE:.0f} %": predicted}
    )
