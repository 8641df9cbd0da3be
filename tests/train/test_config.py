"""The configuration: what it refuses, and its way to a file and back."""

import dataclasses
import json
import re

import pytest

from keras_mobilevit import configs, preprocessing
from train import config as train_config
from train import schedules
from train.config import (
    RETIRED,
    TrainConfig,
    default_recipe,
    load_config,
    make_config,
    save_config,
)
from train.recipes import RECIPES

FIELDS = [field.name for field in dataclasses.fields(TrainConfig)]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model": "nonsense"}, "'nonsense'.*mobilevit_xxs, mobilevit_xs, mobilevit_s"),
        ({"sizes": ()}, "`sizes` must name at least one size. Received none"),
        ({"sizes": (64, 31)}, "integers of at least 32. Received: 31"),
        ({"sizes": (64, 0)}, "integers of at least 32. Received: 0"),
        ({"sizes": (64.0,)}, "integers of at least 32. Received: 64.0"),
        ({"sizes": ("64",)}, "integers of at least 32. Received: '64'"),
        ({"base_size": 16}, "`base_size`.*at least 32. Received: 16"),
        ({"eval_size": -256}, "`eval_size`.*at least 32. Received: -256"),
        ({"sizes": (64, 32, 64)}, r"`sizes` must differ. Received: \(64, 32, 64\)"),
        ({"epochs": 0}, "`epochs` must be at least 1. Received: 0"),
        ({"epochs": 1.5}, "`epochs` must be of type int.*Received: 1.5"),
        ({"epochs": True}, "`epochs` must be of type int.*Received: True"),
        ({"sizes": 64}, "`sizes` must be a list of integers. Received: 64"),
        ({"weight_decay": float("nan")}, "`weight_decay`.*finite.*Received: nan"),
        ({"seed": 2**32}, r"`seed` must be in \[0, 4294967295\]"),
        ({"batch_size": -1}, "`batch_size` must be at least 1. Received: -1"),
        ({"warmup_steps": -1}, "`warmup_steps` must be at least 0. Received: -1"),
        ({"weight_decay": -0.1}, "`weight_decay` must be at least 0. Received: -0.1"),
        ({"seed": -1}, r"`seed` must be in \[0, .*Received: -1"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be in \[0, 1\).*1.0"),
        ({"label_smoothing": -0.1}, r"`label_smoothing` must be in \[0, 1\).*-0.1"),
        ({"ema_momentum": 1}, r"`ema_momentum` must be in \[0, 1\). Received: 1"),
        ({"eval_crop": 0}, r"`eval_crop` must be in \(0, 1\]. Received: 0"),
        ({"crop_scale": 1.5}, r"`crop_scale` must be in \(0, 1\]. Received: 1.5"),
        ({"learning_rate": 1e-5}, "`min_learning_rate` <= `learning_rate`.*0.0002 and"),
        ({"min_learning_rate": -1.0}, "`min_learning_rate` must be at least 0.*-1.0"),
        ({"output_stride": 32}, "`output_stride` must be 8 or 16. Received: 32"),
        ({"auxiliary_weight": -1.0}, "`auxiliary_weight` must be at least 0.*-1.0"),
        ({"gradient_clip": -1.0}, "`gradient_clip` must be at least 0.*-1.0"),
        ({"rand_augment": -1}, "`rand_augment` must be at least 0.*-1"),
        ({"rand_augment": True}, "`rand_augment` must be of type int.*True"),
        ({"random_erasing": 1.5}, r"`random_erasing` must be in \[0, 1\].*1.5"),
        ({"mixup": -0.2}, "`mixup` must be at least 0.*-0.2"),
        ({"cutmix": -1.0}, "`cutmix` must be at least 0.*-1.0"),
        ({"freeze": "head"}, "`freeze` must be one of: none, backbone.*'head'"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        make_config(**values)


def test_constants_are_those_of_the_library():
    assert train_config.MIN_SIZE == configs.MIN_SIZE
    assert train_config.CROP_FRACTION == preprocessing.CROP_FRACTION


def test_unknown_key():
    valid = re.escape(", ".join(FIELDS))
    with pytest.raises(ValueError, match=f"Unknown keys.*: epoch, lr. .*{valid}"):
        make_config(lr=0.1, epoch=3)


def test_unknown_recipe():
    with pytest.raises(
        ValueError,
        match="'large'.*imagenet, imagenet_v2, folder_small, fine_tune, digits, coco",
    ):
        make_config("large")


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_recipes(recipe):
    config = make_config(recipe)
    assert config == TrainConfig(**RECIPES[recipe])
    assert make_config(recipe, epochs=7) == dataclasses.replace(config, epochs=7)


@pytest.mark.parametrize(
    "data, recipe",
    [("digits", "digits"), ("folder:/a:b", "folder_small"), ("tfds:mnist", "imagenet")],
)
def test_default_recipe(data, recipe):
    assert default_recipe(data) == recipe
    assert make_config(data=data) == make_config(recipe, data=data)


@pytest.mark.parametrize(
    "data, recipe",
    [
        ("digits", "digits_detection"),
        ("voc:cells", "voc_detection_small"),
        ("coco:x", "coco"),
    ],
)
def test_default_recipe_of_detection(data, recipe):
    assert default_recipe(data, "detection") == recipe
    assert make_config(task="detection", data=data).task == "detection"


@pytest.mark.parametrize(
    "data, recipe",
    [("digits", "digits_segmentation"), ("voc:roads", "voc_segmentation_small")],
)
def test_default_recipe_of_segmentation(data, recipe):
    assert default_recipe(data, "segmentation") == recipe
    assert make_config(task="segmentation", data=data).task == "segmentation"
    with pytest.raises(ValueError, match="takes `digits` or `voc:PATH`"):
        default_recipe("coco:x", "segmentation")


@pytest.mark.parametrize("data", ["", "nonsense", "Digits", "voc:cells"])
def test_no_recipe_for_unknown_data(data):
    with pytest.raises(ValueError, match="`digits`, `folder:PATH` or `tfds:NAME`"):
        default_recipe(data)
    with pytest.raises(ValueError, match="Unknown task 'tracking'. Expected one of"):
        default_recipe(data, "tracking")


@pytest.mark.parametrize(
    "config",
    [
        *map(make_config, RECIPES),
        make_config(sizes=[64, 32], flip=True, weight_decay=1e-7),
    ],
    ids=[*RECIPES, "other"],
)
def test_a_saved_configuration_is_loaded_as_it_was(config, tmp_path):
    path = tmp_path / "config.json"
    save_config(config, path)
    assert load_config(path) == config
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "config.json"
    save_config(make_config(), path)
    return path


def test_file_with_an_unknown_key(saved):
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "lr": 1}))
    with pytest.raises(ValueError, match="Unknown keys in .*config.json: lr. Valid"):
        load_config(saved)


