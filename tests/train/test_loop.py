"""Runs of the whole loop on the digits, two epochs at two sizes."""

import dataclasses
import logging
import math
import os
import threading

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

import keras_mobilevit
from tests.helpers.evaluations import assert_same_evaluation
from tests.helpers.runs import CLASSIFIER as NETWORK
from tests.helpers.runs import SMALL
from tests.helpers.runs import TWO_EPOCHS_OF_DIGITS as CONFIG
from train import checks, loop
from train.config import load_config, make_config
from train.data.digits import digits_source
from train.data.registry import load_source
from train.models import build_models
from train.run.progress import CheckpointManager, Progress
from train.run.workdir import prepare_workdir
from train.step import make_eval_step
from train.tasks.classification.task import CLASSIFICATION
from train.tasks.registry import TASKS, load_task


def run(workdir, config=CONFIG, task=NETWORK):
    return loop.train_and_evaluate(task, config, digits_source(), workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing disturbed: its directory and its records."""
    workdir = tmp_path_factory.mktemp("run") / "new" / "workdir"
    return workdir, run(workdir)


def test_records(finished):
    workdir, records = finished
    assert [record["epoch"] for record in records] == [1, 2]
    assert [record["traces"] for record in records] == [2, 2]
    assert loop.RecordWriter(workdir, 2, "top1").records == records
    for record in records:
        assert record["skipped_train"] == record["skipped_validation"] == 0
        assert 0 <= record["top1"] <= record["top5"] <= 1
        assert np.isfinite(record["loss"]) and np.isfinite(record["train_loss"])
    assert records[1]["train_loss"] < records[0]["train_loss"]


def test_files(finished):
    workdir, _ = finished
    assert {path.name for path in workdir.iterdir()} == {
        "best.keras",
        "checkpoint.safetensors",
        "metrics.jsonl",
        "curves.png",
        "config.json",
        "labels.txt",
        "tensorboard",
    }
    assert list((workdir / "tensorboard").iterdir())
    assert (workdir / "labels.txt").read_text().split() == list("0123456789")
    assert load_config(workdir / "config.json") == CONFIG


def test_a_checkpoint_names_its_tensors_as_earlier_versions_did(finished):
    """So their runs continue."""
    workdir, _ = finished
    weights = {"predictions/kernel", "predictions/bias"}
    for filters in (8, 16):
        weights.add(f"conv{filters}/kernel")
        weights |= {f"norm{filters}/{name}" for name in ("gamma", "beta")}
    state = {
        "seed_10",  # of the dropout
        *(f"norm{f}/moving_{name}" for f in (8, 16) for name in ("mean", "variance")),
    }
    moments = {
        f"adamw/{weight.replace('/', '_')}_{kind}"
        for weight in weights
        for kind in ("momentum", "velocity")
    }
    expected = {
        "model": weights | state,
        "average": weights | state,
        "optimizer": moments | {"adamw/iteration", "adamw/learning_rate"},
    }
    assert set(load_file(workdir / "checkpoint.safetensors")) == {
        f"{group}/{name}" for group, names in expected.items() for name in names
    }


def test_best_model_is_the_average_at_its_best(finished):
    workdir, records = finished
    model = keras.models.load_model(workdir / "best.keras")
    strategy = tf.distribute.get_strategy()
    step = make_eval_step(CLASSIFICATION, model, strategy)
    manager = CheckpointManager(lambda progress: None, math.inf, threading.Event())
    run = loop.Run(CLASSIFICATION, CONFIG, digits_source(), workdir, strategy)
    metrics = loop.validate(run, step, Progress(), manager)
    best = max(records, key=lambda record: record["top1"])
    assert metrics["top1"] == pytest.approx(best["top1"], abs=1e-6)
    assert metrics["loss"] == pytest.approx(best["loss"], rel=1e-4)


def test_an_evaluation_of_the_best_model_gives_the_numbers_of_its_record(finished):
    workdir, records = finished
    best = max(records, key=lambda record: record["top1"])
    assert_same_evaluation(CLASSIFICATION, CONFIG, digits_source(), workdir, best)


def test_a_finished_run_is_not_trained_again(finished):
    workdir, records = finished
    before = (workdir / "checkpoint.safetensors").read_bytes()
    assert run(workdir) == records
    assert (workdir / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_run_continues_as_if_undisturbed(
    finished, tmp_path, monkeypatch
):
    calls = []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)

    evaluate = loop.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert len(loop.RecordWriter(tmp_path, 2, "top1").records) == 1

    records = run(tmp_path)
    workdir, expected_records = finished
    for key in ("epoch", "step", "train_loss", "loss", "top1", "learning_rate"):
        assert [r[key] for r in records] == pytest.approx(
            [r[key] for r in expected_records], rel=1e-5
        )
    continued = load_file(tmp_path / "checkpoint.safetensors")
    expected = load_file(workdir / "checkpoint.safetensors")
    assert continued.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            continued[name], value, rtol=1e-6, atol=1e-6, err_msg=name
        )


def test_another_configuration_is_refused(finished):
    workdir, _ = finished
    before = (workdir / "config.json").read_bytes()
    config = dataclasses.replace(CONFIG, label_smoothing=0.25)
    with pytest.raises(ValueError, match="label_smoothing was 0.1 and is 0.25"):
        run(workdir, config)
    assert (workdir / "config.json").read_bytes() == before


def test_other_classes_are_refused(finished):
    workdir, _ = finished
    source = dataclasses.replace(digits_source(), class_names=("a", "b"))
    with pytest.raises(ValueError, match="other classes"):
        prepare_workdir(workdir, CONFIG, source)
    assert (workdir / "labels.txt").read_text().startswith("0\n")


def test_the_training_loss_is_the_mean_over_the_examples(tmp_path):
    config = dataclasses.replace(
        CONFIG, epochs=1, learning_rate=0.0, min_learning_rate=0.0
    )
    (record,) = run(tmp_path, config, SMALL)
    assert record["train_loss"] == pytest.approx(np.log(10), abs=1e-4)
    assert record["loss"] == pytest.approx(np.log(10), abs=1e-4)


@pytest.mark.slow
def test_a_kill_between_record_and_checkpoint_loses_no_record(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, task=SMALL)
    assert [record["epoch"] for record in run(tmp_path, task=SMALL)] == [1, 2]


def test_fine_tuning_starts_from_the_backbone_of_a_file_of_other_classes(tmp_path):
    donor = keras_mobilevit.MobileViT_XXS(weights=None, classes=7)
    path = tmp_path / "donor.safetensors"
    keras_mobilevit.save_safetensors(donor, path)
    config = dataclasses.replace(CONFIG, weights=str(path))
    source = digits_source()
    model, average = build_models(CLASSIFICATION, config, source, is_fresh=True)
    for name in ("stem_conv", "stage5_vit_transformer2_ffn_expand", "head_bn"):
        for one, two, three in zip(
            donor.get_layer(name).get_weights(),
            model.get_layer(name).get_weights(),
            average.get_layer(name).get_weights(),
        ):
            np.testing.assert_array_equal(one, two)
            np.testing.assert_array_equal(one, three)
    assert model.output_shape == (None, 10)
    # A run that continues has its weights from the checkpoint.
    path.unlink()
    build_models(NETWORK, config, source, is_fresh=False)


@pytest.mark.slow
def test_a_frozen_backbone_is_deterministic():
    config = dataclasses.replace(CONFIG, freeze="backbone")
    model, _ = build_models(CLASSIFICATION, config, digits_source(), is_fresh=False)
    features = keras.Model(model.inputs[0], model.get_layer("head_pool").output)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3))
    one, two = (features(images, training=True).numpy() for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert len(model.trainable_weights) == 2


def test_weights_that_cannot_be_loaded_leave_no_directory(tmp_path):
    weights = tmp_path / "cut.keras"
    weights.write_bytes(b"PK")
    config = dataclasses.replace(CONFIG, weights=str(weights))
    with pytest.raises(ValueError, match="cut.keras is not a complete .keras file"):
        run(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_run_of_files_that_cannot_be_read_ends_with_a_name(tmp_path):
    for split in ("train", "validation"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            (folder / "cut.jpg").write_bytes(b"")
    source = load_source("classification", f"folder:{tmp_path / 'data'}")
    config = dataclasses.replace(CONFIG, batch_size=2)
    with pytest.raises(ValueError, match="None of the 2 train images.*cut.jpg"):
        loop.train_and_evaluate(SMALL, config, source, tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    def no_number(config, batch, outputs):
        return CLASSIFICATION.loss(config, batch, outputs) * float("nan")

    task = dataclasses.replace(SMALL, loss=no_number)
    with pytest.raises(
        FloatingPointError, match="nan at step 1 of the run, in epoch 1"
    ):
        run(tmp_path, task=task)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def rates(model) -> dict:
    layers = [x for x in model.layers if isinstance(x, keras.layers.Dropout)]
    return {layer.name: layer.rate for layer in layers}


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_average_of_a_frozen_backbone_is_noisy_and_trainable(name):
    task = load_task(name)
    config = make_config(task=task.name, data="digits", model="mobilevit_xxs")
    frozen = dataclasses.replace(config, freeze="backbone")
    source = digits_source()
    model, average = build_models(task, frozen, source, is_fresh=False)
    free = task.build_model(config, source)
    assert rates(average) == rates(free) != rates(model)
    assert len(average.trainable_weights) == len(free.trainable_weights)
    for one, other in zip(model.weights, average.weights, strict=True):
        assert one.path == other.path
        np.testing.assert_array_equal(one, other)


def test_a_frozen_backbone_of_random_weights_is_refused(tmp_path):
    config = dataclasses.replace(CONFIG, freeze="backbone")
    with pytest.raises(ValueError, match="--freeze=backbone without --weights"):
        run(tmp_path / "run", config, CLASSIFICATION)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_frozen_backbone_stays_as_it_was(tmp_path):
    weights = str(tmp_path / "start.safetensors")
    initial = keras_mobilevit.MobileViT_XXS(weights=None, classes=10)
    keras_mobilevit.save_safetensors(initial, weights)
    config = dataclasses.replace(
        CONFIG, freeze="backbone", epochs=1, sizes=(32,), weights=weights
    )
    run(tmp_path, config, CLASSIFICATION)
    trained = load_file(tmp_path / "checkpoint.safetensors")
    for variable in initial.weights:
        same = np.array_equal(variable.numpy(), trained[f"model/{variable.path}"])
        assert same == (not variable.path.startswith("predictions")), variable.path
    saved = keras.models.load_model(tmp_path / "best.keras")
    assert len(saved.trainable_weights) == len(
        CLASSIFICATION.build_model(CONFIG, digits_source()).trainable_weights
    )


def test_a_warmup_of_most_of_the_training_is_logged(caplog):
    config = make_config("digits", warmup_steps=60)
    with caplog.at_level(logging.WARNING, "absl"):
        checks.warn_of_warmup(config, 120)
        assert not caplog.text
        checks.warn_of_warmup(config, 100)
    assert "rises for 60 steps, but the whole training has about 100" in caplog.text
    assert "such as --epochs=90." in caplog.text  # 300 steps for 30 epochs of 100


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ({"data": "folder:x"}, "Use --recipe=fine_tune, in another --workdir. "),
        ({"recipe": "voc_detection_small"}, "Add --weights=imagenet, in another"),
        ({"recipe": "fine_tune"}, None),
    ],
)
def test_a_short_training_is_advised_to_start_from_pretrained(flags, advice, caplog):
    config = make_config(**flags)
    with caplog.at_level(logging.WARNING, "absl"):
        checks.warn_of_warmup(config, config.epochs)
    assert "may learn little. " in caplog.text and "raise --epochs" in caplog.text
    if advice:
        assert "Start from pretrained weights: " in caplog.text
        assert advice in caplog.text
    else:
        assert "pretrained" not in caplog.text
