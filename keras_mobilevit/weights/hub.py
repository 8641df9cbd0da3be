"""The published weights: where they are, and the way here.

Classifiers and segmenters are on the Hugging Face Hub: `huggingface_hub` keeps the
cache (`HF_HOME`), downloads into a temporary file, takes up a connection that broke
(within one call; a process that was killed starts anew), and honours `HF_ENDPOINT` and
`HF_HUB_OFFLINE`.
Detectors are on Apple's server alone, and are kept in `$KERAS_HOME/models`, by default
`~/.keras/models`.
"""

import dataclasses
import hashlib
import importlib.util
import os
import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path

import keras

from keras_mobilevit.configs import VARIANTS
from keras_mobilevit.files import atomic_write

FILENAME = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file of weights that never changes.

    Attributes:
        repository: on the Hub.
        revision: a full commit, which pins the content and lets a cached file be
            found without a request; or a branch, where `sha256` pins the content if
            it is known.
        sha256: of the file, where it is known beforehand.
    """

    repository: str
    revision: str
    sha256: str | None = None


# ImageNet-1k, ported to RGB by timm. Apple's licence, see README.md.
IMAGENET = {
    "mobilevit_xxs": HubFile(
        "timm/mobilevit_xxs.cvnets_in1k", "26e21ac95801b64f865338915b29721e59be50e3"
    ),
    "mobilevit_xs": HubFile(
        "timm/mobilevit_xs.cvnets_in1k", "09bcddcdf2f602ff2f7352fe9906221df90179e4"
    ),
    # Only the first seven digits of its commit, f69cd0a, are known, and the Hub takes
    # no short form. The hash pins the content: a card edited on `main` does no harm.
    "mobilevit_s": HubFile(
        "timm/mobilevit_s.cvnets_in1k",
        "main",
        "87f5585cb61814a5e18920d556772ed9c3af6c9ad72b6cf798c654021c306f81",
    ),
}

# DeepLabv3 on PASCAL VOC 2012, 21 classes, as transformers names it. Apple's licence.
VOC = {
    # The safetensors file is only in a request to add it, whose commit and hash are not
    # known: its content is checked against the Hub's own ETag alone.
    "mobilevit_xxs": HubFile("apple/deeplabv3-mobilevit-xx-small", "refs/pr/2"),
    "mobilevit_xs": HubFile(
        "apple/deeplabv3-mobilevit-x-small", "2e49c914d1480b8820c6302777165045664e2014"
    ),
    "mobilevit_s": HubFile(
        "apple/deeplabv3-mobilevit-small",
        "09a4c8fd616da94b5bc900a6babfbcb40d66f2af",
        "5b12c75c0a4ea2e1615b4e41005f2981eab6b321a33ecfa0f47e59b203d58fc7",
    ),
}

# SSDLite at 320x320 on COCO, 80 classes. Apple's licence. Neither a checksum nor a
# version is published, so its content cannot be pinned.
COCO = "https://docs-assets.developer.apple.com/ml-research/models/cvnets/detection"

# Apple's own classifiers (mobilevit_xxs.pt, xs, s), by the SHA-1 that git gives a file.
APPLE_BLOBS = (
    "ae8a54c195f350ecf44a77c48a6d7dcdd2e969bc",
    "2925d8bd8757273c5fe5b35b303bd5d63215438d",
    "97ae26ed94f4794cb37c69b26364f461179ebbeb",
)


def _verify(file: HubFile, path: Path) -> None:
    """Raises a ValueError if a cached file is not what it should be.

    The cache names a blob by the Hub's ETag, which is the sha256 of a large file.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    blob = path.resolve()
    told = blob.name if re.fullmatch("[0-9a-f]{64}", blob.name) else None
    if told not in (None, found):
        blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise ValueError(
            f"{FILENAME} of {file.repository} has the sha256 {found}. Expected: "
            f"{told}. The damaged file was removed; try again."
        )
    if file.sha256 not in (None, found):
        # Whole, so it may belong to another program that shares the cache.
        raise ValueError(
            f"{FILENAME} of {file.repository} has the sha256 {found}. Expected: "
            f"{file.sha256}. The repository's content is not the one that this version "
            "knows; if you trust it, pass its path as `weights`: " + str(path)
        )