def test_unknown_keys_can_be_skipped_with_a_warning(saved, caplog):
    values = {**json.loads(saved.read_text()), "eval_size": 224, "lr": 1, "mixed": 0.1}
    saved.write_text(json.dumps(values))
    with caplog.at_level("WARNING", "absl"):
        assert load_config(saved, skip_unknown=True).eval_size == 224
    assert (
        f"{saved} has keys that this version does not know: lr, mixed." in caplog.text
    )


RETIRED_VALUES = {"grow_epochs": 5, "rotation": 10.0, "xla": True}


def test_retired_keys_are_read_and_reported(saved, caplog):
    saved.write_text(json.dumps({**json.loads(saved.read_text()), **RETIRED_VALUES}))
    with caplog.at_level("WARNING", "absl"):
        assert load_config(saved) == make_config()
    for name, value in RETIRED_VALUES.items():
        assert f"{saved} sets {name} to {value}, which is no longer used" in caplog.text
    assert set(RETIRED) == set(RETIRED_VALUES)
    assert not set(RETIRED) & set(FIELDS)


def test_retired_keys_with_their_default_are_read_silently(saved, caplog):
    old = {name: default for name, (default, _) in RETIRED.items()}
    saved.write_text(json.dumps({**json.loads(saved.read_text()), **old}))
    with caplog.at_level("INFO", "absl"):
        assert load_config(saved) == make_config()
    assert not caplog.text


def test_a_value_that_is_not_valid_is_told_with_the_file(saved):
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "epochs": 0}))
    with pytest.raises(ValueError, match="config.json: `epochs` must be at least 1"):
        load_config(saved)


def test_file_of_something_else(saved):
    saved.write_text('{"architecture": "mobilevit_s", "output_stride": 32}')
    with pytest.raises(ValueError, match="not a training configuration.*no data"):
        load_config(saved)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_that_an_editor_has_saved_again(saved, encoding):
    """With a byte order mark, the ends of lines of Windows, and names in any script."""
    save_config(make_config(data="folder:/фото/写真"), saved)
    values = json.loads(saved.read_text(encoding="utf-8"))
    text = json.dumps(values, ensure_ascii=False, indent=2).replace("\n", "\r\n")
    saved.write_bytes(text.encode(encoding))
    assert load_config(saved).data == "folder:/фото/写真"


