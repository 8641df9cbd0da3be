"""The flags of `tflite/convert.py`, and what is refused of them before any work."""

import dataclasses
import tempfile
from pathlib import Path

import keras
from absl import flags, logging

from keras_mobilevit.configs import MIN_SIZE
from keras_mobilevit.preprocessing import CROP_FRACTION
from tflite.formats.coreml import options as coreml_options
from tflite.formats.file_types import COREML, TFLITE, FileType
from tflite.formats.table import FORMATS
from tflite.images import photo_folder
from tflite.models import HEADS, default_size, fixed_size, split_name
from tflite.suites.baselines import BASELINES
from tflite.tasks.registry import BY_NMS, BY_OUTPUT, FORMS, task_of
from tflite.tasks.task import Task
from tflite.validation import card as cards
from tflite.validation import gpu
from train.config import load_config

# The weights of a named model, by its head.
PUBLISHED_WEIGHTS = {"": "imagenet", "ssdlite_": "coco", "deeplabv3_": "voc"}


def define_flags() -> None:
    """Defines all flags of a conversion."""
    _define_model_flags()
    _define_file_flags()
    _define_data_flags()
    _define_fine_tuning_flags()
    coreml_options.define_flags()
    flags.mark_flags_as_required(["model", "output_dir"])


def _define_model_flags() -> None:
    flags.DEFINE_string(
        "model",
        None,
        "mobilevit_xxs, mobilevit_xs, mobilevit_s, one of them with a head ("
        f"{', '.join(f'{head}mobilevit_s' for head in HEADS)}), a .keras file, or with "
        "--size=224 one of "
        f"{', '.join(BASELINES)}.",
    )
    flags.DEFINE_string(
        "weights",
        None,
        "For a named model: imagenet, coco (of a detector), voc (of a segmenter), a "
        "path, or none for random weights. By default the published ones.",
    )
    flags.DEFINE_enum(
        "nms",
        None,
        list(BY_NMS),
        "Of a detector's .tflite: none returns the box and the scores of every anchor, "
        "for a suppression of your own; builtin returns what is on the image, with "
        "TFLite's own non-maximum suppression inside, which runs on the CPU. Default: "
        "none.",
    )
    flags.DEFINE_enum(
        "output",
        None,
        list(BY_OUTPUT),
        "Of a segmenter's .tflite: logits returns those of each cell at the output "
        "stride, for the application to resize; classmap the class of each pixel, in "
        "bytes. Default: logits.",
    )


def _define_file_flags() -> None:
    flags.DEFINE_integer(
        "size",
        None,
        "Side of the input image in pixels. By default the first of --sizes, or the "
        "only one that a .keras file takes, or that of the training's evaluation, if "
        "config.json is beside it, else 256, 320 of a detector, 512 of a segmenter.",
    )
    flags.DEFINE_list("formats", ["fp32"], f"One or more of: {', '.join(FORMATS)}.")
    flags.DEFINE_string("output_dir", None, "Where the files go; made if missing.")
    flags.DEFINE_list(
        "allow", [], f"Limits that may be missed: {', '.join(cards.CHECKS)}."
    )
    flags.DEFINE_bool(
        "no_rewrite", False, "Convert the model as it is, with any layers."
    )
    flags.DEFINE_bool(
        "check_gpu",
        False,
        "Run the files on LiteRT's GPU accelerator too: any GPU, or SwiftShader "
        "(apt install chromium libvulkan1).",
    )


def _define_data_flags() -> None:
    flags.DEFINE_string(
        "data",
        None,
        "Validation images for parity and accuracy: as --data of train/main.py, or a "
        "folder of photos without classes, for parity alone. By default what a .keras "
        "file was trained on, if config.json is beside it. A named model has no data "
        "of its own: its float formats are compared on digits, and formats of 8 bits "
        "or fewer, dynamic too, need --data or --calibration.",
    )
    flags.DEFINE_integer(
        "eval_images",
        200,
        "About how many, from all over the split; 0 for all (held in memory).",
    )
    flags.DEFINE_string(
        "calibration",
        None,
        "Images like those that the application will see, which set the ranges of the "
        "int8 formats. Takes what --data takes, and uses its training images; or a "
        "folder of photos without classes. By default --data.",
    )
    flags.DEFINE_integer(
        "calibration_images",
        CALIBRATION_IMAGES,
        "About how many; 0 for all. Fewer than 50 give a warning, fewer than 10 an "
        "error.",
    )
    flags.DEFINE_float(
        "crop",
        None,
        "Part of their short side that is used, in (0, 1]. By default as at the "
        "training's evaluation, 256/288 for a classifier by name, as published, else "
        "1. Detectors and segmenters see the whole image.",
    )


