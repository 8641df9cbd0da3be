"""Networks with weights that a training could leave, and graphs run on images."""

import keras
import numpy as np

from tflite.graph import tf_ops


def randomized(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives statistics, gammas, betas and biases the values of a trained network."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        name = variable.path.rsplit("/", 1)[-1]
        if name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif name in ("beta", "bias", "moving_mean"):
            variable.assign(random.normal(0, 0.2, variable.shape))
    return model


def random_images(height: int, width: int, count: int = 1) -> np.ndarray:
    """Returns float64 images with values in [0, 255]."""
    return np.random.default_rng(1).uniform(0, 255, (count, height, width, 3))


def run_graph(graph, images) -> np.ndarray:
    """Returns the only output of a graph."""
    (output,) = tf_ops.run(graph, images)
    return output.numpy()
