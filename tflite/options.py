"""The options of a conversion: what the flags say, checked before any work."""

import dataclasses
import tempfile
from pathlib import Path

from absl import logging

from keras_mobilevit.configs import MIN_SIZE
from keras_mobilevit.preprocessing import CROP_FRACTION
from keras_mobilevit.weights.hub import PUBLISHED
from keras_mobilevit.weights.hub_repository import fetch_model, is_address
from tflite.formats.coreml.options import PackageOptions, package_options
from tflite.formats.table import COREML, FORMATS, TFLITE, FileType
from tflite.images import photo_folder
from tflite.suites.suites import BASELINE_NAMES
from tflite.tasks.registry import output_flags, split_name
from tflite.validation import gpu
from tflite.validation.checks import CHECKS, RENAMED_CHECKS
from train.config import TrainConfig, load_config


@dataclasses.dataclass(frozen=True)
class Data:
    """The images of a conversion, as `--data` names them."""

    validation: str  # images to compare and score files on
    calibration: str | None  # images that set the int8 ranges; None if unknown
    crop: float  # the fraction of an image's short side that the center crop keeps


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a conversion."""

    model: str  # path of a `.keras` file, or name of a model
    weights: str  # published weights, a path, or `none`
    formats: tuple[str, ...]  # keys of `FORMATS`
    size: int | None  # side of the image in pixels; `None` until the model is loaded
    output_dir: Path  # an existing folder
    allowed: tuple[str, ...]  # checks that may fail
    variants: dict[str, str]  # the given output flags, `{flag: variant}`
    rewrite: bool  # convert the deployment graph instead of the model as it is
    check_gpu: bool  # run `.tflite` files on the GPU too
    data: Data
    crop: float | None  # the given crop, `None` for the default
    validation_images: int  # approximate number, 0 for all
    calibration_images: int  # approximate number, 0 for all
    wants_calibration_images: bool  # whether that number was given
    qat_epochs: int
    qat_learning_rate: float
    qat_batch_size: int
    core_ml: PackageOptions
    labels: str | None = None  # path of a file of class names
    author: str | None = None
    license: str | None = None

    @property
    def image_size(self) -> int:
        """The side of the image, once the model is loaded."""
        if self.size is None:
            raise ValueError("The size is known only once the model is loaded.")
        return self.size

    @property
    def file_types(self) -> list[FileType]:
        """The types of the files, without repetition."""
        return list(dict.fromkeys(FORMATS[name].file_type for name in self.formats))


def options_from_flags(args) -> Options:
    """Checks the flags and returns them as options; makes the output folder."""
    _check_names("formats", args.formats, FORMATS)
    allowed = [RENAMED_CHECKS.get(name, name) for name in args.allow]
    _check_names("checks in --allow", allowed, CHECKS)
    file_types = {FORMATS[name].file_type for name in args.formats}
    if is_address(args.model):
        args.model = _fetch_whole_model(args.model)
    model = args.model
    if model.endswith(".keras"):
        model = str(Path(model).expanduser())
    weights = weights_from_flags(args)
    core_ml = package_options(args, COREML in file_types)
    _check_numbers(args)
    data = data_from_flags(args)
    if args.check_gpu and TFLITE not in file_types:
        raise ValueError("--check_gpu is for .tflite files: remove it.")
    if args.check_gpu:
        gpu.require_driver()
    return Options(
        model=model,
        weights=weights,
        formats=tuple(dict.fromkeys(args.formats)),
        size=args.size,
        output_dir=_make_folder(Path(args.output_dir).expanduser()),
        allowed=tuple(allowed),
        variants={f.name: v for f in output_flags() if (v := getattr(args, f.name))},
        rewrite=not args.no_rewrite,
        check_gpu=args.check_gpu,
        data=data,
        crop=args.crop,
        validation_images=args.eval_images,
        calibration_images=args.calibration_images,
        wants_calibration_images=bool(args["calibration_images"].present),
        qat_epochs=args.qat_epochs,
        qat_learning_rate=args.qat_learning_rate,
        qat_batch_size=args.qat_batch_size,
        core_ml=core_ml,
        labels=_labels_file(args),
        author=args.author,
        license=args.license,
    )


def _check_names(what: str, names: list[str], known) -> None:
    if what == "formats" and not names:
        raise ValueError(f"--formats needs one or more of: {', '.join(known)}.")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"Unknown {what}: {', '.join(unknown)}. Expected some of: "
            f"{', '.join(known)}."
        )


def _check_numbers(args) -> None:
    if args.size is not None and args.size < MIN_SIZE:
        raise ValueError(f"--size must be at least {MIN_SIZE}. Received: {args.size}.")
    if args.crop is not None and not 0 < args.crop <= 1:
        raise ValueError(f"--crop must be in (0, 1]. Received: {args.crop}.")


def _labels_file(args) -> str | None:
    if not args.labels:
        return None
    path = Path(args.labels).expanduser()
    if not path.is_file():
        raise ValueError(f"--labels: there is no file {path}.")
    if args.raw_outputs:
        raise ValueError("--raw_outputs returns no names: remove --labels.")
    return str(path)


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write into --output_dir: {error}.") from error
    return folder


def _fetch_whole_model(address: str) -> str:
    path = str(fetch_model(address))
    if not path.endswith(".keras"):
        raise ValueError(
            f"--model takes a .keras file. Received: {address}, which is {path}. Name "
            f"the network with --model, and give --weights={address}."
        )
    return path


def weights_from_flags(args) -> str:
    """Returns the weights of a conversion, `"none"` for a `.keras` file."""
    if args.model.endswith(".keras"):
        if args.weights is not None:
            raise ValueError(f"{args.model} has its own weights; remove --weights.")
        return "none"
    if args.weights is None and args.model in BASELINE_NAMES:
        raise ValueError(
            f"{args.model} has no published weights. Use --weights=none for random "
            "weights, which are enough to measure time."
        )
    row, backbone = split_name(args.model)
    weights = args.weights or row.published_weights
    if weights == "none":
        logging.warning(
            "%s gets random weights because of --weights=none: use the files only to "
            "measure time.",
            args.model,
        )
    elif weights == "imagenet" and row.model_prefix:
        logging.warning(
            "--weights=imagenet has the weights of the backbone %s only: the head of "
            "%s gets random weights.",
            backbone,
            args.model,
        )
    if is_address(weights):
        return str(fetch_model(weights))
    is_path = weights not in ("none", *PUBLISHED)
    return str(Path(weights).expanduser()) if is_path else weights


def training_config(model: str) -> TrainConfig | None:
    """Returns the configuration that a training left beside a `.keras` file."""
    file = Path(model).expanduser().with_name("config.json")
    is_trained = model.endswith(".keras") and file.exists()
    return load_config(file) if is_trained else None


def data_from_flags(args) -> Data:
    """Returns the images of a conversion.

    Raises a ValueError if they do not suit an 8-bit format.
    """
    config = training_config(args.model)
    trained_on = config.data if config else None
    # Photos without classes are not what the model was trained on.
    labeled = trained_on if args.data and photo_folder(args.data) else None
    calibration = args.calibration or labeled or args.data or trained_on
    validation = args.data or trained_on or calibration or "digits"
    data = Data(validation, calibration, _crop(args, config))
    formats_8_bits = [name for name in args.formats if FORMATS[name].has_8_bits]
    if formats_8_bits:
        is_random = not args.model.endswith(".keras") and args.weights == "none"
        _check_photos(formats_8_bits, data, is_random or trained_on == "digits")
        _warn_of_int8(args, data)
    return data


def _crop(args, config: TrainConfig | None) -> float:
    if args.crop is not None:
        return args.crop
    if config is not None:
        return config.eval_crop
    is_named = not args.model.endswith(".keras") and args.model not in BASELINE_NAMES
    return CROP_FRACTION if is_named else 1.0


def _check_photos(formats: list[str], data: Data, may_be_digits: bool) -> None:
    """Refuses images that cannot show the loss of 8 bits."""
    names = ", ".join(formats)
    if data.calibration is None:
        raise ValueError(
            f"{names}: 8 bits need photos like those of your app, to set their ranges "
            "and to measure what they lose. Give --data=folder:PATH (class folders) or "
            "--calibration=FOLDER. 200 photos are enough."
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
    """Warns of what makes a calibrated file or its validation worse."""
    if not any(FORMATS[name].needs_calibration for name in args.formats):
        return
    if args.no_rewrite:
        logging.warning(
            "--no_rewrite: channels are not equalized and biases not corrected, so the "
            "int8 formats of pretrained networks may lose their accuracy."
        )
    if data.calibration == data.validation and photo_folder(data.validation):
        logging.warning(
            "The photos of %s both calibrate and check the files, so the check is too "
            "favorable. Name others with --%s. Of class folders, --data=folder:PATH "
            "uses one part for each.",
            data.calibration,
            "data" if args.calibration else "calibration",
        )
