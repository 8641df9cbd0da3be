"""Checks that a file must pass before it is kept, and the card that reports them.

Holds parity, operations, delegation and the GPU check.
May import `keras_mobilevit` and `tflite.drivers`.
"""
