"""`python -m keras_mobilevit predict`, on the digits."""

import os
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_mobilevit
from keras_mobilevit.__main__ import main
from keras_mobilevit.drawing import class_color
from keras_mobilevit.image_models import ImageModel
from keras_mobilevit.predict import _evaluation_value, _run, top_classes
from keras_mobilevit.ssdlite import detection_head
from tests.helpers.image_files import pil_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with labels, and images."""
    folder = tmp_path_factory.mktemp("predict")
    model = keras_mobilevit.MobileViT_XXS(
        weights=None,
        classes=3,
        classifier_activation=None,
        input_shape=(None, None, 3),
    )
    model.get_layer("predictions").bias.assign([0.0, 5.0, 2.0])
    model.save(folder / "best.keras")
    model.save_weights(folder / "best.weights.h5")
    keras_mobilevit.save_safetensors(model, folder / "best.safetensors")
    (folder / "labels.txt").write_text("cat\ndog\nhorse\n")
    (folder / "red.jpg").write_bytes(pil_file("RGB", (255, 0, 0), "JPEG"))
    (folder / "cut.jpg").write_bytes(b"no image")
    return folder


def run(monkeypatch, capsys, *arguments) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["keras_mobilevit", *map(str, arguments)])
    main()
    return capsys.readouterr().out.splitlines()


# Files without a network are read alike here; test_weights.py reads each kind.
@pytest.mark.parametrize(
    "ending",
    ["keras", pytest.param("weights.h5", marks=pytest.mark.slow), "safetensors"],
)
def test_the_best_classes_by_name(ending, folder, monkeypatch, capsys):
    lines = run(
        monkeypatch,
        capsys,
        "predict",
        folder / "red.jpg",
        folder / "red.jpg",
        "--model=mobilevit_xxs",
        f"--weights={folder / f'best.{ending}'}",
        "--size=64",
    )
    assert lines[:4] == lines[4:]
    assert lines[0] == str(folder / "red.jpg")
    names = [line.split("%")[1].strip() for line in lines[1:4]]
    shares = [float(line.split("%")[0]) for line in lines[1:4]]
    assert names == ["dog", "horse", "cat"]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["red.jpg", "--weights=nowhere.keras"], "no file nowhere.keras"),
        (
            ["red.jpg", "--model=resnet", "--weights=best.safetensors"],
            "Expected one of",
        ),
        (["cut.jpg", "--weights=best.keras"], "cut.jpg cannot be read as a picture"),
        (["nowhere.jpg", "--weights=best.keras"], "There is no file nowhere.jpg"),
        (["red.jpg", "--size=0"], "at least 32 and at most 2048. Received: 0"),
        (["red.jpg", "--size=400000"], "at most 2048. Received: 400000"),
        (["red.jpg", "--score=30"], r"--score must be in \[0, 1\]. Received: 30"),
        (["red.jpg", "--score=nan"], "--score must be in .*Received: nan"),
        (["red.jpg", "--labels=none.txt"], "--labels: there is no file none.txt"),
        (["red.jpg", "--model=best.keras"], "To load a file, use --weights=best.keras"),
        (["red.jpg", "--weights=x.mlpackage"], "x.mlpackage is a Core ML package"),
        (["red.jpg", "--weights=x.tflite"], "There is no file x.tflite"),
        (["red.jpg", "--weights=none"], "random weights, which predict nothing"),
        (
            ["red.jpg", "--weights=best.safetensors"],
            "The file holds a mobilevit_xxs of 3 classes.*built with 3 classes",
        ),
    ],
)
def test_errors(arguments, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
        run(monkeypatch, capsys, "predict", *arguments)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_a_class_without_a_name_is_refused(dtype):
    """Class numbers come from a file, and names may from another."""
    found = {"classes": np.array([[0, 5]], dtype)}
    model = ImageModel("segmenter", (32, 32), None, lambda image: found)
    args = types.SimpleNamespace(weights="seg.tflite")
    assert _run(model, args, "a.png", np.zeros((32, 32, 3)), 6) is found
    with pytest.raises(ValueError, match="class 5, but there are names of 3 classes"):
        _run(model, args, "a.png", np.zeros((32, 32, 3)), 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"eval_size": "48"}', "eval_size is '48'"),
        ('{"eval_si', "not valid JSON"),
        ('{"model_type": "other"}', ""),  # of another program
        ("[]", ""),
    ],
)
def test_a_configuration_that_is_not_used_is_told(text, reason, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    assert _evaluation_value(str(tmp_path / "best.keras"), "eval_size") is None
    warning = capsys.readouterr().err
    assert reason in warning and bool(reason) == ("config.json is not" in warning)


def test_a_lack_of_memory_is_one_line(folder, monkeypatch, capsys):
    def run_out(*_):
        raise MemoryError

    monkeypatch.setattr("keras_mobilevit.__main__.predict", run_out, raising=False)
    monkeypatch.setattr("keras_mobilevit.predict.predict", run_out)
    with pytest.raises(SystemExit, match="too little memory. End other programs"):
        run(monkeypatch, capsys, "predict", folder / "red.jpg")


def test_a_picture_does_not_replace_an_image(tmp_path, monkeypatch, capsys):
    build_detector(classes=1).save(tmp_path / "best.keras")
    for name in ("a.jpg", "a_boxes.png"):
        (tmp_path / name).write_bytes(pil_file("RGB", (90, 90, 90), "PNG"))
    before = (tmp_path / "a_boxes.png").read_bytes()
    files = sorted(tmp_path.glob("a*"))
    weights = f"--weights={tmp_path / 'best.keras'}"
    for images in (files, files[:1]):
        with pytest.raises(SystemExit, match="would replace .*a_boxes.png, which is"):
            run(monkeypatch, capsys, "predict", *images, weights)
        assert (tmp_path / "a_boxes.png").read_bytes() == before
    files[1].unlink()
    for _ in range(2):  # it replaces its own
        run(monkeypatch, capsys, "predict", files[0], weights, "--size=64")
    with pytest.raises(SystemExit, match="would replace .*a_boxes.png, which is"):
        run(monkeypatch, capsys, "predict", *files, weights)


def test_other_labels_are_refused():
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        top_classes(np.array([0.1, 0.2, 0.7]), ["cat", "dog"])


def test_without_names_classes_have_numbers():
    best = top_classes(np.array([0.1, 0.2, 0.7]), None)
    assert best == [("class 2", 0.7), ("class 1", 0.2), ("class 0", 0.1)]


def run_in_a_process(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "keras_mobilevit", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_help_does_not_load_keras():
    result = run_in_a_process("predict", "--help", KERAS_BACKEND="missing")
    assert result.returncode == 0 and result.stderr == ""
    assert "--weights" in result.stdout


@pytest.mark.parametrize(
    ("end", "message"),
    [("os.abort()", ""), ("raise ImportError('no backend')", "no backend")],
)
def test_a_failed_start_says_everything(end, message, tmp_path):
    code = f"import os\nos.write(2, b'needs AVX')\n{end}\n"
    (tmp_path / "keras.py").write_text(code)  # stands in for the real one
    result = run_in_a_process("predict", "a.jpg", PYTHONPATH=str(tmp_path))
    assert result.returncode and result.stderr.startswith("needs AVX")
    assert message in result.stderr


@pytest.mark.slow
def test_start_up_lines_of_tensorflow_are_not_shown(folder):
    weights = f"--weights={folder / 'best.keras'}"
    result = run_in_a_process("predict", folder / "red.jpg", weights, "--size=64")
    assert result.stderr == ""
    assert result.stdout.startswith(f"{folder / 'red.jpg'}\n")


def build_detector(classes: int) -> keras.Model:
    """Builds the real head on two layers, which are loaded in no time."""
    inputs = keras.Input((None, None, 3))
    x, maps = keras.layers.Rescaling(1 / 255)(inputs), {}
    for name, stride in (("P4", 16), ("P5", 2)):
        x = keras.layers.Conv2D(8, 3, strides=stride, padding="same")(x)
        maps[name] = x
    return keras.Model(inputs, detection_head(maps, classes))


def test_a_detector_draws_its_boxes(tmp_path, monkeypatch, capsys):
    model = build_detector(classes=2)
    for layer in model.layers:  # one box in the middle, of the second class
        if layer.name.endswith("_predictions"):
            kernel, bias = (np.zeros(w.shape, np.float32) for w in layer.weights)
            bias.reshape(-1, 7)[:, 4] = 9.0
            if layer.name.startswith("ssd_global"):
                bias.reshape(-1, 7)[0, 6] = 12.0
            layer.set_weights([kernel, bias])
    model.save(tmp_path / "best.keras")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(pil_file("RGB", (90, 90, 90), "JPEG", size=(300, 200)))
    arguments = "predict", photo, f"--weights={tmp_path / 'best.keras'}", "--size=64"
    lines = run(monkeypatch, capsys, *arguments)
    file = tmp_path / "photo_boxes.png"
    assert lines[0] == f"{photo}: 1 objects at 64x64, drawn in {file}"
    assert "95.3 %  dog  [16, 11, 284, 189]" in lines[1]
    drawn = keras.utils.img_to_array(keras.utils.load_img(file))
    assert drawn.shape == (200, 300, 3)
    assert (drawn[100, 16] != 90).any() and (drawn[100, 150] == 90).all()
    nothing = run(monkeypatch, capsys, *arguments, "--score=0.99")
    assert nothing == [f"{photo}: 0 objects at 64x64, drawn in {file}"]
    monkeypatch.setattr("keras_mobilevit.predict.MOST_PIXELS", 150 * 100)
    shrunk = run(monkeypatch, capsys, *arguments)
    assert shrunk == [f"{photo}: 300x200 pixels, drawn as 150x100", *lines]
    assert keras.utils.load_img(file).size == (150, 100)
    monkeypatch.setattr(sys, "argv", ["keras_mobilevit", *map(str, arguments)])
    (tmp_path / "labels.txt").write_text("cat\n")
    with pytest.raises(SystemExit, match="1 class names for 2 classes"):
        main()


@pytest.mark.slow
def test_a_segmenter_colors_its_classes(tmp_path, monkeypatch, capsys):
    model = keras_mobilevit.DeepLabV3(
        "mobilevit_xxs", classes=3, weights=None, input_shape=(64, 96, 3)
    )
    model.save_weights(tmp_path / "random.weights.h5")
    layer = model.get_layer("deeplab_classifier")  # the third class everywhere
    kernel, bias = layer.get_weights()
    layer.set_weights([0 * kernel, np.array([0.0, 1.0, 2.0])])
    model.save(tmp_path / "best.keras")
    (tmp_path / "labels.txt").write_text("background\ncat\ndog\n")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(pil_file("RGB", (90, 90, 90), "JPEG", size=(300, 200)))
    arguments = "predict", photo, f"--weights={tmp_path / 'best.keras'}"
    lines = run(monkeypatch, capsys, *arguments)
    file = tmp_path / "photo_classes.png"
    line = f"{photo}: 1 classes at 96x64, drawn in {file}"
    assert lines == [line, "  100.0 %  dog"]
    drawn = keras.utils.img_to_array(keras.utils.load_img(file))
    assert drawn.shape[1] == 300 and drawn.shape[0] > 200
    mixed = np.round(0.4 * 90 + 0.6 * np.array(class_color(2)))
    assert (drawn[:200] == mixed).all()

    weights = f"--weights={tmp_path / 'random.weights.h5'}"
    lines = run(
        monkeypatch,
        capsys,
        *("predict", photo, weights, "--model=deeplabv3_mobilevit_xxs", "--size=64"),
        f"--output={tmp_path}",
    )
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares == sorted(shares, reverse=True)

    (tmp_path / "labels.txt").write_text("cat\n")
    for more, message in (
        ([], "1 class names for 3 classes"),
        (["--score=0.9"], "--score applies only to detectors"),
        ([tmp_path / "photo.png"], f"would have the name {file}"),
    ):
        command = ["", *arguments[:1], *more, *arguments[1:]]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit, match=message):
            main()


@pytest.mark.slow
@pytest.mark.parametrize("content", ['{"eval_size": 96}', '{"eval_size": "x"}', "["])
def test_the_size_comes_from_the_trainings_evaluation(
    content, tmp_path, monkeypatch, capsys
):
    keras_mobilevit.DeepLabV3(
        "mobilevit_xxs", classes=3, weights=None, input_shape=(None, None, 3)
    ).save(tmp_path / "best.keras")
    (tmp_path / "config.json").write_text(content)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(pil_file("RGB", (90, 90, 90), "JPEG"))
    weights = f"--weights={tmp_path / 'best.keras'}"
    lines = run(monkeypatch, capsys, "predict", photo, weights)
    assert ("at 96x96" if "96" in content else "at 512x512") in lines[0]


def test_colors_of_classes_differ():
    colors = np.array([class_color(label) for label in range(21)])
    apart = np.abs(colors[:, None] - colors[None]).sum(axis=-1)
    assert apart[np.triu_indices(21, 1)].min() > 80
    assert np.diagonal(apart, 1).min() > 150  # neighbors


def save_head(folder: Path, activation, values, names: str, shape=(32, 32, 3)) -> Path:
    """Saves a classifier that returns `values` before its activation."""
    inputs = keras.Input(shape)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    head = keras.layers.Dense(len(values), activation=activation)
    model = keras.Model(inputs, head(x))
    head.set_weights([np.zeros((3, len(values))), np.array(values)])
    model.save(folder / "best.keras")
    (folder / "labels.txt").write_text(names)
    (folder / "photo.jpg").write_bytes(pil_file("RGB", (90, 90, 90), "JPEG"))
    return folder / "best.keras"


MULTI_LABEL = "  independent probability of each class:"


@pytest.mark.parametrize(
    ("activation", "values", "names", "expected"),
    [
        ("softmax", [0, 3.0], "no\nyes\n", ["   95.3 %  yes", "    4.7 %  no"]),
        (None, [0, 3.0], "no\nyes\n", ["   95.3 %  yes", "    4.7 %  no"]),
        (
            "sigmoid",
            [3.0, 3.0, -3.0],
            "cup\ntea\ndog\n",
            [MULTI_LABEL, "   95.3 %  cup", "   95.3 %  tea", "    4.7 %  dog"],
        ),
        ("sigmoid", [-3.0], "defect\n", ["    4.7 %  defect"]),
        (None, [-3.0], "defect\n", ["    4.7 %  defect"]),
        ("sigmoid", [-3.0], "cat\ndog\n", ["   95.3 %  cat", "    4.7 %  dog"]),
    ],
    ids=["softmax", "logits", "sigmoids", "one unit", "one logit", "one unit of two"],
)
def test_each_kind_of_head_gives_probabilities(
    activation, values, names, expected, tmp_path, monkeypatch, capsys
):
    weights = save_head(tmp_path, activation, values, names)
    photo = tmp_path / "photo.jpg"
    lines = run(monkeypatch, capsys, "predict", photo, f"--weights={weights}")
    assert lines == [str(photo), *expected]


def test_an_oblong_classifier_sees_oblong_images(tmp_path, monkeypatch, capsys):
    weights = save_head(tmp_path, "softmax", [0, 3.0], "a\nb\n", (32, 96, 3))
    arguments = "predict", tmp_path / "photo.jpg", f"--weights={weights}"
    assert run(monkeypatch, capsys, *arguments)[1] == "   95.3 %  b"
    with pytest.raises(SystemExit, match="96x32 pixels. Remove --size=64"):
        run(monkeypatch, capsys, *arguments, "--size=64")


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ('{"eval_crop": 1.0}', 0.25),
        ('{"eval_crop": 0.5}', 1.0),
        ("{}", 0.25),  # as a conversion of this file
    ],
)
def test_the_crop_comes_from_the_trainings_evaluation(
    config, share, tmp_path, monkeypatch, capsys
):
    """A white square fills a quarter of a black photo: half of each side."""
    weights = save_head(tmp_path, "sigmoid", [0.0], "white\n")
    model = keras.models.load_model(weights)
    model.layers[-1].set_weights([np.ones((3, 1)), np.zeros(1)])
    model.save(weights)
    (tmp_path / "config.json").write_text(config)
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[32:96, 32:96] = 255
    keras.utils.save_img(tmp_path / "photo.png", pixels, scale=False)
    arguments = "predict", tmp_path / "photo.png", f"--weights={weights}"
    found = float(run(monkeypatch, capsys, *arguments)[1].split("%")[0]) / 100
    assert found == pytest.approx(1 / (1 + np.exp(-3 * share)), abs=0.004)


def test_names_with_a_byte_order_mark(tmp_path, monkeypatch, capsys):
    weights = save_head(tmp_path, "softmax", [3.0, 0], "")
    names = b"\xef\xbb\xbfK\xc3\xa4fer\r\ndog\r\n"
    (tmp_path / "labels.txt").write_bytes(names)
    arguments = "predict", tmp_path / "photo.jpg", f"--weights={weights}"
    assert run(monkeypatch, capsys, *arguments)[1] == "   95.3 %  K\u00e4fer"
    (tmp_path / "labels.txt").write_bytes("K\u00e4fer".encode("latin1"))
    with pytest.raises(SystemExit, match=r"labels.txt is not text in UTF-8. Save it"):
        run(monkeypatch, capsys, *arguments)


INTERRUPT_AT = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run without it

class Interrupter:
    def find_spec(name, path, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("module", "level"),
    [
        ("keras", {}),
        ("keras", {"TF_CPP_MIN_LOG_LEVEL": "2"}),  # without a second process
        pytest.param("tensorflow.python.data", {}, marks=pytest.mark.slow),
        pytest.param("keras_mobilevit.predict", {}, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_ends_the_start_in_one_line(module, level, tmp_path, monkeypatch):
    """Each import is a moment of the start, which takes seconds."""
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT_AT)
    variables = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "INTERRUPT_AT": module}
    result = run_in_a_process("predict", "a.jpg", **variables, **level)
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
