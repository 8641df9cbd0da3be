"""The limits that a card must keep. Importing this loads no Keras or TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

# Takes a card and a limit; returns what is wrong, or `None`.
Check = Callable[[dict, float], str | None]


def _too_much(
    what: str, value: float | None, limit: float, allowed: str = "at most"
) -> str | None:
    if value is None or value <= limit:  # NaN is too much
        return None
    return f"{what} {value:.3g}; {allowed} {limit:.3g}"


def _at_most(what: str, value: Callable, allowed: str = "at most") -> Check:
    return lambda card, limit: _too_much(what, value(card), limit, allowed)


def _at_least(what: str, value: Callable) -> Check:
    def check(card: dict, limit: float) -> str | None:
        found = value(card)
        if found >= limit:  # NaN is too little
            return None
        return f"{what} {found:.3g}; at least {limit:.3g}"

    return check


def _accuracy_loss(card: dict) -> float | None:
    """Returns the lost points of accuracy beyond the tolerance."""
    accuracy = card["accuracy"]
    if accuracy is None:
        return None
    metric = accuracy["metric"]
    lost = accuracy[f"keras_{metric}"] - accuracy[metric]
    return float(np.maximum(0.0, lost - accuracy["tolerance"] * 1.001))  # keeps NaN


def _difference_of(card: dict, from_what: str) -> str:
    parity = card["parity"]
    if "agreement" in parity and "psnr_db" not in parity:  # a class map
        return "has other classes than Keras in a fraction of the pixels:"
    return f"has outputs that differ from {from_what}"


def _check_custom_ops(card: dict, limit: float) -> str | None:
    custom = card["foreign_ops"]
    return f"needs unsupported operations: {', '.join(custom)}" if custom else None


def _check_parity(card: dict, limit: float) -> str | None:
    what = _difference_of(card, "Keras's by up to")
    return _too_much(what, card["parity"]["max_abs"], limit)


def _check_max_relative_error(card: dict, limit: float) -> str | None:
    parity = card["parity"]
    relative = parity["max_abs"] / (parity["max_abs_reference"] or 1.0)
    what = _difference_of(card, "Keras's, relative to the largest, by up to")
    return _too_much(what, relative, limit)


def _check_gpu(card: dict, limit: float) -> str | None:
    gpu = card["gpu"]
    if not isinstance(gpu, dict):
        return None
    if not gpu["fully_accelerated"]:
        reason = gpu["error"] or "some operations stay on the CPU"
        return f"does not run entirely on the GPU: {reason}"
    if gpu["error"]:
        return f"fails on the GPU: {gpu['error']}"
    what = "has outputs on the GPU that differ from the CPU's by up to"
    return _too_much(what, gpu["max_abs"], limit)


CHECKS: dict[str, Check] = {
    # Operations outside TFLite's or Core ML's own.
    "custom_ops": _check_custom_ops,
    "rank": _at_most(
        "has tensors of rank", lambda card: card["max_rank"], "phones take at most"
    ),
    "internal_casts": _at_most(
        "has casts within the network:", lambda card: card["casts"]
    ),
    "undelegated_ops": _at_most(
        "has operations that XNNPACK does not run:",
        lambda card: sum(card["xnnpack"]["ops_outside"].values()),
    ),
    "float": _at_most(
        "has operations on floats:", lambda card: sum(card["float_ops"].values())
    ),
    "parity": _check_parity,  # largest difference of an output
    "max_relative_error": _check_max_relative_error,  # that over the largest output
    "agreement": _at_least(  # fraction of equal objects or pixels
        "finds only this fraction of the objects or pixels that Keras finds:",
        lambda card: card["parity"].get("agreement", 1.0),
    ),
    "psnr": _at_least(
        "has outputs whose PSNR against Keras's in dB is",
        lambda card: card["parity"]["psnr_db"],
    ),
    "accuracy": _at_most(
        "loses points of accuracy against Keras, beyond the tolerance:", _accuracy_loss
    ),
    "gpu": _check_gpu,  # largest difference between GPU and CPU
}
# Earlier names of checks, which --allow still takes.
RENAMED_CHECKS = {
    "foreign": "custom_ops",
    "casts": "internal_casts",
    "outside": "undelegated_ops",
    "relative": "max_relative_error",
}


def refuse_faults(
    card: dict, limits: dict[str, float], allowed: Collection[str] = ()
) -> None:
    """Raises a ValueError if a card exceeds limits, except those in `allowed`."""
    faults = [
        f"{fault} (--allow={name})"
        for name, limit in ({"custom_ops": 0} | limits).items()
        if name not in allowed and (fault := CHECKS[name](card, limit))
    ]
    if not faults:
        return
    where = ""
    if errors := card.get("largest_errors"):
        from tflite.validation.tensor_errors import describe  # loads TensorFlow

        where = f" {describe(errors)}"
    raise ValueError(f"The {card['format']} file {'; '.join(faults)}.{where}")
