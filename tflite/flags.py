"""The flags of `tflite/convert.py`. Importing this loads no Keras or TensorFlow."""

from collections.abc import Callable

from absl import flags

from tflite.formats.coreml import flags as coreml_flags
from tflite.formats.table import FORMATS
from tflite.suites.suites import BASELINE_NAMES
from tflite.tasks.registry import TASKS, output_flags
from tflite.validation.checks import CHECKS
from train.cli.networks import variant_names

# More than 25 images change top-1 by chance only, see docs/quantization.md.
CALIBRATION_IMAGES = 200


def flag_groups() -> dict[str, Callable[[], None]]:
    """Returns the functions that define the flags, by the heading in the help."""
    return {
        "Model": _define_model_flags,
        "Files": _define_file_flags,
        "Images": _define_data_flags,
        "int8-qat": _define_fine_tuning_flags,
        "Core ML": coreml_flags.define_flags,
    }


def _define_model_flags() -> None:
    heads = [row for row in TASKS if row.model_prefix]
    examples = [f"{row.model_prefix}mobilevit_s ({row.name})" for row in heads]
    flags.DEFINE_string(
        "model",
        None,
        "A .keras file, or its address on the Hugging Face Hub, hf://owner/name; a "
        f"name: {', '.join(variant_names())}; a name with a head, "
        f"such as {' or '.join(examples)}; or with --size=224 one of "
        f"{', '.join(BASELINE_NAMES)}.",
    )
    trained = [row for row in TASKS if row.published_weights]
    published = [f"{row.published_weights} ({row.name})" for row in trained]
    flags.DEFINE_string(
        "weights",
        None,
        f"Weights of a named model: the published {', '.join(published)}; the path of "
        "a file, or its address on the Hugging Face Hub, hf://owner/name; or none for "
        "random weights. Default: the published weights.",
    )
    flags.mark_flag_as_required("model")
    for name in dict.fromkeys(flag.name for flag in output_flags()):
        sharing = [flag for flag in output_flags() if flag.name == name]
        choices = dict.fromkeys(x for flag in sharing for x in flag.choices)
        texts = [flag.help_text for flag in sharing]
        if len(sharing) > 1:
            texts.insert(0, "What .tflite files return.")
        flags.DEFINE_enum(name, None, list(choices), " ".join(texts))


def _define_file_flags() -> None:
    flags.DEFINE_integer(
        "size",
        None,
        "Side of the input image in pixels. Default: the first of --sizes; else the "
        "only size that the .keras file takes; else eval_size of the config.json "
        "beside it; else 256 for classifiers, 320 for detectors, 512 for segmenters.",
    )
    flags.DEFINE_list("formats", ["fp32"], f"One or more of: {', '.join(FORMATS)}.")
    flags.DEFINE_string("output_dir", None, "Folder for the files; created if missing.")
    flags.mark_flag_as_required("output_dir")
    flags.DEFINE_string(
        "labels",
        None,
        "Text file with one class name per line, for the metadata inside the files. "
        "Default: labels.txt beside the .keras file or the file of --weights; the "
        "published names for published weights.",
    )
    flags.DEFINE_string("author", None, "Author of the model, for the metadata.")
    flags.DEFINE_string("license", None, "License of the model, for the metadata.")
    flags.DEFINE_list("allow", [], f"Checks that may fail: {', '.join(CHECKS)}.")
    flags.DEFINE_bool(
        "no_rewrite",
        False,
        "Convert the model unchanged, without the rewrite into a faster network.",
    )
    flags.DEFINE_bool(
        "check_gpu",
        False,
        "Also run the .tflite files on LiteRT's GPU accelerator. Needs a GPU, or "
        "SwiftShader (apt install chromium libvulkan1).",
    )


def _define_data_flags() -> None:
    flags.DEFINE_string(
        "data",
        None,
        "Validation images, to compare outputs with Keras and to measure accuracy: a "
        "value of --data of train/main.py; or the path of a folder, with photos inside "
        "or in its class folders, which does not measure accuracy. Default: the "
        "training data of the .keras file, from the config.json beside it. Named "
        "models have no training data: their float formats are compared on the digits, "
        "and formats with 8 bits or fewer need --data or --calibration.",
    )
    flags.DEFINE_integer(
        "eval_images",
        200,
        "Approximate number of validation images, spread evenly over the split; 0: "
        "all. They are held in memory.",
        lower_bound=0,
    )
    flags.DEFINE_string(
        "calibration",
        None,
        "Calibration images, which set the ranges of the int8 formats: the training "
        "images of a value of --data; or the path of a folder, with photos inside or "
        "in its class folders, whose names do not matter. They "
        "should look like the images of the application. Default: --data.",
    )
    flags.DEFINE_integer(
        "calibration_images",
        CALIBRATION_IMAGES,
        "Approximate number of calibration images; 0: all. Fewer than 50 give a "
        "warning, and fewer than 10 an error.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "crop",
        None,
        "Fraction of the short side that the center crop keeps, in (0, 1]. Default: "
        "that of the training's evaluation; 256/288 for named classifiers; else 1. "
        "Detectors and segmenters take the whole image.",
    )


def _define_fine_tuning_flags() -> None:
    flags.DEFINE_integer(
        "qat_epochs", 2, "Epochs of training for int8-qat, on --data.", lower_bound=1
    )
    flags.DEFINE_float(
        "qat_learning_rate", 1e-5, "Initial learning rate for int8-qat.", lower_bound=0
    )
    flags.DEFINE_integer(
        "qat_batch_size", 32, "Batch size for int8-qat.", lower_bound=1
    )
