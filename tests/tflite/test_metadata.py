"""What a `.tflite` says of itself: metadata, labels, and what programs read of them."""

import json
import types
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_mobilevit import MobileViT_XXS
from keras_mobilevit.image_models import image_model_from_file, image_model_from_keras
from keras_mobilevit.litert import LiteRTModel, read_card
from tests.helpers import mediapipe_tasks as mediapipe
from tests.helpers.graphs import randomized
from tests.helpers.networks import build_detector, build_network, build_segmenter
from tests.helpers.options import make_options
from tflite import models, pipeline
from tflite.formats import conversion, quantize
from tflite.formats.table import FORMATS
from tflite.formats.uint8_ends import take_uint8
from tflite.metadata import attach
from tflite.metadata.origin import describe_origin, describe_preparation
from tflite.tasks.registry import task_of
from tflite.validation.op_stats import count_ops

SIZE = 64
LABELS = ["Käse", "a, b", "寿司", *map(str, range(7))]
CARD = {
    **describe_origin("Image classifier", "runs/best.keras", "none", "Ada", "MIT"),
    "preprocessing": f"RGB; {describe_preparation([SIZE], 0.875)}",
    "labels": LABELS,
    "task": "classification",
    "classes": 10,
    "crop": 0.875,
    "activation": "logits",
    "model": "/home/ada/runs/best.keras",
}


def network(task: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    source = types.SimpleNamespace(class_names=LABELS)
    config = types.SimpleNamespace(auxiliary_weight=0.0)
    build = {
        "classification": build_network,
        "detection": build_detector,
        "segmentation": build_segmenter,
    }[task]
    return randomized(build(config, source), 1)


def images(count: int = 4) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.float32)


def save(
    path: Path, model: keras.Model, variant: str = "", name: str = "fp32", **card
) -> conversion.Conversion:
    prepared = conversion.prepare(
        model, SIZE, task=task_of(model, variant), calibration=images()
    )
    row = FORMATS[name]
    row.file_type.save(row.build(prepared), path, CARD | card, prepared)
    return prepared


@pytest.mark.skipif(bool(mediapipe.MISSING), reason=mediapipe.MISSING)
def test_mediapipes_schema_reads_what_the_card_says(tmp_path):
    path = tmp_path / "model.tflite"
    save(path, network("classification"), "probabilities")
    found = mediapipe.read_metadata(path)
    assert found["identifier"] == "M001" and found["minParserVersion"] == "1.5.0"
    assert found["author"] == "Ada" and found["license"] == "MIT"
    assert found["description"] == "Image classifier, from best.keras"
    (graph,) = found["subgraphMetadata"]
    (image,), (output,) = graph["inputTensorMetadata"], graph["outputTensorMetadata"]
    assert image["description"] == CARD["preprocessing"]
    properties = {"colorSpace": 1, "defaultSize": {"width": SIZE, "height": SIZE}}
    assert image["content"]["contentProperties"] == properties
    assert image["processUnits"][0]["options"] == {"mean": [0.0], "std": [1.0]}
    assert image["stats"] == {"max": [255.0] * 3, "min": [0.0] * 3}
    assert output["name"] == "probabilities"
    assert output["associatedFiles"][0]["type"] == 2  # labels of the last axis


@pytest.mark.skipif(bool(mediapipe.MISSING), reason=mediapipe.MISSING)
def test_a_network_of_values_up_to_1_is_normalized(tmp_path):
    path = tmp_path / "model.tflite"
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    with pytest.warns(UserWarning, match="does not show whether"):
        save(path, keras.Model(inputs, keras.layers.Dense(10)(x)), "probabilities")
    (graph,) = mediapipe.read_metadata(path)["subgraphMetadata"]
    (image,) = graph["inputTensorMetadata"]
    assert image["processUnits"][0]["options"] == {"mean": [0.0], "std": [255.0]}
    assert image["stats"]["max"] == [1.0] * 3


