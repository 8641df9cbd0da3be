"""Builds layers under another dtype policy."""

import contextlib

import keras


@contextlib.contextmanager
def policy_of(name: str):
    """Builds layers with another dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
