"""From flags, recipes and a run's own files to a configuration."""

import dataclasses
import json

import pytest
from absl import flags

from train import flags as train_flags
from train import schedules
from train.config import load_config, make_config, save_config


def parsed(*arguments):
    """Returns the configuration of a command line."""
    values = flags.FlagValues()
    for define in train_flags.flag_groups(values).values():
        define()
    values(["main.py", *arguments])
    return train_flags.config_from_flags(values)


@pytest.fixture
def trained(tmp_path):
    """A `.keras` file, which nobody reads, beside the configuration of its training."""
    file = tmp_path / "best.keras"
    file.write_bytes(b"")
    config = make_config(data="folder:/x", eval_size=224, eval_crop=0.9)
    save_config(config, tmp_path / "config.json")
    return file


def test_a_key_that_is_not_known_does_not_change_how_a_file_is_measured(
    trained, caplog
):
    beside = trained.with_name("config.json")
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "mixed": 0.1}))
    with caplog.at_level("WARNING", "absl"):
        config = parsed("--mode=eval", "--data=folder:/x", f"--model={trained}")
    assert (config.eval_size, config.eval_crop) == (224, 0.9)
    assert f"{beside} has keys that this version does not know: mixed" in caplog.text


def test_a_configuration_that_cannot_be_read_is_refused(trained):
    trained.with_name("config.json").write_text('{"data": "folder:/x", "eval_si')
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        parsed("--mode=eval", "--data=folder:/x", f"--model={trained}")


def test_a_size_that_comes_from_a_recipe_is_told(trained, caplog):
    trained.with_name("config.json").unlink()
    arguments = "--mode=eval", "--data=folder:/x", f"--model={trained}"
    with caplog.at_level("WARNING", "absl"):
        assert parsed(*arguments).eval_size == 160
        assert "so the recipe sets --eval_size and --eval_crop" in caplog.text
        caplog.clear()
        parsed(*arguments, "--eval_size=64", "--eval_crop=1")
    assert not caplog.text


def test_a_run_of_one_low_rate_keeps_it_though_its_recipe_has_two(tmp_path):
    arguments = "--task=detection", "--data=tfds:coco/2017", f"--workdir={tmp_path}"
    new = parsed(*arguments)
    assert (new.min_learning_rate, new.warmup_learning_rate) == (1e-6, 9e-5)
    values = {**dataclasses.asdict(new), "min_learning_rate": 9e-5}
    del values["warmup_learning_rate"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    begun = load_config(tmp_path / "config.json")
    assert parsed(*arguments) == begun
    assert schedules.learning_rate(begun, 0, 0) == 9e-5
    assert schedules.learning_rate(begun, 10**6, 200) == pytest.approx(9e-5)
    save_config(begun, tmp_path / "config.json")  # as the continued run does
    assert parsed(*arguments) == begun
    given = parsed(*arguments, "--min_learning_rate=1e-5")
    assert given == dataclasses.replace(begun, min_learning_rate=1e-5)


@pytest.mark.parametrize(
    "flag", ["rand_augment=2", "random_erasing=0.25", "mixup=0.2", "cutmix=1"]
)
def test_augmentation_of_classification_is_refused_for_other_tasks(flag):
    name, _, value = flag.partition("=")
    assert getattr(parsed("--data=digits", f"--{flag}"), name) == float(value)
    with pytest.raises(ValueError, match=f"--{name} is for classification, but the"):
        parsed("--task=segmentation", "--data=digits", f"--{flag}")


def test_help_tells_which_recipes_depend_on_the_model():
    values = flags.FlagValues()
    for define in train_flags.flag_groups(values).values():
        define()
    assert "; by --model (imagenet_v2, coco, voc2012)." in values["weight_decay"].help
    assert "true; false (imagenet_v2)." in values["decay_norms"].help
