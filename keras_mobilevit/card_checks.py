"""Checks the entries of a `.tflite` file's card that programs use."""

from collections.abc import Callable
from typing import Any

MAX_NUMBER = 1e30  # nothing that a card states comes near
MAX_COUNT = 2**17  # of classes or pixels; ImageNet-21k has 21,841 classes


def _is_number(value: Any) -> bool:
    # Comparing also takes NaN, and integers that no float can hold.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -MAX_NUMBER <= value <= MAX_NUMBER


def _is_count(value: Any) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and 1 <= value <= MAX_COUNT


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_input(value: Any) -> bool:
    return isinstance(value, dict) and value.get("largest_value", 255) in (1, 255)


def _is_nms(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(x, str) or _is_number(x) for x in value.values()
    )


def _is_table(value: Any, key: str, is_valid: Callable[[Any], bool]) -> bool:
    """Tells whether a value is an object, and valid at `key` if it has this key."""
    return isinstance(value, dict) and (key not in value or is_valid(value[key]))


# By key: what its value must be, and a function that tells. `null` is an absent value.
_Check = Callable[[Any], bool]
_TEXT: tuple[str, _Check] = "text", lambda x: isinstance(x, str)
CHECKS: dict[str, tuple[str, _Check]] = {
    "accuracy": ("an object", lambda x: _is_table(x, "top1", _is_number)),
    "activation": _TEXT,
    "align_corners": ("true or false", lambda x: isinstance(x, bool)),
    "class_names": ("a list of names", _is_names),
    "classes": (f"a whole number from 1 to {MAX_COUNT}", _is_count),
    "crop": ("a number above 0, at most 1", lambda x: _is_number(x) and 0 < x <= 1),
    "format": _TEXT,
    "input": ('an object with "largest_value" 1 or 255', _is_input),
    "labels": ("a list of names", _is_names),
    "model": _TEXT,
    "nms": ("an object of numbers and words", _is_nms),
    "parity": ("an object", lambda x: _is_table(x, "size", _is_count)),
    "size": (f"a whole number from 1 to {MAX_COUNT}", _is_count),
    "weights": _TEXT,
}


def checked_card(card: dict, path: object) -> dict:
    """Returns a card without absent values; raises a ValueError if one is wrong."""
    found = {key: value for key, value in card.items() if value is not None}
    for key, (expected, is_valid) in CHECKS.items():
        if key in found and not is_valid(found[key]):
            raise ValueError(
                f"The card of {path} has {key!r} of {str(found[key])[:80]!r}. Expected "
                f"{expected}. Convert the model again, or move the .json file away if "
                "another program wrote it."
            )
    return found
