"""The differences between the outputs of a converted file and of Keras."""

import numpy as np

MIN_PROBABILITY = 1e-30  # float32 loses digits below
MIN_ERROR = 1e-10  # relative to the range; keeps the PSNR finite


def compare(reference, outputs, are_probabilities: bool = False) -> dict[str, float]:
    """Compares the outputs `[images, classes]` of a classifier with Keras's.

    `max_abs` and `mean_abs` are absolute differences. `psnr_db`, at most 200, compares
    the outputs relative to their range. For probabilities, the first two compare
    logarithms, which are logits up to a constant: small probabilities differ too little
    to tell networks apart.
    """
    reference = np.asarray(reference, np.float64)
    outputs = np.asarray(outputs, np.float64)
    if reference.shape != outputs.shape:
        raise ValueError(
            f"Keras's outputs have shape {reference.shape}, the file's {outputs.shape}."
        )
    psnr_db = _psnr_db(reference, outputs)
    if are_probabilities:
        reference, outputs = (
            np.log(np.maximum(values, MIN_PROBABILITY))
            for values in (reference, outputs)
        )
    difference = np.abs(reference - outputs)
    agree = reference.argmax(-1) == outputs.argmax(-1)
    return {
        "max_abs": float(difference.max()),
        "mean_abs": float(difference.mean()),
        "max_abs_reference": float(np.abs(reference).max()),
        "psnr_db": psnr_db,
        "top1_agreement": float(agree.mean()),
    }


def worst(parts: list[dict[str, float]]) -> dict[str, float]:
    """Returns the worst figures of several outputs that were compared."""
    largest = ("max_abs", "mean_abs", "max_abs_reference")
    return {
        **{key: max(part[key] for part in parts) for key in largest},
        "psnr_db": min(part["psnr_db"] for part in parts),
    }


def _psnr_db(reference, outputs) -> float:
    error = np.sqrt(np.mean((reference - outputs) ** 2))
    peak = np.ptp(reference)
    if peak == 0:
        return 0.0 if error else -20 * np.log10(MIN_ERROR)
    return float(20 * np.log10(peak / max(error, peak * MIN_ERROR)))
