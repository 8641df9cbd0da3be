"""Models that somebody pushed to the Hugging Face Hub, by an address `hf://...`.

No code of a repository is run: its files are read as files on the disk are, by
`keras_mobilevit.weights.load`.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from keras_mobilevit.weights.hub_cache import (
    ANSWER_SECONDS,
    cached_file,
    check_commit,
    check_online,
    fetch_file,
    is_commit,
    is_inside,
    not_downloaded,
    remember_commit,
    repository_folder,
    require_network,
    within,
)

PREFIX = "hf://"
# The first kind that a repository has is chosen: a whole model before weights, and
# formats without a pickle before the one with it.
SUFFIXES = (".keras", ".safetensors", ".weights.h5", ".pt", ".tflite")
# What a training or a conversion wrote beside a model: class names, evaluation size.
COMPANIONS = ("labels.txt", "config.json")
_KERAS_HUB_FILES = {"preprocessor.json", "task.json"}
_EXPECTED = (
    '"hf://owner/name", "hf://owner/name@revision" or "hf://owner/name/file@revision"'
)
_ADDRESS = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<filename>[^@]+))?"
    r"(?:@(?P<revision>.+))?",
    re.ASCII,
)
_MOST_LISTED = 10


class Address(NamedTuple):
    """The parts of an address. Without a file's name one is chosen."""

    repository: str
    filename: str | None
    revision: str


def is_address(weights: str | os.PathLike | None) -> bool:
    """Tells whether `weights` is the address of a repository on the Hub."""
    return isinstance(weights, str) and weights.startswith(PREFIX)


def parse_address(text: str) -> Address:
    """Returns the parts of an address `hf://owner/name/file@revision`.

    The file and the revision, a branch, a tag or a commit, may be absent.
    """
    found = _ADDRESS.fullmatch(text)
    if not found:
        raise ValueError(f"Expected {_EXPECTED}. Received: {text!r}.")
    repository, filename = found["repository"], found["filename"]
    revision = found["revision"] or "main"
    if revision.endswith(SUFFIXES):
        raise ValueError(
            "The revision stands after the file, as in "
            f'"hf://owner/name/model.keras@main". Received: {text!r}.'
        )
    parts = [*repository.split("/"), filename or "file", revision]
    if not all(is_inside(x) for x in parts) or "--" in repository:
        raise ValueError(
            f"Expected {_EXPECTED}, with names that stay in their folder. "
            f"Received: {text!r}."
        )
    if filename and not filename.endswith(SUFFIXES):
        raise ValueError(
            f"Expected a file that ends in one of {', '.join(SUFFIXES)}. "
            f"Received: {text!r}."
        )
    return Address(repository, filename, revision)


def fetch_model(text: str) -> Path:
    """Returns the cached copy of the model file of an address.

    The revision is resolved to a commit first, and every file is of this commit. Files
    of `COMPANIONS` that are beside the model's are fetched too. No request is made
    for a cached file if the address has its name and a commit. Otherwise the cached
    copy is used if the Hub does not answer.

    Args:
        text: `hf://owner/name`, `hf://owner/name@revision`, or
            `hf://owner/name/file@revision` where a repository has several files.

    Raises:
        OSError: if the file is not cached and the download fails.
        ValueError: if the address is wrong, if the repository has no file to choose or
            several, or if the content does not have the hash that the Hub states.
    """
    address = parse_address(text)
    # Without the file's name, the Hub lists the files: the cache may hold another one.
    if is_commit(address.revision) and address.filename:
        path = _cached_model(address)
        if path is not None:
            return path
    try:
        commit, names = _list_files(address)
    except OSError:
        path = _cached_model(address)
        if path is None:
            raise
        return path
    filename = address.filename or _choose(names, text)
    if filename not in names:
        raise ValueError(
            f"There is no file {filename} in {address.repository} at "
            f"{address.revision}. {_describe(names)}"
        )
    beside = filename.rpartition("/")[0]
    for companion in COMPANIONS:
        name = f"{beside}/{companion}" if beside else companion
        if name in names:
            fetch_file(address.repository, commit, name)
    # The last, because a later call takes a cached model to have its companions.
    path = fetch_file(address.repository, commit, filename)
    if address.revision != commit:
        remember_commit(address.repository, address.revision, commit)
    return path


