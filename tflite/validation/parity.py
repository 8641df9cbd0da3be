"""How far a converted file's outputs are from Keras's."""

import numpy as np

SMALLEST_PROBABILITY = 1e-30  # near float32's end, below which digits are lost
LEAST_ERROR = 1e-10  # of the range, so that no error is a number too


def compare(reference, outputs, are_probabilities: bool = False) -> dict[str, float]:
    """Compares logits.

    Args:
        reference: `[images, classes]` of the Keras model.
        outputs: `[images, classes]` of the file.
        are_probabilities: compares their logarithms, which are logits but for a
            constant; probabilities themselves are too small to tell networks apart.

    Returns:
        `max_abs` and `mean_abs` (of the differences), `max_abs_reference` (the scale
        of the logits), `psnr_db` (of the outputs themselves, the peak being their
        range; at most 200), and `top1_agreement` in [0, 1].
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
            np.log(np.maximum(values, SMALLEST_PROBABILITY))
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


def _psnr_db(reference, outputs) -> float:
    error = np.sqrt(np.mean((reference - outputs) ** 2))
    peak = np.ptp(reference)
    if peak == 0:
        return 0.0 if error else -20 * np.log10(LEAST_ERROR)
    return float(20 * np.log10(peak / max(error, peak * LEAST_ERROR)))
