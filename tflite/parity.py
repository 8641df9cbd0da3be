"""How far a converted file's outputs are from Keras's."""

import numpy as np

# Largest absolute difference of a logit that a format may show on real images.
THRESHOLDS = {"fp32": 1e-4}
SMALLEST_PROBABILITY = 1e-30  # near float32's end, below which digits are lost


def compare(reference, outputs, are_probabilities: bool = False) -> dict[str, float]:
    """Compares logits.

    Args:
        reference: `[images, classes]` of the Keras model.
        outputs: `[images, classes]` of the file.
        are_probabilities: compares their logarithms, which are logits but for a
            constant; probabilities themselves are too small to tell networks apart.

    Returns:
        `max_abs` and `mean_abs` (of the differences), `max_abs_reference` (the scale
        of the logits), and `top1_agreement` in [0, 1].
    """
    reference = np.asarray(reference, np.float64)
    outputs = np.asarray(outputs, np.float64)
    if reference.shape != outputs.shape:
        raise ValueError(
            f"Keras's outputs have shape {reference.shape}, the file's {outputs.shape}."
        )
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
        "top1_agreement": float(agree.mean()),
    }


def refuse_difference(parity: dict, file_format: str) -> None:
    """Raises a ValueError if a format's threshold is exceeded, or anything is NaN."""
    threshold = THRESHOLDS[file_format]
    if not parity["max_abs"] <= threshold:
        raise ValueError(
            f"The {file_format} outputs differ from Keras's by up to "
            f"{parity['max_abs']:.2e}; at most {threshold:.0e} is allowed."
        )