def address_of(path: str | os.PathLike) -> str:
    """Returns the address, with its commit, of a file in the cache; else the path."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    try:
        parts = Path(path).relative_to(cache).parts
    except ValueError:
        return os.fspath(path)
    if len(parts) < 4 or parts[1] != "snapshots":
        return os.fspath(path)
    repository = parts[0].removeprefix("models--").replace("--", "/")
    return f"{PREFIX}{repository}/{'/'.join(parts[3:])}@{parts[2]}"


def _list_files(address: Address) -> tuple[str, list[str]]:
    """Asks the Hub for the commit of a revision, and the names of its files."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    repository, _, revision = address
    page = f"{constants.ENDPOINT}/{repository}/tree/{revision}"
    try:
        check_online()
        require_network(page)
        info = within(
            2 * ANSWER_SECONDS,
            huggingface_hub.HfApi().model_info,
            repository,
            revision=revision,
            timeout=ANSWER_SECONDS,
        )
        commit, names = info.sha, [x.rfilename for x in info.siblings or ()]
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise OSError(
            f"There is no repository {repository} with the revision {revision!r} at "
            f"{constants.ENDPOINT}, or you may not read it. Check the "
            "address. If the repository is private, run `hf auth login`."
        ) from error
    except Exception as error:  # network and Hub raise many types
        raise not_downloaded(repository, page, error) from error
    commit = check_commit(commit, repository, revision)
    outside = [x for x in names if not isinstance(x, str) or not is_inside(x)]
    if outside:
        raise ValueError(
            f"{repository} lists a file that would leave its folder: {outside[0]!r}. "
            "Nothing was written. Check the name of the repository and HF_ENDPOINT."
        )
    return commit, names


def _choose(names: list[str], text: str) -> str:
    """Chooses the file of the first kind, in the repository's upper folder."""
    own = [name for name in names if "/" not in name]
    for suffix in SUFFIXES:
        found = [name for name in own if name.endswith(suffix)]
        if suffix == ".weights.h5" and found and _KERAS_HUB_FILES & set(own):
            raise ValueError(
                f"{text} is a model of KerasHub. Expected a MobileViT of this project, "
                "of timm, transformers or ml-cvnets. Load it with KerasHub's "
                "`from_preset`."
            )
        if f"model{suffix}" in found:
            return f"model{suffix}"
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise ValueError(
        f"{text} does not name one file. {_describe(names)} Name it, as in "
        '"hf://owner/name/model.keras@main".'
    )


def _describe(names: list[str]) -> str:
    """Lists the files that can be read."""
    found = sorted(name for name in names if name.endswith(SUFFIXES))
    if not found:
        return f"It has no file that ends in one of {', '.join(SUFFIXES)}."
    more = len(found) - _MOST_LISTED
    shown = ", ".join(found[:_MOST_LISTED])
    return f"It has: {shown}{f' and {more} more' if more > 0 else ''}."


def _cached_model(address: Address) -> Path | None:
    """Returns the file of an address if the cache has it, verified."""
    repository, filename, revision = address
    if filename is None:
        folder = _cached_folder(repository, revision)
        names = os.listdir(folder) if folder and folder.is_dir() else []
        if not any(name.endswith(SUFFIXES) for name in names):
            return None
        filename = _choose(names, f"The cached copy of {PREFIX}{repository}")
    if cached_file(repository, revision, filename) is None:
        return None
    return fetch_file(repository, revision, filename)


def _cached_folder(repository: str, revision: str) -> Path | None:
    folder = repository_folder(repository)
    if not is_commit(revision):
        file = folder / "refs" / revision
        revision = file.read_text("utf-8").strip() if file.is_file() else ""
    return folder / "snapshots" / revision if is_commit(revision) else None
