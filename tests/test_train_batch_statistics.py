"""No training begins in which batch normalization sees too few values."""

import dataclasses
import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from train import checks, loop
from train.batch_statistics import (
    MIN_VALUES,
    MIN_VALUES_TO_CONTINUE,
    Statistics,
    check_statistics,
)
from train.config import RECIPES, make_config
from train.sources import Source, indexed_source
from train.tasks import TASKS

ONE_DEVICE = tf.distribute.get_strategy()
SOURCE = Source("some", ("a", "b"), {"train": 1000, "validation": 9}, None)


def build_model(config) -> keras.Model:
    """Builds the XXS of a task; the maps of XS and S have the same sizes."""
    config = dataclasses.replace(config, model="mobilevit_xxs")
    return TASKS[config.task].build_model(config, SOURCE)


@pytest.fixture(scope="module")
def statistics():
    """Gives the `Statistics` of a configuration's model, which is built once."""
    known = {}

    def of(config) -> Statistics:
        key = config.task, config.output_stride, config.freeze
        if key not in known:
            known[key] = Statistics(build_model(config))
        return known[key]

    return of


def check(statistics: Statistics, config, replicas: int = 1, **arguments) -> None:
    strategy = types.SimpleNamespace(num_replicas_in_sync=replicas)
    check_statistics(
        statistics,
        config,
        lambda c: checks.schedulable_shapes(c, strategy, SOURCE),
        **arguments,
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [(32, 32), (80, 64)])
def test_maps_are_those_of_a_real_image(task, size, statistics):
    found = statistics(make_config(task=task, data="digits"))
    inputs = [layer.input for layer in found.layers]
    maps = keras.Function(found.model.input, inputs)
    shapes = [x.shape for x in maps(np.zeros((1, *size, 3), "float32"))]
    name, values = found.smallest_map(*size)
    assert values == min(height * width for _, height, width, _ in shapes)
    assert name in {layer.name for layer in found.layers}
    assert len(found.layers) >= 32


@pytest.mark.parametrize(
    ("flags", "layer", "images"),
    [
        # The pooled branch, of one image in each part of a batch.
        (
            {"task": "segmentation", "data": "digits", "accumulation_steps": 4},
            "deeplab_pool_bn",
            "a part of the batch has 1 image,",
        ),
        (
            {"task": "segmentation", "data": "voc:x", "output_stride": 8},
            "deeplab_pool_bn",
            "a batch has 1 image,",
        ),
        # The last map of a detector is one cell.
        (
            {"task": "detection", "data": "voc:x", "sizes": (256,), "base_size": 256},
            "ssd256_extra_depthwise_bn",
            "a batch has 1 image,",
        ),
        # The last stage of a classifier, at its smallest size.
        (
            {"data": "digits", "sizes": (32,), "base_size": 32},
            "stage5_mv0_depthwise_bn",
            "a batch has 1 image,",
        ),
    ],
    ids=["parts", "recipe", "boxes", "classes"],
)
def test_one_value_is_refused_with_what_mends_it(flags, layer, images, statistics):
    batch_size = flags.get("accumulation_steps", 1)
    config = make_config(**flags, batch_size=batch_size)
    found = statistics(config)
    with pytest.raises(ValueError, match=f"{layer} sees 1 value") as error:
        check(found, config)
    message = str(error.value)
    assert images in message
    proposals = re.search(r"What mends it: (.*)\.$", message)[1].split(" or ")
    assert any("--batch_size" in proposal for proposal in proposals)
    for proposal in proposals:
        changes = dict(re.findall(r"--(\w+)=(\S+)", proposal))
        changes = {key: _number(key, value) for key, value in changes.items()}
        check(found, dataclasses.replace(config, **changes))


def _number(key: str, value: str):
    return tuple(map(int, value.split(","))) if key == "sizes" else int(value)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("replicas", [1, 2])
def test_recipes_are_refused_or_see_enough_values(recipe, replicas, statistics):
    refused = 0
    for batch_size in (1, 2, 3, 4, 5, 6, 8, 16, 64):
        for parts in (1, 2, 4):
            config = make_config(
                recipe, batch_size=batch_size, accumulation_steps=parts
            )
            found = statistics(config)
            try:
                check(found, config, replicas)
            except ValueError:
                refused += 1
                continue
            strategy = types.SimpleNamespace(num_replicas_in_sync=replicas)
            for shape in checks.shared_shapes(config, strategy):
                # Layers take their statistics from all devices together.
                images = shape.batch // parts
                _, positions = found.smallest_map(*shape[:2])
                assert images * positions >= MIN_VALUES, (batch_size, parts, shape)
    assert 0 < refused < 27


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_as_they_are_can_be_trained(recipe, statistics):
    config = make_config(recipe)
    source = dataclasses.replace(SOURCE, num_examples={"train": 5000, "validation": 9})
    check_statistics(
        statistics(config),
        config,
        lambda c: checks.schedulable_shapes(c, ONE_DEVICE, source),
    )


def test_what_is_frozen_needs_no_values(statistics):
    config = make_config(
        "digits", sizes=(32,), base_size=32, batch_size=1, freeze="backbone"
    )
    check(statistics(config), config)


def test_two_values_are_refused_but_a_run_that_has_them_continues(statistics):
    config = make_config("digits", sizes=(32,), base_size=32, batch_size=2)
    found = statistics(config)
    with pytest.raises(ValueError, match="sees 2 values for each channel. It needs 3"):
        check(found, config)
    check(found, config, minimum=MIN_VALUES_TO_CONTINUE)
    check(found, dataclasses.replace(config, batch_size=3))


def test_a_refused_training_leaves_nothing(tmp_path):
    config = make_config(
        task="segmentation",
        data="digits",
        sizes=(64,),
        base_size=64,
        batch_size=4,
        accumulation_steps=4,
        warmup_steps=1,
    )
    task, workdir = TASKS["segmentation"], tmp_path / "new" / "run"
    ids = [f"{i}.png" for i in range(1000)]
    source = indexed_source(
        "some", "ab", {"train": {"id": ids}, "validation": {"id": ids}}
    )
    with pytest.raises(ValueError, match="deeplab_pool_bn sees 1 value"):
        loop.train_and_evaluate(task, config, source, workdir)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("images", "flags", "message"),
    [
        (3, {"batch_size": 8}, "has 3 training images, but the smallest batch takes 4"),
        # The first epoch has the smallest size alone, of the largest batch.
        (6, {"batch_size": 8, "grow_epochs": 2}, "smallest batch takes 8"),
        (0, {"batch_size": 8}, "has no train images"),
    ],
)
def test_an_empty_training_is_refused(images, flags, message, tmp_path):
    config = make_config("digits", sizes=(32, 48), base_size=32, epochs=3, **flags)
    source = dataclasses.replace(
        SOURCE, num_examples={"train": images, "validation": 2}
    )
    with pytest.raises(ValueError, match=message) as error:
        checks.check_training(config, source, ONE_DEVICE)
    if proposed := re.search(r"--batch_size=(\d+)", str(error.value)):
        config = dataclasses.replace(config, batch_size=int(proposed[1]))
        checks.check_training(config, source, ONE_DEVICE)


def test_no_validation_images_are_refused():
    source = dataclasses.replace(SOURCE, num_examples={"train": 99, "validation": 0})
    with pytest.raises(ValueError, match="some has no validation images"):
        checks.check_training(make_config("digits"), source, ONE_DEVICE)