# From 25 on the number changes top-1 by chance only, see docs/quantization.md.
CALIBRATION_IMAGES = 200


def _define_fine_tuning_flags() -> None:
    flags.DEFINE_integer(
        "qat_epochs", 2, "Epochs of int8-qat's training on --data.", lower_bound=1
    )
    flags.DEFINE_float(
        "qat_learning_rate", 1e-5, "Its learning rate at the start.", lower_bound=0
    )
    flags.DEFINE_integer("qat_batch_size", 32, "Its batch.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images a conversion uses, as `--data` names them.

    Attributes:
        validation: what the files are compared and scored on.
        calibration: what sets the ranges of the int8 formats, `None` if unknown.
        crop: the fraction of an image's short side that an evaluation sees.
    """

    validation: str
    calibration: str | None
    crop: float


def data_from_flags(args) -> Data:
    """Returns the images of a conversion, and refuses to guess them.

    Raises:
        ValueError: if a format of 8 bits is asked for, but no images of the model's
            own kind are known.
    """
    file = config_file(args.model)
    config = load_config(file) if file else None
    trained_on = config.data if config else None
    # Photos without classes prove a file, but they are not what it was trained on.
    of_data = trained_on if args.data and photo_folder(args.data) else None
    calibration = args.calibration or of_data or args.data or trained_on
    validation = args.data or trained_on or calibration or "digits"
    data = Data(validation, calibration, _crop(args, config))
    rounded = [name for name in args.formats if FORMATS[name].has_8_bits]
    if rounded:
        is_random = not args.model.endswith(".keras") and args.weights == "none"
        _check_photos(rounded, data, is_random or trained_on == "digits")
        _warn_of_int8(args, data)
    return data


def _crop(args, config) -> float:
    """Returns the part of an image that its evaluation sees."""
    if args.crop is not None:
        return args.crop
    if config is not None:
        return config.eval_crop
    is_named = not args.model.endswith(".keras") and args.model not in BASELINES
    return CROP_FRACTION if is_named else 1.0


def _check_photos(formats: list[str], data: Data, may_be_digits: bool) -> None:
    """Refuses images that cannot show what 8 bits cost."""
    names = ", ".join(formats)
    if data.calibration is None:
        raise ValueError(
            f"{names}: what 8 bits cost shows only on photos like those that the model "
            "will see. Received neither --data=folder:PATH nor --calibration=FOLDER; "
            "200 photos are enough."
        )
    if "digits" in (data.calibration, data.validation) and not may_be_digits:
        raise ValueError(
            f"{names}: the digits are not like the images that this model was trained "
            "on. Name photos with --data=folder:PATH or --calibration=FOLDER."
        )
    if "int8-qat" in formats and photo_folder(data.validation):
        raise ValueError(
            f"int8-qat trains on images with labels; {data.validation} is a folder of "
            "photos. Name the model's data with --data=folder:PATH."
        )


def _warn_of_int8(args, data: Data) -> None:
    """Warns of what makes a calibrated file worse, or its proof weaker."""
    if not any(FORMATS[name].needs_calibration for name in args.formats):
        return
    if args.no_rewrite:
        logging.warning(
            "--no_rewrite: channels are not equalized and biases not corrected, so the "
            "int8 formats of pretrained networks may lose their accuracy."
        )
    if data.calibration == data.validation and photo_folder(data.calibration):
        logging.warning(
            "The photos of %s both calibrate and prove the files. Name others with "
            "--calibration.",
            data.calibration,
        )


def weights_from_flags(args) -> str:
    """Returns the weights of a conversion, `"none"` of a `.keras` file.

    Raises:
        ValueError: if there are no published ones, or a file has its own.
    """
    if args.model.endswith(".keras"):
        if args.weights is not None:
            raise ValueError(f"{args.model} has its own weights; remove --weights.")
        return "none"
    head, backbone = split_name(args.model)
    if args.weights is None and args.model in BASELINES:
        raise ValueError(
            f"There are no published weights of {args.model}. --weights=none gives it "
            "random ones, which take the same time."
        )
    weights = args.weights or PUBLISHED_WEIGHTS[head]
    if weights == "none":
        logging.warning(
            "%s gets random weights, as --weights=none says: the files are good for "
            "measuring time, and for nothing else.",
            args.model,
        )
    elif weights == "imagenet" and head:
        logging.warning(
            "--weights=imagenet is of the backbone %s alone: the head of %s gets "
            "random weights.",
            backbone,
            args.model,
        )
    is_path = weights not in ("none", *PUBLISHED_WEIGHTS.values())
    return str(Path(weights).expanduser()) if is_path else weights


def config_file(model: str) -> Path | None:
    """Returns the configuration that a training left beside a `.keras` file."""
    file = Path(model).with_name("config.json")
    return file if model.endswith(".keras") and file.exists() else None


def settle_size(args, model: keras.Model) -> None:
    """Sets `--size` where it is not given: to the only one that the model takes."""
    if args.size is None and args.sizes:
        args.size = int(args.sizes[0])
    if args.size is None:
        args.size = fixed_size(model) or _default_size(args.model, model)


def _default_size(path: str, model: keras.Model) -> int:
    file = config_file(path)
    return load_config(file).eval_size if file else default_size(path, model)


def _check_names(flag: str, names: list[str], known) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"Unknown {flag}: {', '.join(unknown)}. Expected some of: "
            f"{', '.join(known)}."
        )


def file_types(args) -> set:
    """Returns the kinds of files that the formats are written as."""
    return {FORMATS[name].file_type for name in args.formats}


def check_flags() -> tuple[Path, Data]:
    """Refuses flags that cannot work.

    Returns:
        The folder of the files, made if new, and which images are used.
    """
    args = flags.FLAGS
    if not args.formats:
        raise ValueError(f"--formats needs one or more of: {', '.join(FORMATS)}.")
    _check_names("formats", args.formats, FORMATS)
    _check_names("limits in --allow", args.allow, cards.CHECKS)
    coreml_options.check_flags(args, COREML in file_types(args))
    if args.model.endswith(".keras"):
        args.model = str(Path(args.model).expanduser())
    args.weights = weights_from_flags(args)
    data = data_from_flags(args)
    if args.size is not None and args.size < MIN_SIZE:
        raise ValueError(f"--size must be at least {MIN_SIZE}. Received: {args.size}.")
    if args.crop is not None and not 0 < args.crop <= 1:
        raise ValueError(f"--crop must be in (0, 1]. Received: {args.crop}.")
    for name in ("eval_images", "calibration_images"):
        if args[name].value < 0:
            raise ValueError(f"--{name} must not be negative.")
    if args.check_gpu and TFLITE not in file_types(args):
        raise ValueError("--check_gpu is for .tflite files: remove it.")
    if args.check_gpu:
        gpu.require_driver()
    folder = Path(args.output_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write into --output_dir: {error}.") from error
    return folder, data


def tasks_from_flags(args, model: keras.Model) -> dict[FileType, Task]:
    """Returns what the model is for as each kind of file, and refuses others' flags."""
    tasks = {
        TFLITE: task_of(model, args.nms or "none", args.output or "logits"),
        COREML: task_of(model, "none", "logits" if args.raw_outputs else "classmap"),
    }
    for flag, (models, forms) in FORMS.items():
        if not getattr(args, flag):
            continue
        if tasks[TFLITE] not in forms.values():
            raise ValueError(f"--{flag} is for {models}: remove it.")
        if TFLITE not in file_types(args):
            raise ValueError(
                f"--{flag} is for .tflite files: remove it. Of a Core ML package "
                "--raw_outputs chooses what it returns."
            )
    tasks = {kind: tasks[kind] for kind in (TFLITE, COREML) if kind in file_types(args)}
    task = next(iter(tasks.values()))
    for name in args.formats:
        formats = tasks[FORMATS[name].file_type].formats
        if name not in formats:
            raise ValueError(
                f"There is no {name} of this model. Expected some of: "
                f"{', '.join(formats)}."
            )
    if COREML in tasks and model.inputs[0].shape[-1] != 3:
        raise ValueError(
            "Core ML packages take RGB images; this model takes gray ones."
        )
    if args.check_gpu and task.cpu_part:
        raise ValueError(f"--check_gpu: no GPU runs {task.cpu_part}.")
    if args.crop is not None and not task.crops:
        raise ValueError(f"In {task.name} the whole image is seen: no --crop.")
    return tasks