@pytest.mark.parametrize("recipe", ["coco", "voc2012"])
def test_the_published_rates_of_detectors_and_segmenters(recipe):
    config = make_config(recipe)
    assert config.warmup_learning_rate == 9e-5 and config.min_learning_rate == 1e-6
    with pytest.raises(ValueError, match="`warmup_learning_rate` <= `learning_rate`"):
        make_config(recipe, learning_rate=5e-5)
    with pytest.raises(ValueError, match="`warmup_learning_rate` must be at least 0"):
        make_config(recipe, warmup_learning_rate=-1.0)


PUBLISHED_V2 = {  # peak of the learning rate, weight decay
    "mobilevitv2_050": (0.0090, 0.004),
    "mobilevitv2_075": (0.0090, 0.008),
    "mobilevitv2_100": (0.0075, 0.013),
    "mobilevitv2_125": (0.0049, 0.020),
    "mobilevitv2_150": (0.0035, 0.029),
    "mobilevitv2_175": (0.0026, 0.039),
    "mobilevitv2_200": (0.0020, 0.050),
}


@pytest.mark.parametrize("model", PUBLISHED_V2)
def test_the_published_rates_of_mobilevit_v2(model, monkeypatch):
    monkeypatch.setattr(train_config, "_check_model", lambda name: None)
    rate, decay = PUBLISHED_V2[model]
    config = make_config("imagenet_v2", model=model)
    assert (config.learning_rate, config.weight_decay) == (rate, decay)
    assert config.min_learning_rate == pytest.approx(rate / 10)
    assert schedules.learning_rate(config, 0, 0) == 1e-6
    assert schedules.learning_rate(config, 20_000, 0) == rate
    last = schedules.learning_rate(config, 10**6, 300)
    assert last == pytest.approx(rate / 10)
    given = make_config("imagenet_v2", model=model, weight_decay=0.5)
    assert given == dataclasses.replace(config, weight_decay=0.5)


def test_the_recipe_of_mobilevit_v2_for_its_own_and_other_models(monkeypatch):
    monkeypatch.setattr(train_config, "_check_model", lambda name: None)
    config = make_config("imagenet_v2")
    assert config == make_config("imagenet_v2", model="mobilevitv2_100")
    other = make_config("imagenet_v2", model="mobilevit_xxs")
    assert other == dataclasses.replace(config, model="mobilevit_xxs")
    published = dict(
        sizes=(256,),
        base_size=256,
        batch_size=1024,
        learning_rate_batch=1024,
        epochs=300,
        crop_scale=0.08,
        flip=True,
        rand_augment=2,
        random_erasing=0.25,
        mixup=0.2,
        cutmix=1.0,
        decay_norms=False,
        gradient_clip=10.0,
        label_smoothing=0.1,
        ema_momentum=0.9995,
    )
    assert {name: getattr(config, name) for name in published} == published


def test_keys_that_came_later_have_their_defaults(saved):
    values = json.loads(saved.read_text())
    later = "head_lr_multiplier", "decay_norms", "gradient_clip", "mixup", "cutmix"
    for name in (*later, "rand_augment", "random_erasing"):
        del values[name]
    saved.write_text(json.dumps(values))
    assert load_config(saved) == make_config()


@pytest.mark.parametrize("text", ["", "{", "sizes = 3"])
def test_file_of_broken_json(saved, text):
    saved.write_text(text)
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        load_config(saved)


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_file_without_an_object(saved, text):
    saved.write_text(text)
    with pytest.raises(ValueError, match="config.json must hold a JSON object"):
        load_config(saved)


def test_paths_are_absolute_so_that_a_run_continues_from_anywhere(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = make_config(data="folder:./photos/", weights="a.keras")
    assert config.data == f"folder:{tmp_path}/photos"
    assert config.weights == f"{tmp_path}/a.keras"


def test_a_name_in_upper_case_has_the_rates_of_its_width():
    upper = make_config("imagenet_v2", model="MobileViTV2_200")
    assert upper == make_config("imagenet_v2", model="mobilevitv2_200")
    assert upper.learning_rate == 0.002


def test_published_detectors_and_segmenters_have_the_values_of_their_family():
    first = make_config("voc2012", model="mobilevit_s")
    second = make_config("voc2012", model="mobilevitv2_100")
    names = ("learning_rate", "weight_decay", "head_lr_multiplier", "gradient_clip")
    assert [getattr(first, name) for name in names] == [9e-4, 0.01, 10.0, 0.0]
    assert [getattr(second, name) for name in names] == [5e-4, 0.05, 1.0, 10.0]
    assert make_config("coco", model="mobilevitv2_050").weight_decay == 0.05
