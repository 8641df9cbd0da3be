"""Downloads the published weights and caches them.

Classifiers and segmenters come from the Hugging Face Hub, through its library. Its
cache is in `HF_HOME`, and it follows `HF_ENDPOINT` and `HF_HUB_OFFLINE`. Detectors come
from Apple's server and are cached in `$KERAS_HOME/models`.
"""

import dataclasses
import hashlib
import importlib.util
import os
from pathlib import Path

from keras_mobilevit.weights.download import download
from keras_mobilevit.weights.hub_cache import MAX_SIZE, fetch_file, not_downloaded
from keras_mobilevit.weights.hub_repository import fetch_model, is_address

FILENAME = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A weights file on the Hub, in a commit, which pins the content, or in a branch.

    The SHA-256, if known, pins the content of a branch.
    """

    repository: str
    revision: str
    sha256: str | None = None


# ImageNet-1k, ported to RGB by timm. Apple's license, see docs/weights.md.
IMAGENET_FILES = {
    "mobilevit_xxs": HubFile(
        "timm/mobilevit_xxs.cvnets_in1k", "26e21ac95801b64f865338915b29721e59be50e3"
    ),
    "mobilevit_xs": HubFile(
        "timm/mobilevit_xs.cvnets_in1k", "09bcddcdf2f602ff2f7352fe9906221df90179e4"
    ),
    # Only the first seven digits of the commit, f69cd0a, are known, and the Hub expects
    # all of them. The hash pins the content instead.
    "mobilevit_s": HubFile(
        "timm/mobilevit_s.cvnets_in1k",
        "main",
        "87f5585cb61814a5e18920d556772ed9c3af6c9ad72b6cf798c654021c306f81",
    ),
    "mobilevitv2_050": HubFile(
        "timm/mobilevitv2_050.cvnets_in1k", "e63cc672dc7cb8cf823fc4a6cdc3458449cb49ee"
    ),
    "mobilevitv2_075": HubFile(
        "timm/mobilevitv2_075.cvnets_in1k", "ebe193002b7797b7faff92e08bb65578b66d934d"
    ),
    "mobilevitv2_100": HubFile(
        "timm/mobilevitv2_100.cvnets_in1k",
        "75eb7f2bb7f9bd8662106fd0e43b675c0607f4dc",
        "103bf57c1001cb735f72ad4632c3ec1790005d9535f952a7823422cdb32d401e",
    ),
    "mobilevitv2_125": HubFile(
        "timm/mobilevitv2_125.cvnets_in1k",
        "3c82445666ade330c8510e045efc5f3383eb7d11",
        "83a9e64c34f67185ef719d1b37886994983df0e4f6ee865ed678e48e4854fa47",
    ),
    # The full commits of the three largest are not known. The hash pins the content of
    # two; that of mobilevitv2_200 is compared only with the Hub's ETag.
    "mobilevitv2_150": HubFile(
        "timm/mobilevitv2_150.cvnets_in1k",
        "main",
        "4c91ca8f47269f959a88505506ecd1dbf19b2d5fa7622806be88afe5207f6164",
    ),
    "mobilevitv2_175": HubFile(
        "timm/mobilevitv2_175.cvnets_in1k",
        "main",
        "b0e5255f14a71792b71e3d1e1ada4d1519f94b35769307ac647c41b4f1030b39",
    ),
    "mobilevitv2_200": HubFile("timm/mobilevitv2_200.cvnets_in1k", "main"),
}

# Trained on ImageNet-21k and then on ImageNet-1k, 1,000 classes. Of the other published
# files neither the commits nor the hashes are known.
IMAGENET22K_FILES = {
    "mobilevitv2_175": HubFile(
        "timm/mobilevitv2_175.cvnets_in22k_ft_in1k",
        "0daf9447d409f73d92c1b247957d09efdd89d7f5",
    ),
}

# DeepLabv3 on PASCAL VOC 2012, 21 classes, transformers' names. Apple's license.
VOC_FILES = {
    # The safetensors file exists only in a pull request, and its commit and hash are
    # not known. Its content is compared only with the Hub's ETag.
    "mobilevit_xxs": HubFile("apple/deeplabv3-mobilevit-xx-small", "refs/pr/2"),
    "mobilevit_xs": HubFile(
        "apple/deeplabv3-mobilevit-x-small", "2e49c914d1480b8820c6302777165045664e2014"
    ),
    "mobilevit_s": HubFile(
        "apple/deeplabv3-mobilevit-small",
        "09a4c8fd616da94b5bc900a6babfbcb40d66f2af",
        "5b12c75c0a4ea2e1615b4e41005f2981eab6b321a33ecfa0f47e59b203d58fc7",
    ),
    # Of the other widths there is no safetensors file.
    "mobilevitv2_100": HubFile(
        "apple/mobilevitv2-1.0-voc-deeplabv3",
        "refs/pr/2",
        "395395c13f0fdf10db10e88377e591692350b4dfebcdb7fe674d6f1ea59aea11",
    ),
}

# The files by the name that the argument `weights` of a model gives them.
HUB_FILES = {
    "imagenet": IMAGENET_FILES,
    "imagenet22k": IMAGENET22K_FILES,
    "voc": VOC_FILES,
}
CLASSIFIER_WEIGHTS = ("imagenet", "imagenet22k")
PUBLISHED = (*HUB_FILES, "coco")

# SSDLite at 320x320 on COCO, 80 classes. Apple's license. Apple publishes neither a
# checksum nor a version, so the content cannot be pinned.
COCO_URL = "https://docs-assets.developer.apple.com/ml-research/models"
COCO_FILES = {
    "mobilevit_xxs": "cvnets/detection/ssd_mobilevit_xxs_320.pt",
    "mobilevit_xs": "cvnets/detection/ssd_mobilevit_xs_320.pt",
    "mobilevit_s": "cvnets/detection/ssd_mobilevit_s_320.pt",
} | {
    f"mobilevitv2_{round(100 * width):03}": (
        f"cvnets-v2/detection/mobilevitv2/coco-ssd-mobilevitv2-{width}.pt"
    )
    for width in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
}

# Git's SHA-1 of Apple's classifiers: mobilevit_xxs.pt, _xs.pt and _s.pt.
APPLE_BLOBS = (
    "ae8a54c195f350ecf44a77c48a6d7dcdd2e969bc",
    "2925d8bd8757273c5fe5b35b303bd5d63215438d",
    "97ae26ed94f4794cb37c69b26364f461179ebbeb",
)
# SHA-256 of published files with transformers' names of MobileViTv2:
# apple/mobilevitv2-1.0-imagenet1k-256, refs/pr/4, and the segmenter of `VOC_FILES`.
APPLE_SHA256 = (
    "4eb9c5e0af2e701e23a7f07db8b97bbd0d5efe16618dd22ee34b16a4bd42c35d",
    "395395c13f0fdf10db10e88377e591692350b4dfebcdb7fe674d6f1ea59aea11",
)


def fetch(file: HubFile) -> Path:
    """Returns the cached copy of a file; the first call downloads it.

    A cached copy is used without a request. Raises an OSError if there is none and the
    download fails, and a ValueError if the content is not the expected one.
    """
    path = fetch_file(file.repository, file.revision, FILENAME, file.sha256)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if file.sha256 not in (None, found):
        # The file is complete and may belong to another program that shares the cache.
        raise ValueError(
            f"{FILENAME} of {file.repository} has the sha256 {found}. Expected: "
            f"{file.sha256}. The repository's content has changed since this version. "
            f"If you trust it, pass its path as `weights`: {path}"
        )
    return path


def _coco_path(variant: str) -> Path:
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return home / "models" / Path(COCO_FILES[variant]).name


def is_published(path: str | os.PathLike) -> bool:
    """Tells whether Apple has published a file with ml-cvnets' names.

    Detectors are recognized by their place in the cache, classifiers by their content.
    """
    path = Path(path).resolve()
    detectors = [_coco_path(variant).resolve() for variant in COCO_FILES]
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return (
        path in detectors
        or blob.hexdigest() in APPLE_BLOBS
        or hashlib.sha256(content).hexdigest() in APPLE_SHA256
    )


def _check_published(weights: str, variant: str, files: dict) -> None:
    if variant not in files:
        raise ValueError(
            f'There are no weights "{weights}" of {variant!r}, only of: '
            f"{', '.join(files)}. Choose another backbone, the path of a file, or "
            "random weights."
        )


def _fetch_coco(variant: str) -> Path:
    """Returns the cached copy of a published detector; the first call downloads it."""
    path = _coco_path(variant)
    if path.exists():
        return path
    url = f"{COCO_URL}/{COCO_FILES[variant]}"
    try:
        download(url, path, MAX_SIZE)
    except OSError as error:
        raise not_downloaded(path.name, url, error) from error
    return path


def _check_has_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            'Apple\'s published detectors, `weights="coco"`, are PyTorch files, and '
            "PyTorch is not installed. Run `pip install torch`. Or set `weights` to "
            '"imagenet" (the published backbone with a new head), `None` (random '
            "weights) or the path of another file."
        )


def published_weights(variant: str) -> list[str]:
    """Returns the names of a variant's published classifiers, `"imagenet"` first."""
    return [name for name in CLASSIFIER_WEIGHTS if variant in HUB_FILES[name]]


def weights_file(weights: str | os.PathLike, variant: str) -> Path:
    """Returns the path of the weights that a model's argument `weights` names.

    A name of `HUB_FILES` is a safetensors file, with timm's names or, for `"voc"`, with
    those of transformers. `"coco"` is Apple's `.pt` file. Of an address `hf://...` it
    is the cached copy. A path is returned as it is. Raises an OSError or a ValueError
    if there are no such weights; see `fetch` and `fetch_model`.
    """
    if weights == "coco":
        _check_published(weights, variant, COCO_FILES)
        _check_has_torch()  # before the download: only PyTorch reads the file
        return _fetch_coco(variant)
    if is_address(weights):
        return fetch_model(str(weights))
    if weights not in HUB_FILES:
        return Path(weights)
    files = HUB_FILES[str(weights)]
    _check_published(str(weights), variant, files)
    return fetch(files[variant])
