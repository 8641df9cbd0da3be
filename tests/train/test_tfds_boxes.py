"""Detection data of TensorFlow Datasets, of a small data set made here."""

import numpy as np
import pytest

from train.data.pipeline import eval_batches, unreadable
from train.data.registry import load_source
from train.data.unreadable import with_reason
from train.tasks.detection.task import DETECTION

SIDES = (40, 50)  # of an image: height, width
OBJECTS = {"train": (130, 1), "validation": (150,)}


def define(name: str, **more) -> None:
    """Defines a data set, which TensorFlow Datasets then knows by the class's name.

    Args:
        name: of the class.
        **more: features of an object beside box and label, `{key: (dtype, value)}`.
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features
    image = np.zeros((*SIDES, 3), np.uint8)

    def rows(count: int) -> list[dict]:
        box = features.BBox(0.25, 0.2, 0.75, 0.6)
        values = {key: value for key, (_, value) in more.items()}
        flat = {"bbox": features.BBox(0.5, 0.5, 0.5, 0.9), "label": 1, **values}
        return [flat, *({"bbox": box, "label": 1, **values} for _ in range(count))]

    class Boxes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            objects = {
                "bbox": features.BBoxFeature(),
                "label": features.ClassLabel(names=["cat", "dog"]),
                **{key: dtype for key, (dtype, _) in more.items()},
            }
            return self.dataset_info_from_configs(
                features=features.FeaturesDict(
                    {
                        "image": features.Image(shape=(None, None, 3)),
                        "objects": features.Sequence(objects),
                    }
                )
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in OBJECTS}

        def _generate_examples(self, split):
            for index, count in enumerate(OBJECTS[split]):
                yield index, {"image": image, "objects": rows(count)}

    type(name, (Boxes,), {"__module__": __name__})


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Returns a function from a data set's features to its source."""
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))

    def load(class_name: str, name: str, **more):
        define(class_name, **more)
        return load_source("detection", f"tfds:{name}")

    return load


def test_no_object_is_cut_off(load):
    source = load("ManyBoxes", "many_boxes", is_crowd=(np.bool_, False))
    for split, counts in OBJECTS.items():
        examples = list(source.examples(split, None).as_numpy_iterator())
        found = sorted(len(example["classes"]) for example in examples)
        assert found == sorted(counts)  # and none of them is the flat one
    assert examples[0]["boxes"][0] == pytest.approx([0.2, 0.25, 0.6, 0.75])
    assert (examples[0]["classes"] == 1).all() and not examples[0]["is_crowd"].any()
    assert examples[0]["areas"] == pytest.approx(0.2)


def test_an_image_of_too_many_objects_is_skipped_and_named(load, monkeypatch):
    monkeypatch.setattr("train.data.tfds.MAX_OBJECTS", 129)
    source = load("TooManyBoxes", "too_many_boxes")
    batches = eval_batches(source, "train", 32, 2, 1.0, load=DETECTION.eval_example)
    (name,) = unreadable(source, "train", next(iter(batches)))
    assert "or one with more than 4,096 objects" in with_reason(name)


def test_the_area_is_that_of_the_mask(load):
    """By which COCO tells small objects from large ones; in pixels, of 40x50."""
    source = load("MaskedBoxes", "masked_boxes", area=(np.int64, 100))
    (example,) = source.examples("validation", None).as_numpy_iterator()
    assert example["areas"] == pytest.approx(100 / 2000)
    assert not example["is_crowd"].any()


def test_what_is_difficult_has_no_size(load):
    source = load("HardBoxes", "hard_boxes", is_difficult=(np.bool_, True))
    (example,) = source.examples("validation", None).as_numpy_iterator()
    assert example["is_crowd"].all() and np.isinf(example["areas"]).all()