def _cached(file: HubFile) -> Path | None:
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(
        file.repository, FILENAME, revision=file.revision
    )
    return Path(path) if isinstance(path, str) else None


def _require_network(url: str) -> None:
    """Raises an OSError at once where there is no network; the Hub's client retries.

    Behind a proxy it is the proxy that finds the address.
    """
    if not urllib.request.getproxies():
        socket.getaddrinfo(urllib.parse.urlsplit(url).hostname, None)


def fetch(file: HubFile) -> Path:
    """Returns the local copy of a file, downloaded when it is first asked for.

    Args:
        file: what to fetch.

    Returns:
        Its path in the cache of `huggingface_hub`. A copy that is there is verified
        and used without a request.

    Raises:
        OSError: if it is not cached and cannot be downloaded; the message says what,
            from where, and what to do without a network.
        ValueError: if the content is not the expected one.
    """
    import huggingface_hub

    path = _cached(file)
    if path is None:
        url = huggingface_hub.hf_hub_url(
            file.repository, FILENAME, revision=file.revision
        )
        try:
            _require_network(url)
            path = Path(
                huggingface_hub.hf_hub_download(
                    file.repository, FILENAME, revision=file.revision
                )
            )
        except Exception as error:  # of the network, the Hub or the disk: many kinds
            raise OSError(
                f"{FILENAME} of {file.repository} is not cached and cannot be "
                f"downloaded. Without a network, fetch {url} on another machine and "
                f"pass the file's path as `weights`. The cause: {error}"
            ) from error
    _verify(file, path)
    return path


def _keras_home() -> Path:
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()


def _coco_path(variant: str) -> Path:
    return _keras_home() / "models" / f"ssd_{variant}_320.pt"


def _git_blob_id(path: Path) -> str:
    content = path.read_bytes()
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def is_published(path) -> bool:
    """Tells whether a file of ml-cvnets' names is one that Apple has published.

    Args:
        path: of an existing file.

    Returns:
        True for the detectors that `weights="coco"` downloads, and for Apple's
        classifiers, which are known by their content.
    """
    path = Path(path).resolve()
    detectors = [_coco_path(variant).resolve() for variant in VARIANTS]
    return path in detectors or _git_blob_id(path) in APPLE_BLOBS


def _fetch_coco(variant: str) -> Path:
    """Returns the local copy of a published detector, downloaded when first asked for.

    Raises:
        OSError: as `fetch`.
    """
    path = _coco_path(variant)
    if path.exists():
        return path
    home, url = _keras_home(), f"{COCO}/{path.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path) as temporary:
            keras.utils.get_file(
                temporary.name, url, cache_dir=home, cache_subdir="models"
            )
    except Exception as error:  # of the network or the disk; Keras raises a bare one
        raise OSError(
            f"{path.name} is not cached and cannot be downloaded. Without a network, "
            f"fetch {url} on another machine and pass the file's path as `weights`. "
            f"The cause: {error}"
        ) from error
    return path


def _check_has_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            'Apple\'s published detectors, `weights="coco"`, are PyTorch files, and '
            "PyTorch is not installed. Run `pip install torch`; or give "
            '`weights="imagenet"` for the published backbone with a new head, `None` '
            "for random weights, or the path of another file."
        )


def weights_file(weights, variant: str) -> Path:
    """Returns the file that the argument `weights` of a model means.

    Args:
        weights: `"imagenet"`, `"coco"`, `"voc"`, or a path, which is returned as it is.
        variant: `"mobilevit_xxs"`, `"mobilevit_xs"` or `"mobilevit_s"`.

    Returns:
        For `"imagenet"` the path of a safetensors file with timm's names, for `"voc"`
        that of a segmenter's with transformers', for `"coco"` that of Apple's `.pt`
        file of a detector.

    Raises:
        OSError: see `fetch`.
        ValueError: if there are no such weights, for `"coco"` if PyTorch is not
            installed, or see `fetch`.
    """
    if weights == "coco":
        _check_has_torch()  # before the download, which nothing else could read
        return _fetch_coco(variant)
    if weights not in ("imagenet", "voc"):
        return Path(weights)
    files = IMAGENET if weights == "imagenet" else VOC
    if variant not in files:
        raise ValueError(
            f'There are no weights "{weights}" of {variant!r}. '
            f"Expected one of: {', '.join(files)}."
        )
    return fetch(files[variant])