def test_labels_and_the_card_are_in_the_file(tmp_path):
    path = tmp_path / "model.tflite"
    save(path, network("classification"), "probabilities")
    with zipfile.ZipFile(path) as archive:
        assert {x.compress_type for x in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("labels.txt").decode().splitlines() == LABELS
        inside = json.loads(archive.read("keras_mobilevit.json"))
    assert "/home" not in str(inside)  # the file goes to people who need no paths
    assert read_card(path) == inside | {"labels": LABELS}
    assert inside["crop"] == 0.875 and inside["input"] == {"largest_value": 255}


def test_the_same_content_gives_the_same_bytes(tmp_path):
    prepared = conversion.prepare(network("classification"), SIZE)
    paths = [tmp_path / "a.tflite", tmp_path / "b.tflite"]
    for path in paths:
        FORMATS["fp32"].file_type.save(prepared.float32, path, CARD, prepared)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with zipfile.ZipFile(paths[0]) as archive:
        assert {x.date_time[0] for x in archive.infolist()} == {1980}


def test_metadata_is_small_and_changes_no_output(tmp_path):
    path = tmp_path / "model.tflite"
    prepared = save(path, network("classification"), "probabilities")
    bare = tmp_path / "bare.tflite"
    bare.write_bytes(prepared.float32)
    assert path.stat().st_size - bare.stat().st_size < 5000
    found, expected = (LiteRTModel(x).predict(images()) for x in (path, bare))
    np.testing.assert_array_equal(found["probabilities"], expected["probabilities"])
    assert LiteRTModel(path).xnnpack_partitions() == 1


def test_reduced_precision_stays_declared(tmp_path):
    path = tmp_path / "model.tflite"
    save(path, network("classification"), name="fp16")
    entries = [x.name.decode() for x in attach.read_model(path.read_bytes()).metadata]
    assert {quantize.FP16_INFERENCE[0], attach.ENTRY} <= set(entries)


def test_weights_behind_the_flatbuffer_are_kept(tmp_path):
    """The quantizer puts weights of 256 KiB and more there."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(300, 3, strides=16)(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Conv2D(1000, 1)(x)
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    path = tmp_path / "model.tflite"
    prepared = save(path, keras.Model(inputs, outputs), name="int8")
    inner = prepared.bias_corrected
    recipe = quantize.integer_recipe()
    raw = quantize.quantize(inner.float32, recipe, inner.ranges)
    assert any(x.offset > 1 for x in schema.ModelT.InitFromPackedBuf(raw).buffers)
    before = tmp_path / "before.tflite"
    before.write_bytes(raw)
    # The same integers inside: outputs are equal, from uint8 and from int8.
    found, expected = (LiteRTModel(x).predict(images()) for x in (path, before))
    np.testing.assert_array_equal(found["logits"], expected["logits"])


def test_int8_takes_the_pixels_of_cameras(tmp_path):
    path = tmp_path / "model.tflite"
    save(path, network("classification"), "logits", "int8")
    model = LiteRTModel(path)
    assert model.input["dtype"] == np.uint8
    assert model.input["quantization"] == (1.0, 0)  # the pixel itself
    (output,) = model.outputs.values()
    assert output["dtype"] == np.uint8
    again = tmp_path / "again.tflite"
    again.write_bytes(take_uint8(path.read_bytes()))  # nothing is left to convert
    assert count_ops(again) == count_ops(path)


@pytest.mark.parametrize(
    ("task", "variant", "name"),
    [
        ("classification", "probabilities", "fp32"),
        ("classification", "logits", "fp32"),
        ("classification", "probabilities", "int8"),
        ("detection", "builtin", "fp32"),
        pytest.param("detection", "none", "fp32", marks=pytest.mark.slow),
        ("segmentation", "logits", "fp32"),
        ("segmentation", "logits", "int8"),
        ("segmentation", "raw", "fp32"),
        ("segmentation", "classmap", "fp32"),
    ],
)
def test_a_file_predicts_what_its_network_predicts(task, variant, name, tmp_path):
    path, model = tmp_path / "model.tflite", network(task)
    save(path, model, variant, name, task=task)
    image = images(1)[0]
    of_file, of_keras = (
        image_model_from_file(str(path)),
        image_model_from_keras(model, "model"),
    )
    assert of_file.kind == of_keras.kind
    assert of_file.sides == (SIZE, SIZE) and of_file.classes == of_keras.classes == 10
    found, expected = of_file.run(image), of_keras.run(image)
    if task == "classification":
        atol = 1e-5 if name == "fp32" else 0.05
        np.testing.assert_allclose(
            found["probabilities"], expected["probabilities"], atol=atol
        )
    elif task == "detection":
        assert len(found["scores"]) == len(expected["scores"]) > 5
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)
    elif variant == "logits":
        resized = keras.ops.image.resize(found["logits"], (SIZE, SIZE))
        same = np.argmax(resized, -1) == expected["logits"].argmax(-1)
        assert np.mean(same) > 0.9
    elif variant == "raw":
        resized = keras.ops.image.resize(found["logits"], (SIZE, SIZE))
        np.testing.assert_allclose(resized, expected["logits"], atol=1e-3)
    else:
        assert np.mean(found["classes"] == expected["logits"].argmax(-1)) > 0.999


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "model.tflite"
    inputs = keras.Input((SIZE, SIZE, 3))
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True)(inputs)
    model = keras.Model(inputs, {"a": mean, "b": mean + 1.0})
    with pytest.warns(UserWarning, match="does not show whether"):
        save(path, model)
    with pytest.raises(ValueError, match=r"returns a \(1, 1, 1, 3\).*Expected a file"):
        image_model_from_file(str(path))


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        ({"labelmap.txt": "cat\ndog\n"}, ["cat", "dog"]),
        ({"labels.txt": "cat\n", "labels_de.txt": "Katze\n"}, ["cat"]),
        ({"README.txt": "read me"}, None),
        ({}, None),
    ],
)
def test_the_file_of_another_program_has_its_labels_read(files, labels, tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(attach.append_files(b"any model", files))
    assert read_card(path).get("labels") == labels


@pytest.mark.parametrize(
    "files",
    [
        {"keras_mobilevit.json": "{"},
        {"keras_mobilevit.json": "[1]"},
        {"labels.txt": b"\xe4"},
    ],
)
def test_what_cannot_be_read_inside_is_named(files, tmp_path):
    path = tmp_path / "other.tflite"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    with pytest.raises(ValueError, match="other.tflite has class names or meta"):
        read_card(path)


def test_what_is_inside_counts_more_than_a_card_of_an_earlier_file(tmp_path):
    path = tmp_path / "model.tflite"
    save(path, network("classification"), "probabilities")
    stale = {"labels": ["old"], "crop": 0.1, "format": "fp16"}
    path.with_suffix(".json").write_text(json.dumps(stale))
    card = read_card(path)
    assert card["labels"] == LABELS and card["crop"] == 0.875
    assert card["format"] == "fp16"  # known only to the card


def test_a_tensor_that_is_returned_twice_is_described_twice(tmp_path):
    path = tmp_path / "model.tflite"
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dense(2)(x)
    save(path, keras.Model(inputs, [x, x]))
    assert sorted(attach.output_names(path.read_bytes())) == ["output_0", "output_1"]


def test_two_names_of_a_single_unit_stay_together(tmp_path):
    """MediaPipe takes one name for each value: that of the second class."""
    path = tmp_path / "model.tflite"
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    save(path, model, "probabilities", labels=["cat", "dog"], classes=1)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt") == b"dog\n"
    assert read_card(path)["labels"] == ["cat", "dog"]


def test_a_softmax_of_the_network_stays_float_in_int8(tmp_path):
    path = tmp_path / "model.tflite"
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(8, 3, strides=4)(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(1000, activation="softmax")(x))
    save(path, model, "probabilities", "int8", labels=[])
    (output,) = LiteRTModel(path).outputs.values()
    assert output["dtype"] == np.float32
    found = LiteRTModel(path).predict(images())["probabilities"]
    np.testing.assert_allclose(found, model.predict(images()), atol=1e-4)


def test_a_gray_network_gets_gray_images(tmp_path):
    path = tmp_path / "model.tflite"
    inputs = keras.Input((SIZE, SIZE, 1))
    x = keras.layers.Conv2D(8, 3, strides=4)(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    save(path, model, "probabilities")
    image = images(1)[0]
    found = image_model_from_file(str(path)).run(image)["probabilities"]
    expected = image_model_from_keras(model, "gray").run(image)["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow  # Keras runs each step of the suppression by itself
def test_a_lower_score_than_the_files_own_is_refused(tmp_path):
    path = tmp_path / "model.tflite"
    save(path, network("detection"), "builtin", task="detection")
    with pytest.raises(ValueError, match="score more than 0.01. Received: .* 0.001"):
        image_model_from_file(str(path), 0.001)
    save(path, network("detection"), "none", task="detection")
    found = image_model_from_file(str(path), 0.001).run(images(1)[0])
    assert len(found["scores"]) == 200


# From the flags -----------------------------------------------------------------------


def test_a_network_that_ends_in_a_softmax_has_no_logits():
    model = MobileViT_XXS(weights=None, classes=10)
    options = make_options(variants={"output": "logits"})
    with pytest.raises(ValueError, match="ends in a softmax.*Remove --output=logits"):
        pipeline.select_tasks(options, model)


def test_sigmoid_heads_are_told_as_such():
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    for classes, words in ((3, "do not sum to 1"), (1, "the only class")):
        outputs = keras.layers.Dense(classes, activation="sigmoid")(x)
        model = keras.Model(inputs, outputs)
        (task,) = pipeline.select_tasks(make_options(), model).values()
        meaning = task.outputs["probabilities"].meaning
        assert "sigmoid" in meaning and words in meaning


def found_labels(options, classes: int) -> list[str]:
    if options.labels:
        return pipeline._given_labels(options, classes)
    return pipeline._class_names(options, classes)


def labels_of(model: str = "mobilevit_xxs", classes: int = 3, **given) -> list[str]:
    return found_labels(make_options(model=model, **given), classes)


def test_labels_come_from_the_flag_or_from_beside_the_model(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    (tmp_path / "labels.txt").write_text("cat\ndog\nhorse\n")
    model = str(tmp_path / "best.keras")
    assert labels_of(model) == ["cat", "dog", "horse"]
    assert labels_of(model, labels=str(names)) == ["a", "b", "c"]
    assert labels_of(weights="none") == []
    with pytest.raises(ValueError, match="names 3 classes, but the model has 4"):
        labels_of(model, 4, labels=str(names))


def test_names_that_an_app_shows_do_not_replace_those_of_the_training(tmp_path):
    """The data knows the classes by the latter, so accuracy is measured."""
    (tmp_path / "names.txt").write_text("Katze\nHund\nPferd\n")
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    options = make_options(
        model=str(tmp_path / "best.keras"), labels=str(tmp_path / "names.txt")
    )
    task = task_of(model, "probabilities")
    alone = pipeline._provenance(options, task, model, 1.0)
    assert alone["labels"] == ["Katze", "Hund", "Pferd"]
    assert "class_names" not in alone
    (tmp_path / "labels.txt").write_text("cat\ndog\nhorse\n")
    both = pipeline._provenance(options, task, model, 1.0)
    assert both["labels"] == ["Katze", "Hund", "Pferd"]
    assert both["class_names"] == ["cat", "dog", "horse"]


def test_imagenets_names_are_told_apart(monkeypatch):
    """Two classes are called crane. The file of names would need a download."""
    names = [(f"n{i}", "crane" if i in (134, 517) else f"c{i}") for i in range(1000)]

    def decode(scores, top):
        order = np.argsort(-scores[0])[:top]
        return [[(*names[i], scores[0, i]) for i in order]]

    monkeypatch.setattr(models, "decode_predictions", decode)
    labels = labels_of(weights="imagenet", classes=1000)
    assert labels[134] == "crane (n134)" and labels[517] == "crane (n517)"
    assert labels[0] == "c0" and labels[999] == "c999"
    # Detectors on the same backbone have other classes.
    assert labels_of("ssdlite_mobilevit_xxs", weights="imagenet", classes=80) == []


def test_names_that_cannot_be_downloaded_are_a_warning(monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(models, "decode_predictions", fail)
    assert labels_of(weights="imagenet", classes=1000) == []
    assert "no class names. no network" in caplog.text
